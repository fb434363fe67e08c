"""The data set as one file."""

from __future__ import annotations

import json

from divray.dedup.storage import open_uri
from divray.errors import InputError
from divray.layout import ACCEPTED, SELECTED
from divray.run_folder import RunFolder, parquet_bytes, write_bytes


def export(run_uri: str, target: str, every: bool = False) -> int:
    """Write the selected samples of a run as one file, or ``every`` accepted one; returns how many.

    :class:`InputError`: the run has no data set yet, or the ending is unknown.
    """
    run = RunFolder(run_uri)
    if not run.files(ACCEPTED, ".parquet"):
        raise InputError(run_uri, "dataset", "no data set yet", "Run the `select` stage first.")
    if not target.endswith((".parquet", ".jsonl")):
        raise InputError("command line", target, "unknown ending", "Use .parquet or .jsonl.")
    table = run.read_table(ACCEPTED if every else SELECTED)
    if target.endswith(".parquet"):
        data = parquet_bytes(table)
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()
    write_bytes(*open_uri(target), data)
    return int(table.num_rows)
