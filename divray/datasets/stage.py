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


def examples_table(examples: Iterable[Example]) -> pa.Table:
    """One row an example, in the given order."""
    rows = [
        {
            "example_id": example.example_id,
            "relation": example.relation,
            "text": example.text,
            "head_start": example.head[0],
            "head_end": example.head[1],
            "tail_start": example.tail[0],
            "tail_end": example.tail[1],
            "head_type": example.head_type,
            "tail_type": example.tail_type,
        }
        for example in examples
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def table_examples(table: pa.Table, identity: str = "example_id") -> list[Example]:
    """The rows of a table that has at least the columns of ``EXAMPLES``; ``identity`` stands for ``example_id``."""
    return [
        Example(
            row["text"],
            (row["head_start"], row["head_end"]),
            (row["tail_start"], row["tail_end"]),
            row["relation"],
            row["head_type"] or "",
            row["tail_type"] or "",
            row[identity] or "",
        )
        for row in table.select([identity, *EXAMPLES.names[1:]]).to_pylist()
    ]
