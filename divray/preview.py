"""A few prompts and samples a relation, made in a throw-away folder: nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from divray.config import Config
from divray.pipeline import check
from divray.runs import RunFolder


def preview(config: Config, count: int) -> Iterator[str]:
    """Blocks of text: each relation's prompt for each strategy, and ``count`` completions with their verdict."""
    from divray.cluster import connect
    from divray.datasets import examples_table
    from divray.prompts import chat_renderer, request_rows, token_counter, write_prompts
    from divray.sampling.engine import complete
    from divray.sampling.stage import parsed_parts

    task = check(config)
    wanted = count * len(config.prompts.strategies)
    sampling = config.sampling.model_copy(
        update={"candidates_per_relation": wanted, "naive_candidates_per_relation": count, "waves": 1, "quota": None}
    )
    config = config.model_copy(update={"sampling": sampling})
    connect(config)
    with tempfile.TemporaryDirectory(prefix="divray-preview-") as folder:
        run = RunFolder(folder)
        run.write_table("data/seeds", examples_table(task.seeds))
        rows = request_rows(config, task.relations, task.seeds, 0, chat_renderer(config), length=token_counter(config))
        write_prompts(run, "prompts", rows)
        complete(config, run, "prompts", "completions", config.models.llm)
        completions = run.read_table("completions").sort_by("candidate_id").to_pylist()
    shown = ""
    for row in completions:
        if row["prompt_id"] != shown:
            shown = row["prompt_id"]
            yield f"\n=== {row['relation']} / {row['strategy']}\n{row['prompt']}"
        for completion, parsed in zip(*parsed_parts(row, config.sampling.max_tokens), strict=True):
            yield f"  [{parsed.rejection or 'valid'}] {completion.strip()}"
