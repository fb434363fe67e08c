"""The two files of a result: neither lies under its final name before both are complete."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.diversity.sources import ParquetSource
from divray.diversity.verdicts import Verdicts
from divray.errors import InputError
from divray.runs import beside, open_uri, placed, target_of

KEPT, CLUSTERS = "kept.parquet", "clusters.parquet"

_PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


@contextlib.contextmanager
def output_folder(out: str) -> Iterator[tuple[pafs.FileSystem, str]]:
    """The folder to write to, made and tried before any work, without what a killed call left half-written there.

    It is gone again where the work fails and nothing lies in it.

    Raises:
        InputError: it can't be written to.
    """
    fs, folder = open_uri(out.rstrip("/"))
    try:
        is_new = fs.get_file_info(folder).type == pafs.FileType.NotFound
        fs.create_dir(folder, recursive=True)
        for info in fs.get_file_info(pafs.FileSelector(folder)):
            if target_of(info.base_name) in (KEPT, CLUSTERS):
                fs.delete_file(info.path)
            if info.base_name in (KEPT, CLUSTERS) and info.type == pafs.FileType.Directory:
                raise IsADirectoryError(f"{info.base_name} is a folder there")
        tried = beside(posixpath.join(folder, KEPT))
        fs.open_output_stream(tried).close()
        fs.delete_file(tried)
    except OSError as error:
        problem = f"not a folder that can be written to ({str(error).splitlines()[0][:120]})"
        raise InputError(out, "", problem, "Give another folder.") from None
    try:
        yield fs, folder
    except BaseException:
        if is_new and not fs.get_file_info(pafs.FileSelector(folder)):
            fs.delete_dir(folder)
        raise


def check_copied(files: ParquetSource) -> None:
    """Can rows of these columns be copied?

    Raises:
        InputError: Arrow can't filter one of them.
    """
    for field in _plain(files.schema):
        try:
            pa.array([], field.type).filter(pa.array([], pa.bool_()))
        except pa.ArrowNotImplementedError:
            problem = f"a column of {field.type}, whose rows can't be copied one by one"
            raise InputError(files.name, field.name, problem, "Convert it, or leave it out.") from None


def write(files: ParquetSource, verdicts: Verdicts, fs: pafs.FileSystem, folder: str) -> None:
    """Write both files beside their places, then move them there."""
    # The last to be entered is moved first: whenever this is killed, a kept.parquet lies there if one lay there before.
    with placed(fs, posixpath.join(folder, KEPT)) as kept, placed(fs, posixpath.join(folder, CLUSTERS)) as clusters:
        _write(fs, clusters, verdicts.schema(), verdicts.batches())
        _write(fs, kept, files.schema, _staying(files, verdicts.mask()))


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with kinds that Arrow can filter in place of views."""
    return pa.schema([field.with_type(_PLAIN.get(field.type, field.type)) for field in schema])


def _staying(files: ParquetSource, mask: np.ndarray) -> Iterator[pa.RecordBatch]:
    start, plain = 0, _plain(files.schema)
    for batch in files.batches():
        part = mask[start : start + batch.num_rows]
        start += batch.num_rows
        yield _as(_as(batch, plain).filter(pa.array(part)), files.schema)


def _as(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [one if one.type == field.type else one.cast(field.type) for one, field in zip(batch, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _write(fs: pafs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """A file of no rows has the schema, too."""
    with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)
