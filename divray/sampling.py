"""The ``sample`` stage: sends request rows through the engine, and turns each completion into samples or rejections."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divray import console
from divray.alignment import base_model
from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds, stated
from divray.engines import Answer
from divray.engines.complete import complete
from divray.layout import Round
from divray.prompts import write_wave
from divray.prompts.parsing import Form, Parsed, form_of, parse_record
from divray.prompts.record import read_records
from divray.prompts.rows import accepted_samples, candidate_ids
from divray.prompts.waves import Tally, Wave, apportion, next_counts, quota_account
from divray.resources import uses_gpu
from divray.run_folder import RunFolder
from divray.scan import tally
from divray.schemas import NAIVE, SAMPLES
from divray.stages import Progress
from divray.texts import SPANS

ENGINE_ERROR, REJECTED = "engine_error", "rejected_request"
_REFUSALS = ("ValueError", "VLLMValidationError", "TypeError", "BadRequestError", "UnprocessableEntityError")


def policy_model(config: Config, run: RunFolder, round: int) -> tuple[str, str]:
    """The model that samples ``round``, and the LoRA adapter to load with it (``""`` for none).

    Until a policy is trained, the model is ``models.llm``.  Then it is the round's own policy.  On GPUs, where engines live on during
    DPO, it is the model that the policy was tuned from, with the policy's adapter.
    """
    name = Round.of(round).policy
    if not run.exists(f"{name}/config.json"):
        return config.models.llm, ""
    if uses_gpu(config) and run.exists(f"{name}/adapter/adapter_config.json"):
        return base_model(config.models.llm, run, round), run.full_uri(f"{name}/adapter")
    return run.full_uri(name), ""


def run(
    config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None, answer: Answer | None = None
) -> dict[str, Any]:
    """Complete ``round-XX/prompts`` into ``completions``, and parse those into ``samples``.

    With waves, the samples accepted so far decide which prompts come next; these are then completed too (:mod:`divray.prompts.waves`).
    Where the samples must be scored before, the counts have ``then``: the stage to run before this one goes on.
    After a kill, a new call goes on where the last one was.  The samples depend on the completions alone, sorted by ``candidate_id``.

    Args:
        answer: A function in the engine's place; see :func:`~divray.engines.complete.complete`.

    Returns:
        Counts: ``candidates``, ``valid``, ``rejections`` (reason -> count), and with a quota ``missing`` (samples).

    Raises:
        EngineError: The engine died at every try.
    """
    own, quota = Round.of(round), config.sampling.quota
    model, adapter = policy_model(config, run, round)
    names = [relation.name for relation in stated(read_relations(run), config.task.none_label)]
    wave = len(run.files(own.waves))
    run.each(own.prompts, run.delete, f"wave-{wave + 1:02d}")  # left by a wave that a kill stopped before it was recorded
    while True:
        complete(config, run, own.prompts, own.completions, model, adapter=adapter, on_progress=on_progress, answer=answer)
        counts = parse_round(config, run, own)
        if quota is None and wave + 1 == config.sampling.most_waves:
            return counts
        if sum(count for (count,) in tally(run, own.scores, ["relation"]).values()) != counts["valid"]:
            return {**counts, "then": "score"}
        tallies = tallies_of(run, own, names)
        if not (wanted := next_counts(config, tallies, wave + 1)):
            break
        wave += 1
        asked: dict[str, dict[str, int]] = {}
        for (relation, strategy), (_, count) in tally(run, own.prompts, ["relation", "strategy"], ["sentences"]).items():
            asked.setdefault(relation, {})[strategy] = int(count)
        shares = {name: apportion(config.prompts.strategies, count) for name, count in wanted.items()}
        write_wave(config, run, round, Wave(wave, shares, asked, accepted_samples(run, range(round + 1))))
        run.write_json(f"{own.waves}/{wave:02d}.json", wanted)
        console.log(f"{own.name} wave {wave}: {sum(wanted.values())} more candidates for {len(wanted)} relations")
    if quota is None:
        return counts
    account = quota_account(quota, tallies)
    run.write_json(own.quota, account)
    return {**counts, "waves": wave + 1, "missing": account["missing"]}


def tallies_of(run: RunFolder, own: Round, relations: list[str]) -> dict[str, Tally]:
    """Each relation's :class:`Tally`, from the tables of a round, without the naive baseline."""
    loop = pc.field("strategy") != NAIVE
    asked = tally(run, own.prompts, ["relation"], ["sentences"], where=loop)
    accepted = tally(run, own.scores, ["relation"], where=loop & pc.field("unique") & pc.field("correct"))
    found = {name: [int(counts.get((name,), (0,))[-1]) for counts in (asked, accepted)] for name in relations}
    return {name: Tally(*numbers) for name, numbers in found.items()}


def parse_round(config: Config, run: RunFolder, own: Round) -> dict[str, Any]:
    """Write ``samples`` of a round from its completions; returns the counts of :func:`run`."""
    run.forget(f"{own.name}.sample")
    run.delete(own.samples)
    relations, seeds = read_relations(run), read_seeds(run)
    # Where the human examples have no types, a typed sample would give its label away.
    typed = any(seed.head_type or seed.tail_type for seed in seeds)
    types = {relation.name: (relation.head_type, relation.tail_type) if typed else ("", "") for relation in relations}
    parse = partial(parse_batch, types=types, form=form_of(seeds, relations))
    completions = run.dataset(own.completions)
    samples = completions.map_batches(parse, batch_format="pyarrow", num_cpus=0.25).sort("candidate_id")
    run.write_dataset(own.samples, samples)
    reasons = {reason: int(count) for (reason,), (count,) in tally(run, own.samples, ["rejection"]).items()}
    valid = reasons.pop("", 0)
    return {"candidates": valid + sum(reasons.values()), "valid": valid, "rejections": dict(sorted(reasons.items()))}


def parse_batch(batch: pa.Table, types: dict[str, tuple[str, str]], form: Form) -> pa.Table:
    """Turn completions (``schemas.COMPLETIONS``) into samples (``schemas.SAMPLES``): one row for each candidate asked for.

    Args:
        types: Relation -> types of head and tail that its samples get.
        form: What the task's sentences have in common.
    """
    rows = []
    for row in batch.to_pylist():
        head_type, tail_type = types[row["relation"]]
        ids = candidate_ids(row["candidate_id"], row.get("sentences") or 1)
        for candidate_id, parsed in zip(ids, parsed_records(row, form), strict=True):
            rows.append(
                {
                    **{name: row[name] for name in SAMPLES.names if name in row},
                    "candidate_id": candidate_id,
                    "text": parsed.text,
                    **dict(zip(SPANS, (*parsed.head, *parsed.tail), strict=True)),
                    "head_type": head_type,
                    "tail_type": tail_type,
                    "rejection": parsed.rejection,
                }
            )
    return pa.Table.from_pylist(rows, SAMPLES)


def parsed_records(row: dict[str, Any], form: Form) -> list[Parsed]:
    """Parse each candidate of one completion row.  A rejection's reason is one of :func:`~divray.prompts.parsing.parse_record` or
    :func:`failure_reason`, or ``empty``, ``truncated``, ``no_record`` or ``not_written``."""
    asked = row.get("sentences") or 1
    if row["error"]:
        return [Parsed(rejection=failure_reason(row["error"]))] * asked
    if not row["completion"].strip():
        return [Parsed(rejection="empty")] * asked
    cut = row["finish_reason"] == "length"
    records = read_records(row["completion"], (row["head"], row["tail"]) if row["head"] else None, cut)
    parsed = [parse_record(record, form, row["relation"]) for record in records[:asked]]
    missing = "truncated" if cut else "no_record" if asked == 1 else "not_written"
    return parsed + [Parsed(rejection=missing)] * (asked - len(parsed))


def failure_reason(error: str) -> str:
    """The reason that a completion's ``error`` gives: :data:`REJECTED` if the request was refused for good, else :data:`ENGINE_ERROR`."""
    return REJECTED if error.partition(":")[0].strip() in _REFUSALS else ENGINE_ERROR


def forget_failed(run: RunFolder, own: Round) -> None:
    """Remove the completions that failed through the engine's own fault, so that the next pass asks for them again."""

    def drop_failed(file: str) -> None:
        with pq.ParquetFile(run.path(file), filesystem=run.fs) as parquet:
            errors = parquet.read(["error"])["error"].to_pylist()
            kept = [not error or failure_reason(error) != ENGINE_ERROR for error in errors]
            if not all(kept):
                run.write_parquet(file, parquet.read().filter(pa.array(kept)))

    run.each(own.completions, drop_failed)


def forget_completions(run: RunFolder, own: Round) -> None:
    """Remove what the engine wrote for a round, and the prompts that were made from it (waves after the first)."""
    for name in (own.completions, f"{own.completions}.engines", own.waves, own.quota, own.scores):
        run.delete(name)
    run.each(own.prompts, run.delete, "wave-")
