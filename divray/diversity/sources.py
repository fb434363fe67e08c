"""Parquet files as tables of texts: found by a name, read by batch, judged in this process."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.diversity.columns import DedupSettings
from divray.diversity.index import TextIndex
from divray.diversity.tables import judge
from divray.diversity.verdicts import Verdicts
from divray.errors import InputError
from divray.runs import open_uri

BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One or more Parquet files of one schema, in the order of their names.

    Attributes:
        name: As the user gave it.
        fs, paths: Where they lie.
        schema: Of all of them.
        rows: int, how many they hold together.
        folder: The folder that ``name`` is; ``None`` for a file or a pattern.
    """

    name: str
    fs: pafs.FileSystem
    paths: list[str]
    schema: pa.Schema
    rows: int
    folder: str | None = None

    @classmethod
    def open(cls, name: str) -> ParquetSource:
        """A file, a folder (with all the ``.parquet`` files in it), or a pattern with ``*`` or ``?`` in the last parts.

        What lies there under exactly this name is no pattern; ``[`` is a letter like any other.  Files and folders whose
        names begin with ``.`` or ``_`` are left out, as Spark does.

        Raises:
            InputError: nothing is there, a file is no Parquet file, or two have different columns.
        """
        fs, path = open_uri(name)
        folder, paths = _matching(fs, path, name)
        schema, rows = None, 0
        for one in paths:
            with _opened(fs, one) as file:
                rows += file.metadata.num_rows
                if schema is not None and not file.schema_arrow.equals(schema):
                    raise InputError(one, "", f"its columns differ from those of {paths[0]}", "Give files of one schema.")
                schema = file.schema_arrow if schema is None else schema
        return cls(name, fs, paths, schema, rows, folder)

    def batches(self, columns: list[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """All rows, at most ``rows`` at a time; one empty batch where there are none."""
        if not self.rows:
            yield pa.RecordBatch.from_pylist(
                [], self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
            )
        for path in self.paths:
            with _opened(self.fs, path) as file:
                try:
                    yield from file.iter_batches(batch_size=rows, columns=columns, use_threads=False)
                except (pa.ArrowInvalid, OSError) as error:
                    raise _unreadable(path, error) from None


def judge_files(
    files: ParquetSource,
    settings: DedupSettings,
    against: ParquetSource | None = None,
    earlier: ParquetSource | None = None,
    index: TextIndex | None = None,
) -> Verdicts:
    """:func:`divray.diversity.tables.judge` on Parquet files."""
    wanted = [settings.text_column, *([settings.id_column] if settings.id_column else [])]
    tests = None if against is None else against.batches([settings.text_column])
    known = None if earlier is None else earlier.batches(wanted)
    rows = sum(one.rows for one in (files, against, earlier) if one is not None)
    return judge(files.batches(wanted), settings, tests, known, index, rows=rows, where=files.name)


def _matching(fs: pafs.FileSystem, path: str, name: str) -> tuple[str | None, list[str]]:
    """The folder that ``path`` is, if it is one, and the files."""
    base = path
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        while any(mark in base for mark in "*?"):
            base = posixpath.dirname(base)
    kind = fs.get_file_info(base).type
    if kind == pafs.FileType.File and base == path:
        return None, [path]
    if kind != pafs.FileType.Directory:
        raise InputError(name, "", "no such file or folder", "Give a Parquet file, a folder of them or a pattern.")
    found = fs.get_file_info(pafs.FileSelector(base, recursive=True))
    paths = sorted(one.path for one in found if one.type == pafs.FileType.File and _is_plain(one.path.removeprefix(base)))
    pattern = "*.parquet" if base == path else path.replace("[", "[[]")
    paths = [one for one in paths if fnmatch.fnmatchcase(one, pattern)]
    if not paths:
        raise InputError(name, "", "no Parquet file there", "Give a Parquet file, a folder of them or a pattern.")
    return (path if base == path else None), paths


def _is_plain(path: str) -> bool:
    return not any(part.startswith((".", "_")) for part in path.split("/"))


def _opened(fs: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(fs.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(path, "", f"not readable as Parquet ({str(error).splitlines()[0][:120]})", "Give a Parquet file.")
