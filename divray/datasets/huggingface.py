"""A folder written by ``datasets.Dataset.save_to_disk``, or Parquet: one file, or those that match a pattern.

The columns are those of :mod:`divray.datasets.own`; a ``ClassLabel`` number in them is read as its name.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divray.datasets.own import IDS, SENTENCE, Source, labelled
from divray.dedup.storage import PARQUET, first_line
from divray.relations import Example

_FIX = "Give the folder of one split saved with save_to_disk, or Parquet: a file, or a pattern like train-*.parquet."


def read_huggingface(source: Source) -> Iterator[Example]:
    """Yield the rows, file by file in order of file name; a row without an id gets ``row-<number>``, counted over all files.

    Raises:
        InputError: The path is of neither kind, a file is damaged, or a column is missing or wrong.
    """
    number = 0
    for table in _tables(source):
        names = table.column_names
        if missing := [name for name in ("text", *(() if source.unlabelled else ("relation",))) if names.count(name) != 1]:
            problem = f"{names.count(missing[0]) or 'no'} columns `{missing[0]}`"
            raise source.error("", problem, "Columns: text, head, tail (or head_start, …), relation.")
        for batch in table.to_batches(max_chunksize=4096):
            for row in plain_rows(batch):
                number += 1
                yield from labelled(source, f"row {number}", row, f"row-{number}")


def _tables(source: Source) -> Iterator[pa.Table]:
    """Yield a table for each file, with the columns that a reader uses.  A saved folder gives one table, with its selected rows."""
    path, wanted = source.path, (*SENTENCE, *IDS, "relation")
    if path.is_dir():
        from datasets import load_from_disk

        try:
            saved: Any = load_from_disk(str(path))
            table = saved.with_format("arrow")[:] if len(saved) else saved.features.arrow_schema.empty_table()
            table = table.select([name for name in wanted if name in table.column_names])
            table.validate(full=True)
        except Exception as error:  # datasets raises many types
            raise source.error("", f"no whole data set ({type(error).__name__}: {first_line(error)})", _FIX) from None
        yield table.replace_schema_metadata(saved.features.arrow_schema.metadata)
        return
    files = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    files = [file for file in files if file.suffix.lower() in PARQUET]
    if not files:
        raise source.error("", "no Parquet file" if path.exists() else "no such file or folder", _FIX)
    for file in files:
        try:
            table = pq.ParquetFile(file).read(list(wanted))
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise source.error(file.name, f"not readable ({first_line(error)})", "Fetch or save it again.") from None
        yield table


def plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python values, with ``ClassLabel`` numbers replaced by names."""
    rows: list[dict[str, Any]] = batch.to_pylist()
    try:
        features = json.loads((batch.schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: one["names"] for name, one in features.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"}
    except (AttributeError, KeyError, TypeError, ValueError):  # not written by datasets
        labels = {}
    for column, names in labels.items():
        for row in rows:
            if isinstance(label := row.get(column), int) and 0 <= label < len(names):
                row[column] = names[label]
    return rows
