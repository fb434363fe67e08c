"""Finds near-duplicates in Parquet files and writes two files: the rows that stay, and the result for each row.

It reads the texts twice, each time by batch: once to compare them, once to copy the rows that stay.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.dedup.storage import PARQUET, first_line, make_folder, open_uri, placed
from divray.dedup.tables import DedupSettings, Verdicts, check_schema, judge
from divray.errors import InputError

KEPT, CLUSTERS = "kept.parquet", "clusters.parquet"
BATCH_ROWS = 1 << 16

_PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def command(arguments: Namespace) -> None:
    """``divray dedup SOURCE --out OUT``."""
    kind, _, size = arguments.shingles.partition(":")
    if kind not in ("word", "char") or not size.isdecimal() or len(size) > 9:
        raise InputError("command line", "--shingles", f"{arguments.shingles!r} is not word:N or char:N", "Give e.g. word:3.")
    same = ("text_column", "id_column", "threshold", "rule", "method")
    options = {name: getattr(arguments, name) for name in same}
    settings = DedupSettings(kind=kind, size=int(size), **options)
    counts = deduplicate_files(arguments.source, arguments.out, settings, arguments.near_test, arguments.earlier)
    near = f", {counts['leaked']} near test texts" if arguments.near_test else ""
    near += f", {counts['known']} near earlier rows" if arguments.earlier else ""
    print(f"{counts['rows']} rows: {counts['kept']} stay, {counts['clusters']} clusters{near} -> {arguments.out}")


def deduplicate_files(
    source: str,
    out: str,
    settings: DedupSettings | None = None,
    against: str | None = None,
    earlier: str | None = None,
) -> dict[str, int]:
    """Find the near-duplicates among the rows of Parquet files and write those that stay.

    Args:
        source: File, folder or pattern; a path or any URI that ``pyarrow.fs`` opens.
        out: Folder to write to: ``kept.parquet``, the rows that stay with all their columns, in input order, and
            ``clusters.parquet``, the table of :func:`~divray.dedup.tables.near_duplicate_clusters`.  It must
            not lie in an input folder or overwrite an input.
        settings: Columns, and how to compare; by default ``DedupSettings()``.
        against, earlier: Files, folders or patterns with these tables of :func:`~divray.dedup.tables.near_duplicate_clusters`.

    Returns:
        Counts: ``rows``, ``kept``, ``clusters`` of two rows or more, ``leaked``, ``known``.

    Raises:
        InputError: see :class:`ParquetSource` and :func:`~divray.dedup.tables.judge`, or ``out`` can't be written to; no file is
            written then.
    """
    settings = settings or DedupSettings()
    given = {"the input": source, "the test set of --near-test": against, "the rows of --earlier": earlier}
    inputs = {said: ParquetSource.open(name) for said, name in given.items() if name is not None}
    _check_apart(out, inputs)
    files, tests, known = (inputs.get(said) for said in given)
    assert files is not None
    for one in inputs.values():
        check_schema(one.schema, replace(settings, id_column=None) if one is tests else settings, one.name)
    wanted = [settings.text_column, *([settings.id_column] if settings.id_column else [])]
    fs, folder = open_uri(out)
    make_folder(fs, folder)
    with (
        placed(fs, posixpath.join(folder, KEPT)) as kept,  # moved last: a killed call leaves an older file in place
        placed(fs, posixpath.join(folder, CLUSTERS)) as clusters,
    ):
        against_rows = None if tests is None else tests.batches(wanted[:1])
        earlier_rows = None if known is None else known.batches(wanted)
        verdicts = judge(files.batches(wanted), settings, against_rows, earlier_rows, files.name)
        _write(fs, clusters, verdicts.schema(), verdicts.batches())
        _write(fs, kept, files.schema, _staying(files, verdicts))
    return verdicts.counts()


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One or more Parquet files of one schema, in the order of their names.

    Attributes:
        name: As the user gave it.
        fs, paths: File system and paths of the files.
        schema: Schema of all files; the columns from ``key=value`` folders (Hive) come last.
        named: For each file, the column values from its ``key=value`` folders.
        folder: Path of the folder, if ``name`` is one; ``None`` for a file or a pattern.
    """

    name: str
    fs: pafs.FileSystem
    paths: list[str]
    schema: pa.Schema
    named: list[dict[str, Any]]
    folder: str | None = None

    @classmethod
    def open(cls, name: str) -> ParquetSource:
        """A file, a folder (with all its files of :data:`~divray.dedup.storage.PARQUET`), or a pattern with ``*`` or ``?`` in
        the last parts.

        A name that exists is not a pattern, and ``[`` has no special meaning.  Files and folders whose
        names begin with ``.`` or ``_`` are left out, as Spark does.  ``key=value`` folders below ``name`` give columns as
        ``pyarrow.dataset`` reads them, except columns that the files have themselves.

        Raises:
            InputError: nothing is there, a file is no Parquet file, two have different columns, or the folders' values can't be read.
        """
        fs, path = open_uri(name)
        base, paths = _matching(fs, path, name)
        schema = None
        for one in paths:
            with _opened(fs, one) as file:
                if schema is not None and not file.schema_arrow.equals(schema):
                    raise InputError(one, "", f"its columns differ from those of {paths[0]}", "Give files of one schema.")
                schema = file.schema_arrow if schema is None else schema
        assert schema is not None
        if twice := [column for column in schema.names if schema.names.count(column) > 1]:
            raise InputError(name, twice[0], "two columns of this name", "Rename one.")
        try:
            options = pads.FileSystemFactoryOptions(base, pads.HivePartitioning.discover())
            keys = pads.FileSystemDatasetFactory(fs, paths, pads.ParquetFileFormat(), options).inspect(fragments=0)
            hive = pads.partitioning(pa.schema([key for key in keys if key.name and key.name not in schema.names]), flavor="hive")
            named = [pads.get_partition_keys(hive.parse(one.removeprefix(base))) for one in paths]
        except pa.ArrowInvalid as error:
            problem = f"its key=value folders give no columns ({first_line(error)})"
            raise InputError(name, "", problem, "Rename these folders.") from None
        for key in hive.schema:
            schema = schema.append(key)
        return cls(name, fs, paths, schema, named, path if base == path else None)

    def batches(self, columns: list[str] | None = None) -> pa.RecordBatchReader:
        """All rows, at most :data:`BATCH_ROWS` at a time.

        This does not scan with ``pyarrow.dataset``, which decodes a whole row group; that may be the whole file.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for path, named in zip(self.paths, self.named, strict=True):
            with _opened(self.fs, path) as file:
                inside = [name for name in schema.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=inside, use_threads=False):
                    for field in schema:
                        if field.name not in inside:
                            values = pa.repeat(pa.scalar(named.get(field.name), field.type), len(batch))
                            batch = batch.append_column(field, values)
                    yield batch.select(schema.names)


def _matching(fs: pafs.FileSystem, path: str, name: str) -> tuple[str, list[str]]:
    """Return the folder that was searched (for a single file: its folder), and the files found."""
    kind, base = fs.get_file_info(path).type, path
    if kind == pafs.FileType.File:
        return posixpath.dirname(path), [path]
    while kind == pafs.FileType.NotFound and any(mark in base for mark in "*?"):
        base = posixpath.dirname(base)
    mend = "Give a Parquet file, a folder of them or a pattern."
    if kind == pafs.FileType.NotFound and base == path:
        raise InputError(name, "", "no such file or folder", mend)
    try:
        found = fs.get_file_info(pafs.FileSelector(base, recursive=True))
    except OSError as error:
        raise InputError(name, "", f"not readable ({first_line(error)})", mend) from None
    files = [one.path for one in found if one.type == pafs.FileType.File]
    shown = [one for one in files if not any(part.startswith((".", "_")) for part in one.removeprefix(base).split("/"))]
    # As in a shell, `*` and `?` match no slash, and `**` matches any folders.  A folder that matches gives all its Parquet files.
    marks = re.escape(path.removeprefix(base))
    marks = marks.replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    endings = "|".join(end[1:] for end in PARQUET)
    fits = re.compile(rf"{re.escape(base)}{marks}(/.*\.(?i:{endings}))?", re.DOTALL)
    paths = sorted(one for one in shown if fits.fullmatch(one))
    if not paths:
        raise InputError(name, "", "no Parquet file there", mend)
    return base, paths


@contextlib.contextmanager
def _opened(fs: pafs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Raises InputError where the file can't be read, at its start or later."""
    try:
        with pq.ParquetFile(fs.open_input_file(path)) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(path, "", f"not readable as Parquet ({first_line(error)})", "Give a Parquet file.") from None


def _check_apart(out: str, inputs: dict[str, ParquetSource]) -> None:
    """Raise InputError if the output folder lies in an input folder, would overwrite an input, or holds files of an input pattern."""
    fs, path = open_uri(out)
    folder = _place(fs, path)
    for said, files in inputs.items():
        places = [PurePosixPath(_place(files.fs, one)) for one in files.paths]
        named = files.paths == [open_uri(files.name)[1]]  # a pattern would take the result for input the next time
        if any(str(one.parent) == folder and (not named or one.name in (KEPT, CLUSTERS)) for one in places):
            raise InputError(out, "", f"the output folder holds {said}", "Write to a folder of its own.")
        within = None if files.folder is None else _place(files.fs, files.folder)
        if within is not None and PurePosixPath(folder).is_relative_to(within):
            raise InputError(out, "", f"the output folder lies in the folder of {said}", "Write to a folder beside it.")


def _place(fs: pafs.FileSystem, path: str) -> str:
    """The path; a local one without ``..`` and links."""
    return os.path.realpath(path) if isinstance(fs, pafs.LocalFileSystem) else path


def _staying(files: ParquetSource, verdicts: Verdicts) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in files.batches():
        yield _filtered(batch, verdicts.decided.kept[start : start + batch.num_rows])
        start += batch.num_rows


def _filtered(batch: pa.RecordBatch, kept: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """The rows that are kept.  Arrow can't filter view types: view columns are cast to plain types and back.  With nested views,
    runs of kept rows are sliced and concatenated."""
    plain = pa.schema([field.with_type(_PLAIN.get(field.type, field.type)) for field in batch.schema])
    try:
        return batch.cast(plain).filter(pa.array(kept)).cast(batch.schema)
    except pa.ArrowNotImplementedError:
        edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2)
        return pa.concat_batches([batch.slice(0, 0), *(batch.slice(start, end - start) for start, end in edges.tolist())])


def _write(fs: pafs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)
