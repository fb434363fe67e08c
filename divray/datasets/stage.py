"""The first stage, ``prepare``: relations, seed and test examples into the run folder.

It reads the user's files on the driver; every later stage reads the run folder alone, where examples are rows of
:data:`divray.schemas.EXAMPLES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from divray.config import Config
from divray.datasets.task import load_task
from divray.relations import Example, Relation
from divray.run_folder import DRAWS, NEGATIVES, RELATIONS, SEEDS, TEST, RunFolder
from divray.schemas import EXAMPLES
from divray.stages import Progress


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``data/relations.json`` and the tables ``data/seeds``, ``data/test``, ``data/draws`` and ``data/negatives``.

    The rows of ``data/draws`` are those of :class:`~divray.datasets.task.Task`'s ``draws``, numbered in a column ``draw`` (0: the
    run's own), and, where the column ``more`` says so, those of its ``more``.

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
    """The relations of a prepared run, without their examples (those are seeds)."""
    return [Relation(**row) for row in run.read_json(RELATIONS)]


def read_seeds(run: RunFolder) -> list[Example]:
    return table_examples(run.read_table(SEEDS))


def examples_table(examples: Iterable[Example]) -> pa.Table:
    """One row an example, in the given order."""
    rows = ((e.example_id, e.relation, e.text, *e.head, *e.tail, e.head_type, e.tail_type) for e in examples)
    return pa.Table.from_pylist([dict(zip(EXAMPLES.names, row, strict=True)) for row in rows], schema=EXAMPLES)


def table_examples(table: pa.Table, identity: str = "example_id") -> list[Example]:
    """The rows of a table that has at least the columns of ``EXAMPLES``; ``identity`` stands for ``example_id``."""
    columns = [table[name].to_pylist() for name in (identity, *EXAMPLES.names[1:])]
    return [
        Example(text, (start, end), (tail_start, tail_end), relation, head_type or "", tail_type or "", name or "")
        for name, relation, text, start, end, tail_start, tail_end, head_type, tail_type in zip(*columns, strict=True)
    ]
