"""Finds near-duplicates in Parquet files and writes two files: the rows that stay, and the result for each row.

It reads the texts twice, each time by batch: once to compare them, once to copy the rows that stay.
"""

import contextlib
import os
import posixpath
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.dedup.storage import PARQUET, first_line, make_folder, open_uri, placed
from divray.dedup.tables import DedupSettings, Verdicts, check_schema, judge
from divray.errors import InputError

BATCH_ROWS = 1 << 16


def command(arguments: Namespace) -> None:
    """``divray dedup SOURCE --out OUT``."""
    kind, _, size = arguments.shingles.partition(":")
    options = {name: getattr(arguments, name) for name in ("text_column", "id_column", "threshold", "rule", "method")}
    settings = DedupSettings(kind=kind, size=int(size) if size.isdecimal() and len(size) < 10 else 0, **options)
    counts = deduplicate_files(arguments.source, arguments.out, settings, arguments.against)
    near = f", {counts['near_reference']} near texts of {arguments.against}" if arguments.against else ""
    print(f"{counts['rows']} rows: {counts['kept']} stay, {counts['clusters']} clusters{near} -> {arguments.out}")


def deduplicate_files(source: str, out: str, settings: DedupSettings | None = None, against: str | None = None) -> dict[str, int]:
    """Find the near-duplicates among the rows of Parquet files and write those that stay.

    Args:
        source: File, folder or pattern; a path or any URI that ``pyarrow.fs`` opens.
        out: Folder to write to: ``kept.parquet``, the rows that stay with all their columns, in input order, and
            ``clusters.parquet``, the table of :func:`~divray.dedup.tables.near_duplicate_clusters`.  Neither may be a file
            that is read.
        settings: Columns, and how to compare; by default ``DedupSettings()``.
        against: File, folder or pattern with the reference of :func:`~divray.dedup.tables.near_duplicate_clusters`.

    Returns:
        Counts: ``rows``, ``kept``, ``clusters`` of two rows or more, ``near_reference``.

    Raises:
        InputError: As for :class:`ParquetSource` and :func:`~divray.dedup.tables.judge`, or ``out`` can't be written to.  The call
            then writes neither file.
    """
    settings = settings or DedupSettings()
    files, reference = ParquetSource.open(source), None if against is None else ParquetSource.open(against)
    check_schema(files.schema, settings, files.name)
    if reference is not None:
        check_schema(reference.schema, replace(settings, id_column=None), reference.name)
    fs, folder = open_uri(out)
    written = [posixpath.join(folder, name) for name in ("kept.parquet", "clusters.parquet")]
    places = {_place(fs, path) for path in written}
    for one in (files, reference):
        if one is not None and (any(map(one.fits.fullmatch, places)) or places & {_place(one.fs, path) for path in one.parts}):
            raise InputError(out, "", f"{one.name} takes in what is written there", "Write to a folder of its own.")
    make_folder(fs, folder)
    # The rows that stay are moved last: a killed call leaves an older file of them in place.
    with placed(fs, written[0]) as kept, placed(fs, written[1]) as clusters:
        wanted = [settings.text_column, *([settings.id_column] if settings.id_column else [])]
        verdicts = judge(files.batches(wanted), settings, reference and reference.batches(wanted[:1]), files.name)
        _write(fs, clusters, verdicts.schema(), verdicts.batches())
        _write(fs, kept, files.schema, _staying(files, verdicts))
    return verdicts.counts()


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One or more Parquet files of one schema.

    Attributes:
        name: As the user gave it.
        schema: Schema of all files; the columns from ``key=value`` folders (Hive) come last.
        parts: Path of each file, in order -> column values from its ``key=value`` folders.
        fits: Pattern of the places (:func:`_place`) where a file is one of them.
    """

    name: str
    fs: pafs.FileSystem
    schema: pa.Schema
    parts: dict[str, dict[str, Any]]
    fits: re.Pattern[str]

    @classmethod
    def open(cls, name: str) -> Self:
        """A file, a folder (with all its files of :data:`~divray.dedup.storage.PARQUET`), or a pattern of such files with
        ``*`` or ``?`` in the last parts.

        A name that exists is not a pattern, and ``[`` has no special meaning.  Files and folders whose
        names begin with ``.`` or ``_`` are left out, as Spark does.  ``key=value`` folders below ``name`` give columns as
        ``pyarrow.dataset`` reads them.

        Raises:
            InputError: nothing is there, a file is no Parquet file, two have different columns, or the folders give no columns.
        """
        fs, path = open_uri(name)
        base, paths, fits = _matching(fs, path, name)
        with _readable(paths[0]):
            pq.read_schema(fs.open_input_file(paths[0]))
        with _readable(name):
            dataset = pads.dataset(paths, format="parquet", filesystem=fs, partitioning="hive", partition_base_dir=base)
        fragments = list(dataset.get_fragments())
        for one in fragments:
            with _readable(one.path):
                alike = one.physical_schema.equals(fragments[0].physical_schema)
            if not alike:
                raise InputError(one.path, "", f"its columns differ from those of {paths[0]}", "Give files of one schema.")
        parts = {one.path: pads.get_partition_keys(one.partition_expression) for one in fragments}
        return cls(name, fs, dataset.schema, parts, fits)

    def batches(self, columns: list[str] | None = None) -> pa.RecordBatchReader:
        """All rows, at most :data:`BATCH_ROWS` at a time.

        This does not scan with ``pyarrow.dataset``, which decodes a whole row group; that may be the whole file.
        """
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for path, named in self.parts.items():
            with _readable(path), pq.ParquetFile(self.fs.open_input_file(path)) as file:
                inside = [name for name in schema.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=inside, use_threads=False):
                    for field in schema:
                        if field.name not in inside:
                            values = pa.repeat(pa.scalar(named.get(field.name), field.type), len(batch))
                            batch = batch.append_column(field, values)
                    yield batch.select(schema.names)


def _matching(fs: pafs.FileSystem, path: str, name: str) -> tuple[str, list[str], re.Pattern[str]]:
    """Return the folder that was searched (for a single file: its folder), the files found, and the pattern of their places."""
    kind, base = fs.get_file_info(path).type, path
    if kind == pafs.FileType.File:
        return posixpath.dirname(path), [path], re.compile(re.escape(_place(fs, path)))
    while kind == pafs.FileType.NotFound and any(mark in base for mark in "*?"):
        base = posixpath.dirname(base)
    if kind == pafs.FileType.NotFound and base == path:
        raise InputError(name, "", "no such file or folder", "Give a Parquet file, a folder of them or a pattern.")
    with _readable(name):
        found = fs.get_file_info(pafs.FileSelector(base, recursive=True))
    # As in a shell, `*` and `?` match no slash, and `**` matches any folders.  A folder that matches gives all its files.
    marks = re.escape(path.removeprefix(base)).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*\*", ".*")
    marks = marks.replace(r"\*", "[^/]*").replace(r"\?", "[^/]") + "(/.*)?"
    shown = rf"(?!(.*/)?[._])(?=.*({'|'.join(map(re.escape, PARQUET))})\Z)"
    fits = re.compile(re.escape(place := _place(fs, base)) + f"(?i:{shown})" + marks, re.DOTALL)
    paths = sorted(one.path for one in found if one.is_file and fits.fullmatch(place + one.path.removeprefix(base)))
    if not paths:
        raise InputError(name, "", "no Parquet file there", "Give a Parquet file, a folder of them or a pattern.")
    return base, paths, fits


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise InputError if the block can't read ``name``."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(name, "", f"not readable ({first_line(error)})", "Give whole Parquet files of one schema.") from None


def _place(fs: pafs.FileSystem, path: str) -> str:
    """The path; a local one without ``..`` and links."""
    return os.path.realpath(path) if isinstance(fs, pafs.LocalFileSystem) else path


def _staying(files: ParquetSource, verdicts: Verdicts) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in files.batches():
        kept = verdicts.decided.kept[start : start + batch.num_rows]
        try:
            yield batch.filter(pa.array(kept))
        except pa.ArrowNotImplementedError:  # of views: runs of kept rows are sliced and concatenated
            edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2)
            yield pa.concat_batches([batch.slice(0, 0), *(batch.slice(first, last - first) for first, last in edges.tolist())])
        start += batch.num_rows


def _write(fs: pafs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)
