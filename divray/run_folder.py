"""The run folder: reads and writes its files, tables and records, and knows which stages are finished.

A run folder is any URI that ``pyarrow.fs`` opens (a path, ``s3://``, ``gs://``).  Nothing half-written counts: a single file is
written beside its final name and then moved, and a stage counts only once its record is in ``stages/``.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from divray.dedup.storage import first_line, make_folder, open_uri, placed
from divray.errors import InputError
from divray.layout import anew, writer
from divray.textfiles import decoded, parse_json

if TYPE_CHECKING:
    import pyarrow.compute as pc
    import pyarrow.dataset as pads
    import ray.data

READERS = 16
"""Files that are read in parallel, because an object store answers slowly."""

CHUNK = 64 << 20
"""Bytes that a copy of a file asks for at a time; Arrow's own 1 MiB is a request each."""


def write_bytes(fs: pafs.FileSystem, target: str, data: bytes | pa.Buffer, folder: bool = True) -> None:
    """Write a whole file; it appears under its name only once it is complete.  ``folder``: make its folder first."""
    if folder:
        make_folder(fs, posixpath.dirname(target))
    # An object store's put is atomic by itself.
    at = placed(fs, target) if isinstance(fs, pafs.LocalFileSystem) else contextlib.nullcontext(target)
    with at as path, fs.open_output_stream(path) as stream:
        stream.write(data)


class RunFolder:
    """One run's files, by names relative to its root.

    Args:
        uri: Root of the run; created on the first write.
    """

    def __init__(self, uri: str) -> None:
        self.fs, root = open_uri(uri)
        self.root = root.rstrip("/") or "/"
        if self.local:
            try:
                if self.fs.get_file_info(self.root).type not in (pafs.FileType.NotFound, pafs.FileType.Directory):
                    raise InputError(uri, "", "a file lies there", "Give a folder.")
            except OSError as error:
                raise InputError(uri, "", first_line(error), "Give another folder.") from None
        # Absolute, since a worker may have another current folder.
        self.uri = self.root if self.local else uri.rstrip("/")

    @property
    def local(self) -> bool:
        """Whether the run lies on a disk.  There alone a file needs a folder; an object store would be asked for each of its parents."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Path of ``name`` inside ``self.fs``."""
        return posixpath.join(self.root, name) if name else self.root

    def full_uri(self, name: str) -> str:
        """URI of ``name`` that another process can open with :func:`open_uri`."""
        if self.local:
            return self.path(name)
        base, question, query = self.uri.partition("?")
        return f"{base}/{quote(name)}{question}{query}"

    def exists(self, name: str) -> bool:
        return bool(self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def files(self, name: str, suffix: str = "") -> list[str]:
        """Names of the files under ``name``, sorted, relative to the root."""
        selector = pafs.FileSelector(self.path(name), recursive=True, allow_not_found=True)
        root = self.root.rstrip("/") + "/"
        found = [i.path for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File]
        return sorted(p.removeprefix(root) for p in found if p.endswith(suffix))

    def table_files(self, name: str) -> list[str]:
        """Paths inside ``self.fs`` of the Parquet files of a table."""
        return [self.path(file) for file in self.files(name, ".parquet")]

    def each(self, name: str, work: Callable[[str], object], prefix: str = "") -> None:
        """Call ``work`` with the name of each Parquet file of a table, or of those with ``prefix``, several at a time."""
        with ThreadPoolExecutor(READERS) as threads:
            list(threads.map(work, (file for file in self.files(name, ".parquet") if posixpath.basename(file).startswith(prefix))))

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all it holds; no error where there is none."""
        info = self.fs.get_file_info(self.path(name))
        if info.type != pafs.FileType.NotFound:
            (self.fs.delete_file if info.is_file else self.fs.delete_dir)(info.path)

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a whole file; it appears under its name only once it is complete."""
        write_bytes(self.fs, self.path(name), data, folder=self.local)

    def read_bytes(self, name: str) -> bytes:
        try:
            with self.fs.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(self.full_uri(name), "", f"not readable ({first_line(error)})", anew(name)) from None

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def read_text(self, name: str) -> str:
        return decoded(self.read_bytes(name), self.full_uri(name), 1)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        where = self.full_uri(name)
        try:
            value = parse_json(self.read_text(name), where)
            TypeAdapter(writer(name)[1]).validate_python(value, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(where, field, f"not as divray writes it ({first['msg']})", anew(name)) from None
        except InputError as error:
            raise InputError(error.where, error.field, error.problem, anew(name)) from None
        return value

    def write_parquet(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file; it appears under its name only once it is complete."""
        pq.write_table(table, sink := pa.BufferOutputStream())
        self.write_bytes(name, sink.getvalue())

    def write_table(self, name: str, table: pa.Table, rows_per_file: int | None = None) -> None:
        """Write a table that fits in memory as the Parquet files of folder ``name``, replacing them."""
        self.delete(name)
        step = rows_per_file or max(table.num_rows, 1)
        for part, start in enumerate(range(0, max(table.num_rows, 1), step)):
            self.write_parquet(f"{name}/part-{part:05d}.parquet", table.slice(start, step))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a table that fits in memory, from all its files, in the order of the files' names."""
        with self._reading(name, self.table_files(name), columns) as dataset:
            table = dataset.to_table(columns=columns, fragment_readahead=READERS)
            table.validate(full=True)
            return table

    def scan(
        self, tables: str | Iterable[str], columns: Sequence[str] | Mapping[str, pc.Expression], where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Record batches of one table, or of several with one schema, in the order of their files; a missing table has none."""
        wanted = dict(columns) if isinstance(columns, Mapping) else list(columns)
        for name in [tables] if isinstance(tables, str) else tables:
            if paths := self.table_files(name):
                with self._reading(name, paths, () if isinstance(wanted, dict) else wanted) as dataset:
                    for batch in dataset.to_batches(columns=wanted, filter=where, batch_size=32_768, fragment_readahead=READERS):
                        if batch.num_rows:
                            batch.validate(full=True)
                            yield batch

    @contextlib.contextmanager
    def _reading(self, name: str, paths: list[str], columns: Iterable[str] | None) -> Iterator[pads.Dataset]:
        """The files of a table, as a dataset.  Raises :class:`InputError` where one is damaged, or differs from what the stage writes.

        Rows are to be validated in the block, since Arrow by itself reads text that is not UTF-8 and lists that run past their values.
        ``columns`` are those that must be there; ``None``: all of the table's schema.
        """
        import pyarrow.dataset as pads  # slow: it imports pandas, where that is installed

        where, wanted = self.full_uri(name), writer(name)[1]
        if not paths:
            raise InputError(where, "", "no such table", anew(name))
        schema = wanted if isinstance(wanted, pa.Schema) else pa.schema([])
        try:
            dataset = pads.dataset(paths, format="parquet", filesystem=self.fs)
            for column in schema.names if columns is None else columns:
                if column not in dataset.schema.names:
                    raise InputError(where, column, "no such column", anew(name))
            for field in dataset.schema:
                if field.name in schema.names and field.type != (kind := schema.field(field.name).type):
                    raise InputError(where, field.name, f"{field.type}, not {kind} as divray writes it", anew(name))
            yield dataset
        except (pa.ArrowException, OSError) as error:
            raise InputError(where, "", f"no whole table ({first_line(error)})", anew(name)) from None

    def dataset(self, *names: str, columns: list[str] | None = None, **kwargs: Any) -> ray.data.Dataset:
        """A table, or several of one schema, as a streaming Ray dataset."""
        import ray.data

        # Ray's second generation of readers packs small files into one block, which makes progress coarse,
        # and starts 32 actors for each table.
        ray.data.DataContext.get_current().use_datasource_v2 = False
        paths: list[str] = []
        for name in [own for own in names if self.table_files(own)] or names[:1]:
            with self._reading(name, self.table_files(name), columns) as dataset:
                paths += dataset.files
        # By default Ray misreads the extension of a path with a question mark, and takes folders like k=16 above the run for columns.
        options = {"file_extensions": None, "partitioning": None, **kwargs}
        return ray.data.read_parquet(paths, filesystem=self.fs, columns=columns, **options)

    def write_dataset(self, name: str, dataset: ray.data.Dataset, **kwargs: Any) -> None:
        """Compute a Ray dataset and write it as a table, beside the files that the table has; without rows there is no file."""
        if self.local:
            make_folder(self.fs, self.path(name))
        dataset.write_parquet(self.path(name), filesystem=self.fs, try_create_dir=False, **kwargs)

    def upload(self, local: str | Path, name: str) -> None:
        """Copy a local folder to ``name``, replacing what is there."""
        self.delete(name)
        make_folder(self.fs, self.path(name))
        pafs.copy_files(str(local), self.path(name), pafs.LocalFileSystem(), self.fs, chunk_size=CHUNK)

    def record(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage, or ``None`` if it has not finished."""
        name = f"stages/{stage}.json"
        return self.read_json(name) if self.exists(name) else None

    def forget(self, stage: str) -> None:
        """Delete the record of a stage whose files are about to change."""
        self.delete(f"stages/{stage}.json")

    def finish(self, stage: str, seconds: float, counts: Mapping[str, Any]) -> None:
        """Write the record that a stage is finished; all its files count from now on."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.write_json(f"stages/{stage}.json", {"stage": stage, "finished_at": at, "seconds": round(seconds, 3), "counts": dict(counts)})
