"""A folder written by ``datasets.Dataset.save_to_disk``, or Parquet: one file, a pattern, or a folder of files of one split.

The columns are those of :mod:`divray.datasets.own`; a ``ClassLabel`` number in them is read as its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divray.datasets.own import IDS, SENTENCE, Source, labelled
from divray.dedup.storage import PARQUET, first_line
from divray.errors import InputError
from divray.relations import Example

_SPLITS = {"train": "train|training", "validation": "validation|valid|val|dev", "test": "test|testing|eval|evaluation"}
"""Split -> the words that mean it in a path, as on the Hugging Face hub."""


def read_huggingface(source: Source) -> Iterator[Example]:
    """Yield the rows, file by file in order of file name; a row without an id gets ``row-<number>``, counted over all files.

    Raises:
        InputError: The path is of neither kind, or holds several splits or no rows; a file is damaged; a column is missing or wrong.
    """
    number = 0
    for path, table in _tables(source):
        if missing := [name for name in ("text", "relation")[: 1 if source.unlabelled else 2] if name not in table.column_names]:
            problem = f"no column `{missing[0]}` among {', '.join(table.column_names)}"
            raise source.error(path.name, problem, "Columns: text, head, tail (or head_start, …), relation.")
        wanted = [name for name in (*SENTENCE, *IDS, "relation") if name in table.column_names]
        if twice := [name for name in wanted if table.column_names.count(name) > 1]:
            raise source.error(path.name, f"column {twice[0]} occurs twice", "Rename or drop one of them.")
        for batch in table.select(wanted).to_batches(max_chunksize=4096):
            for row in plain_rows(batch, str(path), number):
                number += 1
                yield from labelled(source, f"row {number}", row, f"row-{number}")
    if not number:
        raise source.error("", "holds no rows", "Save the data set again, or give another split.")


def _tables(source: Source) -> Iterator[tuple[Path, pa.Table]]:
    """Yield each file's table; a folder saved with ``save_to_disk`` gives one table, of the rows that the data set selects."""
    folder = source.path
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise source.error("", "holds several splits", f"Give one of them: {', '.join(f'{folder.name}/{name}' for name in splits)}.")
    if not (folder / "state.json").is_file():
        for path in _parquet_files(source):
            try:
                table = pq.read_table(path, partitioning=None)
            except (pa.ArrowException, OSError) as error:
                raise source.error(path.name, f"not readable ({first_line(error)})", "Fetch or save it again.") from None
            yield path, table
        return
    from datasets import load_from_disk

    try:
        saved: Any = load_from_disk(str(folder))
        table = saved.with_format("arrow")[:].replace_schema_metadata(saved.features.arrow_schema.metadata)
    except Exception as error:  # datasets raises many types
        problem = f"no whole data set ({type(error).__name__}: {first_line(error)})"
        raise source.error("", problem, "Save it again with save_to_disk.") from None
    yield folder / "state.json", table


def _parquet_files(source: Source) -> list[Path]:
    path = source.path
    if path.is_dir():
        base, found, problem = path, list(path.rglob("*")), "neither state.json nor *.parquet in it"
        found = [file for file in found if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)]  # as in Spark
    else:
        base, found = path.parent, [path] if path.is_file() else list(path.parent.glob(path.name))
        problem = "no Parquet file" if path.exists() else "no such folder"
    files = sorted(file for file in found if file.suffix.lower() in PARQUET)
    splits = {_split_of(file.relative_to(base)): file.relative_to(base) for file in reversed(files)}
    if len(splits) > 1:
        several = ", ".join(f"{split or 'others'} ({first} …)" for split, first in sorted(splits.items()))
        fix = "Give one of them: a folder, a file, or a pattern like train-*.parquet."
        raise source.error("", f"holds several splits: {several}", fix)
    if not files:
        fix = "Give a folder saved with save_to_disk, or Parquet: a file, a folder of one split's files, or a pattern."
        raise source.error("", problem, fix)
    return files


def _split_of(file: Path) -> str:
    """The split that the path of a file names, by a word or by what comes before ``-00000-of-00005``; ``""`` for none."""
    for name, words in _SPLITS.items():
        if re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", file.as_posix().lower()):
            return name
    numbered = re.match(r"(.+)-\d{5}-of-\d{5}", file.name)
    return numbered[1] if numbered else ""


def plain_rows(batch: pa.RecordBatch | pa.Table, where: str, before: int) -> list[dict[str, Any]]:
    """The rows as Python values, with ``ClassLabel`` numbers replaced by names; ``before`` is how many rows come before ``batch``.

    Raises:
        InputError: A text is invalid UTF-8.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        raise InputError(where, f"rows {before + 1} to {before + len(batch)}", "invalid UTF-8", "Save the data as UTF-8.") from None
    for column, names in _class_names(batch.schema).items():
        for row in rows:
            if isinstance(label := row.get(column), int) and 0 <= label < len(names):
                row[column] = names[label]
    return rows


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of each ``ClassLabel`` column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: one for name, one in features.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"}
        return {name: list(map(str, one["names"])) for name, one in labels.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
