"""Near-duplicates in Parquet files: what stays, and what became of each row, as two files.

The texts are read twice, each time by batch: once to be compared, once to copy the rows that stay.
Nothing lies under a final name before both files are complete.
"""

from __future__ import annotations

import fnmatch
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.diversity.columns import DedupSettings, check_schema
from divray.diversity.tables import judge
from divray.diversity.verdicts import Verdicts
from divray.errors import InputError
from divray.runs import open_uri

KEPT, CLUSTERS = "kept.parquet", "clusters.parquet"
BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One or more Parquet files of one schema, in the order of their names.

    Attributes:
        name: As the user gave it.
        fs, paths: Where they lie.
        schema: Of all of them.
        rows: int, how many they hold together.
    """

    name: str
    fs: pafs.FileSystem
    paths: list[str]
    schema: pa.Schema
    rows: int

    @classmethod
    def open(cls, name: str) -> ParquetSource:
        """A file, a folder (with all the ``.parquet`` files in it), or a pattern with ``*`` or ``?`` in the last parts.

        Raises:
            InputError: nothing is there, a file is no Parquet file, or two have different columns.
        """
        fs, path = open_uri(name)
        paths = _matching(fs, path, name)
        schema, rows = None, 0
        for one in paths:
            with _opened(fs, one) as file:
                rows += file.metadata.num_rows
                if schema is not None and not file.schema_arrow.equals(schema):
                    raise InputError(one, "", f"its columns differ from those of {paths[0]}", "Give files of one schema.")
                schema = file.schema_arrow if schema is None else schema
        return cls(name, fs, paths, schema, rows)

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


def deduplicate_files(
    source: str,
    out: str,
    settings: DedupSettings | None = None,
    against: str | None = None,
    earlier: str | None = None,
    on_ray: bool = False,
) -> dict[str, int]:
    """Find the near-duplicates among the rows of Parquet files and write those that stay.

    Args:
        source: File, folder or pattern; a path or any URI that ``pyarrow.fs`` opens.
        out: Folder to write to: ``kept.parquet``, the rows that stay with all their columns, in input order, and
            ``clusters.parquet``, the table of :func:`~divray.diversity.tables.near_duplicate_clusters`.
        settings: How.
        against: File, folder or pattern of a test set with the same text column: rows near one of its texts are dropped.
        earlier: File, folder or pattern of rows that earlier calls kept, with the same columns: rows near one of them are
            dropped, and they are not compared with each other again.
        on_ray: As tasks of the Ray cluster that this process is connected to (:mod:`divray.diversity.distributed`).

    Returns:
        Counts: ``rows``, ``kept``, ``clusters`` of two rows or more, ``leaked``, ``known``.

    Raises:
        InputError: see :class:`ParquetSource` and :func:`~divray.diversity.tables.judge`; nothing is written then.
    """
    settings = settings or DedupSettings()
    files = ParquetSource.open(source)
    tests, known = (None if name is None else ParquetSource.open(name) for name in (against, earlier))
    fs, folder = open_uri(out.rstrip("/"))
    if any(posixpath.dirname(path) == folder for path in files.paths):
        raise InputError(out, "", "the output folder holds the input", "Write to a folder of its own.")
    wanted = [settings.text_column, *([settings.id_column] if settings.id_column else [])]
    check_schema(files.schema, settings, source)
    if tests is not None:
        check_schema(tests.schema, settings, str(against), with_ids=False)
    if known is not None:
        check_schema(known.schema, settings, str(earlier))
    if on_ray:
        from divray.diversity.distributed import judge_on_ray, work_name
        from divray.runs import RunFolder

        work = RunFolder(out).inner(work_name(files, settings, tests, known))
        verdicts = judge_on_ray(files, settings, tests, known, work)
        write(files, verdicts, fs, folder)
        work.delete("")
        return verdicts.counts()
    compared = None if tests is None else tests.batches([settings.text_column])
    before = None if known is None else known.batches(wanted)
    verdicts = judge(files.batches(wanted), settings, compared, before, rows=files.rows, where=source)
    write(files, verdicts, fs, folder)
    return verdicts.counts()


def write(files: ParquetSource, verdicts: Verdicts, fs: pafs.FileSystem, folder: str) -> None:
    """Write both files beside their places, then move them there."""
    fs.create_dir(folder, recursive=True)
    beside = {name: posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp") for name in (CLUSTERS, KEPT)}
    try:
        _write(fs, beside[CLUSTERS], verdicts.schema(), verdicts.batches())
        _write(fs, beside[KEPT], files.schema, _staying(files, verdicts.mask()))
        for name in beside:  # an older result must not stand beside a newer one
            if fs.get_file_info(posixpath.join(folder, name)).type != pafs.FileType.NotFound:
                fs.delete_file(posixpath.join(folder, name))
        for name, path in beside.items():
            fs.move(path, posixpath.join(folder, name))
    except BaseException:
        for path in beside.values():
            if fs.get_file_info(path).type != pafs.FileType.NotFound:
                fs.delete_file(path)
        raise


def _staying(files: ParquetSource, mask: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in files.batches():
        part = mask[start : start + batch.num_rows]
        start += batch.num_rows
        yield batch.filter(pa.array(part))


def _write(fs: pafs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)


def _matching(fs: pafs.FileSystem, path: str, name: str) -> list[str]:
    pattern = any(mark in path for mark in "*?")
    base = path
    while any(mark in base for mark in "*?"):
        base = posixpath.dirname(base)
    info = fs.get_file_info(base)
    if info.type == pafs.FileType.File:
        return [base]
    if info.type == pafs.FileType.NotFound:
        raise InputError(name, "", "no such file or folder", "Give a Parquet file, a folder of them or a pattern.")
    found = fs.get_file_info(pafs.FileSelector(base, recursive=True))
    paths = sorted(one.path for one in found if one.type == pafs.FileType.File)
    paths = [one for one in paths if (fnmatch.fnmatch(one, path) if pattern else one.endswith(".parquet"))]
    paths = [one for one in paths if not posixpath.basename(one).startswith((".", "_"))]
    if not paths:
        raise InputError(name, "", "no Parquet file there", "Give a Parquet file, a folder of them or a pattern.")
    return paths


def _opened(fs: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(fs.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(path, "", f"not readable as Parquet ({str(error).splitlines()[0][:120]})", "Give a Parquet file.")
