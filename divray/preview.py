"""A few prompts and samples a relation, made in a throw-away folder: nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from textwrap import indent
from typing import Any

from divray.cluster import prepare_cluster, release_cluster
from divray.config import Config
from divray.datasets.stage import read_relations, table_examples
from divray.datasets.stage import run as prepare
from divray.engines.complete import complete
from divray.pipeline import check
from divray.prompts import run as prompt
from divray.prompts.parsing import form_of
from divray.run_folder import RunFolder
from divray.sampling.stage import parsed_records


def preview(config: Config, count: int, answer: Any = None) -> Iterator[str]:
    """Blocks of text: each relation's prompt for each strategy, and ``count`` completions with their verdicts.

    Args:
        answer: A function in the engine's place; see :func:`divray.engines.complete.complete`.
    """
    check(config)
    wanted = count * len(config.prompts.strategies)
    sampling = config.sampling.model_copy(
        update={"candidates_per_relation": wanted, "naive_candidates_per_relation": count, "waves": 1, "quota": None}
    )
    config = config.model_copy(update={"sampling": sampling, "rounds": 1})
    with tempfile.TemporaryDirectory(prefix="divray-preview-") as folder:
        run = RunFolder(folder)
        prepare_cluster(config, run, ["sample"])
        prepare(config, run)
        prompt(config, run, 0, answer=answer)
        try:
            complete(config, run, "round-00/prompts", "completions", config.models.llm, answer=answer)
        finally:
            release_cluster(config)
        completions = run.read_table("completions").sort_by("candidate_id").to_pylist()
        form = form_of(table_examples(run.read_table("data/seeds")), read_relations(run))
    shown = ""
    for row in completions:
        if row["prompt_id"] != shown:
            shown = row["prompt_id"]
            yield f"\n=== {row['relation']} / {row['strategy']}\n{row['prompt']}"
        verdicts = ", ".join(parsed.rejection or "valid" for parsed in parsed_records(row, form, config.sampling.max_tokens))
        yield f"  [{verdicts}]\n{indent(row['completion'].strip(), '    ')}"
