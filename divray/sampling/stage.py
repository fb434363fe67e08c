"""The ``sample`` stage: request rows through the engine, and every completion to a sample or a rejection."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa

from divray.config import Config
from divray.runs import RunFolder
from divray.sampling.engine import Progress, complete
from divray.sampling.parsing import parse_completion
from divray.schemas import SAMPLES


def policy_model(config: Config, run: RunFolder, round: int) -> str:
    """The model that samples ``round``: its own policy where one was trained, else ``models.llm``."""
    name = f"round-{round:02d}/policy"
    return run.full_uri(name) if run.exists(f"{name}/config.json") else config.models.llm


def run(config: Config, run: RunFolder, round: int, on_progress: Progress | None = None) -> dict[str, Any]:
    """Complete ``round-XX/prompts`` into ``round-XX/completions`` and parse those into ``round-XX/samples``.

    A call that was killed goes on where it was: finished completions are kept.  The samples are a pure
    function of the completions, sorted by ``candidate_id``.

    Returns:
        Counts: ``candidates``, ``valid``, ``rejections`` (reason -> count).

    Raises:
        EngineError: The engine died at every try.
    """
    folder = f"round-{round:02d}"
    complete(config, run, f"{folder}/prompts", f"{folder}/completions", policy_model(config, run, round), on_progress=on_progress)
    run.delete(f"{folder}/samples")
    types = {row["name"]: (row["head_type"], row["tail_type"]) for row in run.read_json("data/relations.json")}
    parse = partial(parse_batch, types=_types_of(run, types), max_tokens=config.sampling.max_tokens)
    completions = run.dataset(f"{folder}/completions")
    samples = completions.map_batches(parse, batch_format="pyarrow", num_cpus=0.25).sort("candidate_id")
    samples.write_parquet(run.path(f"{folder}/samples"), filesystem=run.fs)
    reasons: Counter[str] = Counter()
    batch: Any
    for batch in run.dataset(f"{folder}/samples", columns=["rejection"]).iter_batches(batch_format="pyarrow", batch_size=None):
        reasons.update(batch["rejection"].to_pylist())
    valid = reasons.pop("", 0)
    return {"candidates": valid + sum(reasons.values()), "valid": valid, "rejections": dict(sorted(reasons.items()))}


def parse_batch(batch: pa.Table, types: dict[str, tuple[str, str]], max_tokens: int) -> pa.Table:
    """Completions (``schemas.COMPLETIONS``) to samples (``schemas.SAMPLES``), row by row.

    Args:
        types: Relation -> types of head and tail that its samples get.
        max_tokens: A completion of that many tokens was cut by the limit.
    """
    rows = []
    for row in batch.to_pylist():
        parsed = parse_completion(row["completion"], row["error"], row["generated_tokens"] >= max_tokens)
        head_type, tail_type = types[row["relation"]]
        rows.append(
            {
                **{name: row[name] for name in SAMPLES.names if name in row},
                "text": parsed.text,
                "head_start": parsed.head[0],
                "head_end": parsed.head[1],
                "tail_start": parsed.tail[0],
                "tail_end": parsed.tail[1],
                "head_type": head_type,
                "tail_type": tail_type,
                "rejection": parsed.rejection,
            }
        )
    return pa.Table.from_pylist(rows, SAMPLES)


def _types_of(run: RunFolder, types: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """No types for the samples where the human examples have none: a typed sample would give its label away."""
    seeds = run.read_table("data/seeds", ["head_type", "tail_type"])
    typed = any(seeds["head_type"].to_pylist()) or any(seeds["tail_type"].to_pylist())
    return types if typed else dict.fromkeys(types, ("", ""))
