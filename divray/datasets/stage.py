"""The first stage, ``prepare``: relations, seed and test examples into the run folder.

It reads the user's files on the driver; every later stage reads the run folder alone.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from divray.config import Config
from divray.datasets.tables import examples_table, table_examples
from divray.datasets.task import load_task
from divray.relations import Example, Relation
from divray.run_folder import DRAWS, NEGATIVES, RELATIONS, SEEDS, TEST, RunFolder
from divray.stages import Progress


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``data/relations.json`` and the tables ``data/seeds``, ``data/test``, ``data/draws`` and ``data/negatives``.

    ``data/draws`` has the seeds as they would be by other seeds of the run, with a column ``draw``: draw 0 is the run's own. Its rows
    with ``more`` are the K examples a relation that come after the draw's.
    There is one alone where the user's examples are no more than ``task.seeds_per_relation``.

    Returns:
        Counts: ``relations``, ``seeds``, ``test``, and ``skipped`` by reason.

    Raises:
        InputError: The data is wrong; nothing was written then.
    """
    task = load_task(config)
    rows = [{key: value for key, value in asdict(relation).items() if key != "examples"} for relation in task.relations]
    run.write_json(RELATIONS, rows)
    run.write_table(SEEDS, examples_table(task.seeds))
    run.write_table(TEST, examples_table(task.test))
    if task.negatives:
        run.write_table(NEGATIVES, examples_table(task.negatives))
    tables = [
        examples_table(part)
        .append_column("draw", pa.array([number] * len(part), pa.int64()))
        .append_column("more", pa.array([later] * len(part), pa.bool_()))
        for number, (draw, more) in enumerate(zip(task.draws, task.more, strict=True))
        for later, part in ((False, draw), (True, more))
    ]
    run.write_table(DRAWS, pa.concat_tables(tables))
    return {"relations": len(rows), "seeds": len(task.seeds), "test": len(task.test), "skipped": task.skipped}


def read_relations(run: RunFolder) -> list[Relation]:
    """The relations of a prepared run, in the user's order, without their examples (those are seeds)."""
    return [Relation(**row) for row in run.read_json(RELATIONS)]


def read_seeds(run: RunFolder) -> list[Example]:
    """The seed examples of a prepared run, in order of the relations."""
    return table_examples(run.read_table(SEEDS))
