"""Examples as Arrow tables (:data:`divray.schemas.EXAMPLES`) and back."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from divray.relations import Example
from divray.schemas import EXAMPLES


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
