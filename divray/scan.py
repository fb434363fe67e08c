"""Reading a run's tables a batch at a time, only the columns asked for, and counting their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.run_folder import RunFolder

Row = dict[str, Any]

SENTENCE = ["text", "head_start", "head_end", "tail_start", "tail_end"]

ASKED = {"asked": pc.max_element_wise(pc.field("sentences"), 1)}
"""For :func:`tally`: ``asked``, the candidates of a request row, which are its ``sentences`` and at least 1."""


def batches(
    run: RunFolder, tables: str | Sequence[str], columns: Sequence[str] | Mapping[str, pc.Expression], where: pc.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """Record batches of a table, or of several of one schema, in the order of their files; none where there is no such table."""
    for table in [tables] if isinstance(tables, str) else tables:
        yield from run.scan(table, dict(columns) if isinstance(columns, Mapping) else list(columns), where)


def rows(run: RunFolder, tables: str | Sequence[str], columns: Sequence[str], where: pc.Expression | None = None) -> Iterator[Row]:
    """The same, a row at a time."""
    for batch in batches(run, tables, columns, where):
        yield from batch.to_pylist()


def tally(
    run: RunFolder,
    tables: str | Sequence[str],
    keys: Sequence[str],
    sums: Sequence[str] = (),
    derived: Mapping[str, pc.Expression] | None = None,
    where: pc.Expression | None = None,
) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """Count the rows of each combination of ``keys``, and add up ``sums``, holding one batch at a time.

    ``derived`` names columns that are expressions of others.  Returns ``key values -> (rows, sum, …)``.
    """
    columns = {column: pc.field(column) for column in (*keys, *sums)} | dict(derived or {})
    parts = [
        pa.Table.from_batches([batch]).group_by(keys, use_threads=False).aggregate([([], "count_all"), *((c, "sum") for c in sums)])
        for batch in batches(run, tables, columns, where)
    ]
    if not parts:
        return {}
    counted = ["count_all", *(f"{column}_sum" for column in sums)]
    whole = pa.concat_tables(parts).group_by(keys, use_threads=False).aggregate([(column, "sum") for column in counted])
    return {tuple(row[key] for key in keys): tuple(row[f"{column}_sum"] or 0 for column in counted) for row in whole.to_pylist()}
