"""Reading a run's tables a batch at a time, only the columns asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pyarrow.compute as pc

    from divray.run_folder import RunFolder

Row = dict[str, Any]
Columns = Sequence[str] | dict[str, "pc.Expression"]

SPANS = ["text", "head_start", "head_end", "tail_start", "tail_end"]
BINS = 20


def batches(run: RunFolder, name: str, columns: Columns, where: pc.Expression | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of table ``name`` in the order of its files; none where there is no such table."""
    import pyarrow.dataset as pads

    paths = [run.path(file) for file in run.files(name, ".parquet")]
    if not paths:
        return
    dataset = pads.dataset(paths, format="parquet", filesystem=run.fs)
    wanted = columns if isinstance(columns, dict) else list(columns)
    for batch in dataset.to_batches(columns=wanted, filter=where, batch_size=32_768):
        if batch.num_rows:
            yield batch


def rows(run: RunFolder, name: str, columns: Columns, where: pc.Expression | None = None) -> Iterator[dict[str, Any]]:
    """The same, a row at a time."""
    for batch in batches(run, name, columns, where):
        yield from batch.to_pylist()


def tally(
    run: RunFolder,
    name: str,
    keys: list[str],
    sums: Sequence[str] = (),
    derived: dict[str, pc.Expression] | None = None,
) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """Count the rows of each combination of ``keys``, and add up ``sums``, holding one batch at a time.

    ``derived`` names keys that are no columns but expressions of them.  Returns
    ``key values -> (rows, sum, …)``.
    """
    import pyarrow.dataset as pads

    derived = derived or {}
    columns = {column: derived.get(column, pads.field(column)) for column in (*keys, *sums)}
    totals: dict[tuple[Any, ...], list[float]] = {}
    asked = [([], "count_all"), *((column, "sum") for column in sums)]
    for batch in batches(run, name, columns):
        grouped = pa.Table.from_batches([batch]).group_by(keys).aggregate(asked)
        shown = [grouped[column].to_pylist() for column in (*keys, "count_all", *(f"{column}_sum" for column in sums))]
        for row in zip(*shown, strict=True):
            key, values = row[: len(keys)], row[len(keys) :]
            total = totals.setdefault(key, [0] * len(values))
            for position, value in enumerate(values):
                total[position] += value or 0
    return {key: tuple(values) for key, values in totals.items()}


def asked() -> dict[str, pc.Expression]:
    """For :func:`tally`: ``asked``, the candidates of a request row, which are its ``sentences`` and at least 1."""
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    return {"asked": pc.max_element_wise(pads.field("sentences"), 1)}
