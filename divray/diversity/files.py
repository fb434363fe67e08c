"""Near-duplicates in Parquet files: what stays, and what became of each row, as two files.

The texts are read twice, each time by batch: once to be compared, once to copy the rows that stay.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from divray.diversity.columns import DedupSettings, check_schema
from divray.diversity.index import TextIndex
from divray.diversity.outputs import CLUSTERS, KEPT, check_copied, output_folder, write
from divray.diversity.sources import ParquetSource, judge_files
from divray.errors import InputError
from divray.runs import RunFolder, open_uri


def deduplicate_files(
    source: str,
    out: str,
    settings: DedupSettings | None = None,
    against: str | None = None,
    earlier: str | None = None,
    index: str | None = None,
    on_ray: bool = False,
) -> dict[str, int]:
    """Find the near-duplicates among the rows of Parquet files and write those that stay.

    Args:
        source: File, folder or pattern; a path or any URI that ``pyarrow.fs`` opens.
        out: Folder to write to: ``kept.parquet``, the rows that stay with all their columns, in input order, and
            ``clusters.parquet``, the table of :func:`~divray.diversity.tables.near_duplicate_clusters`.  It may lie in
            no input folder and write over no input.
        settings: How.
        against: File, folder or pattern of a test set with the same text column: rows near one of its texts are dropped.
        earlier: File, folder or pattern of rows that earlier calls kept, with the same columns: rows near one of them are
            dropped, and they are not compared with each other again.
        index: Folder of a :class:`~divray.diversity.index.TextIndex`, made if need be: rows near one in it are dropped, and those
            that stay are added once the result is written.  A call made again with the same rows gives the same result.
        on_ray: As tasks of the Ray cluster that this process is connected to (:mod:`divray.diversity.distributed`).

    Returns:
        Counts: ``rows``, ``kept``, ``clusters`` of two rows or more, ``leaked``, ``known``.

    Raises:
        InputError: see :class:`~divray.diversity.sources.ParquetSource`, :func:`~divray.diversity.tables.judge`,
            :class:`~divray.diversity.index.TextIndex` and :func:`~divray.diversity.outputs.output_folder`; nothing is written then.
    """
    settings = settings or DedupSettings()
    if on_ray and index is not None:
        raise InputError("dedup", "index", "an index is used in one process only", "Leave --ray out, or name kept rows with --earlier.")
    files = ParquetSource.open(source)
    tests, known = (None if name is None else ParquetSource.open(name) for name in (against, earlier))
    _check_apart(out, {"the input": files, "the test set of --near-test": tests, "the rows of --earlier": known})
    check_schema(files.schema, settings, source)
    check_copied(files)
    if tests is not None:
        check_schema(tests.schema, settings, str(against), with_ids=False)
    if known is not None:
        check_schema(known.schema, settings, str(earlier))
    with output_folder(out) as (fs, folder), contextlib.nullcontext() if index is None else output_folder(index):
        if not on_ray:
            indexed = None if index is None else TextIndex(index, settings)
            verdicts = judge_files(files, settings, tests, known, indexed)
            write(files, verdicts, fs, folder)
            if indexed is not None:
                indexed.commit()
            return verdicts.counts()
        from divray.diversity.distributed import judge_on_ray, work_name

        work = RunFolder(out).inner(work_name(files, settings, tests, known))
        verdicts = judge_on_ray(files, settings, tests, known, work)
        write(files, verdicts, fs, folder)
        work.delete("")
        return verdicts.counts()


def _check_apart(out: str, inputs: dict[str, ParquetSource | None]) -> None:
    """Raises InputError where a file that is read lies in the output folder, or that in a folder that is read."""
    fs, path = open_uri(out.rstrip("/"))
    folder = _place(fs, path)
    for said, files in inputs.items():
        if files is None:
            continue
        places = [PurePosixPath(_place(files.fs, one)) for one in files.paths]
        named = files.paths == [open_uri(files.name)[1]]  # a pattern would take the result for input the next time
        if any(str(one.parent) == folder and (not named or one.name in (KEPT, CLUSTERS)) for one in places):
            raise InputError(out, "", f"the output folder holds {said}", "Write to a folder of its own.")
        within = None if files.folder is None else _place(files.fs, files.folder)
        if within is not None and PurePosixPath(folder).is_relative_to(within):
            raise InputError(out, "", f"the output folder lies in the folder of {said}", "Write to a folder beside it.")


def _place(fs: pafs.FileSystem, path: str) -> str:
    """The path without ``..`` and links, where it is one of this machine."""
    return str(Path(path).resolve()) if isinstance(fs, pafs.LocalFileSystem) else path
