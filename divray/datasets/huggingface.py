"""A folder written by ``datasets.Dataset.save_to_disk``, or Parquet: a folder of files or one file.

The columns are those of :mod:`divray.datasets.rows`; a ``ClassLabel`` relation is turned into its names.  The
files are read with Arrow alone, so nothing of the data set's own code runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from divray.datasets.rows import example_from_row
from divray.datasets.source import Source, read_json
from divray.relations import Example


def read_huggingface(source: Source) -> Iterator[Example]:
    """Yield the rows, file by file in the order of their names; a row without id is called after its place.

    Raises:
        InputError: The folder is none of the two kinds, a file is damaged, a column is missing or wrong.
    """
    number = 0
    for path in _files(source):
        try:
            table = _arrow(path) if path.suffix == ".arrow" else pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise source.error(path.name, f"not readable ({str(error).splitlines()[0]})", "Fetch or save it again.") from None
        missing = [name for name in ("text", "relation") if name not in table.column_names]
        if missing:
            problem = f"no column `{missing[0]}` among {', '.join(table.column_names)}"
            raise source.error(path.name, problem, "Columns: text, head, tail (or head_start, …), relation.")
        names = _class_names(table.schema)
        for batch in table.to_batches(max_chunksize=4096):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                raise source.error(
                    path.name, f"invalid UTF-8 in rows {number + 1} to {number + len(batch)}", "Save the data as UTF-8."
                ) from None
            for row in rows:
                number += 1
                place = f"row {number}"
                if names and isinstance(row["relation"], int) and 0 <= row["relation"] < len(names):
                    row["relation"] = names[row["relation"]]
                yield example_from_row(source, place, row, f"row-{number}")
    if not number:
        raise source.error("", "holds no rows", "Save the data set again, or give another split.")


def _files(source: Source) -> list[Path]:
    folder = source.path
    if folder.is_file() and folder.suffix == ".parquet":
        return [folder]
    if not folder.is_dir():
        problem = "no Parquet file" if folder.exists() else "no such folder"
        raise source.error("", problem, "Give a folder saved with save_to_disk, or of Parquet files.")
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise source.error("", "holds several splits", f"Give one of them: {', '.join(f'{folder.name}/{name}' for name in splits)}.")
    if (folder / "state.json").is_file():
        state = read_json(folder / "state.json")
        try:
            files = [folder / str(entry["filename"]) for entry in state["_data_files"]]
        except (KeyError, TypeError):
            raise source.error("state.json", "names no data files", "Save the data set again with save_to_disk.") from None
    else:
        files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise source.error("", "neither state.json nor *.parquet in it", "Give a folder saved with save_to_disk, or of Parquet files.")
    return files


def _arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as stream:
        return pa.ipc.open_stream(stream).read_all()


def _class_names(schema: pa.Schema) -> list[str]:
    """Names of the ``ClassLabel`` column ``relation``; none where it is no such column."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in metadata["info"]["features"]["relation"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
