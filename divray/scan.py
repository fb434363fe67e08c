"""Reading a run's tables a batch at a time, only the columns asked for, and counting their rows."""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.layout import Round
from divray.run_folder import RunFolder

Row = dict[str, Any]


def scored_rounds(run: RunFolder) -> list[Round]:
    """The rounds that have scores."""
    return list(itertools.takewhile(lambda own: run.table_files(own.scores), map(Round.of, itertools.count())))


def rows(run: RunFolder, tables: str | Iterable[str], columns: Sequence[str], where: pc.Expression | None = None) -> Iterator[Row]:
    """The rows of a table, or of several with one schema, one at a time; no rows if there is no such table."""
    for batch in run.scan(tables, columns, where):
        yield from batch.to_pylist()


def table_of(run: RunFolder, tables: str | Iterable[str], columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table | None:
    """The rows of :func:`rows` as one table, which must fit in memory; ``None`` if there are no rows."""
    batches = list(run.scan(tables, columns, where))
    return pa.Table.from_batches(batches) if batches else None


def first_of_each(found: Iterable[Row], group: str, rank: Callable[[Row], Any], count: int) -> dict[Any, list[Row]]:
    """For each value of the column ``group``, its first ``count`` rows by ``rank``."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in found:
        own = groups[row[group]]
        own.append(row)
        if len(own) > 8 * count + 64:  # so that memory stays bounded
            own[:] = heapq.nsmallest(count, own, key=rank)
    return {name: heapq.nsmallest(count, groups[name], key=rank) for name in sorted(groups)}


def tally(
    run: RunFolder,
    tables: str | Iterable[str],
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
        for batch in run.scan(tables, columns, where)
    ]
    if not parts:
        return {}
    counted = ["count_all", *(f"{column}_sum" for column in sums)]
    whole = pa.concat_tables(parts).group_by(keys, use_threads=False).aggregate([(column, "sum") for column in counted])
    return {tuple(row[key] for key in keys): tuple(row[f"{column}_sum"] or 0 for column in counted) for row in whole.to_pylist()}
