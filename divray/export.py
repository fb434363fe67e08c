"""The data set in other tools' formats."""

import json
from itertools import pairwise
from typing import Any

import regex

from divray.dedup.storage import open_uri
from divray.errors import InputError
from divray.layout import ACCEPTED, SELECTED
from divray.run_folder import RunFolder, write_bytes

_TOKEN = regex.compile(r"[\p{L}\p{N}_][\w\p{N}\u00ad]*(?:(?:[-'’./:&@‐‑·]|(?<=\d),(?=\d))[\w\p{N}\u00ad]+)*|(?!\s)\X")
"""A word with the signs that join its parts, or any other character with its combining marks."""


def export(run_uri: str, target: str, every: bool = False) -> int:
    """Write the selected samples of a run as one file, or ``every`` accepted one; returns how many.

    ``.jsonl`` keeps the columns of the data set (which is Parquet already); ``.json`` is TACRED's form, with tokens and the entities'
    token positions (inclusive ends).  :class:`InputError`: the run has no data set yet, or the ending is unknown.
    """
    run = RunFolder(run_uri)
    if not run.files(ACCEPTED, ".parquet"):
        raise InputError(run_uri, "dataset", "no data set yet", "Run the `select` stage first.")
    if not target.endswith((".jsonl", ".json")):
        raise InputError("command line", target, "unknown ending", "Use .jsonl or .json.")
    table = run.read_table(ACCEPTED if every else SELECTED)
    if target.endswith(".jsonl"):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()
    else:
        data = json.dumps([tacred_row(row) for row in table.to_pylist()], ensure_ascii=False).encode()
    write_bytes(*open_uri(target), data)
    return int(table.num_rows)


def tacred_row(row: dict[str, Any]) -> dict[str, Any]:
    """A data set row in TACRED's form. A word is one token, but the edge of an entity splits it."""
    edges = {row["head_start"], row["head_end"], row["tail_start"], row["tail_end"]}
    tokens: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(row["text"]):
        cuts = [match.start(), *sorted(edge for edge in edges if match.start() < edge < match.end()), match.end()]
        tokens += pairwise(cuts)
    places: dict[str, Any] = {}
    for name, kind in (("head", "subj"), ("tail", "obj")):
        inside = [n for n, (start, end) in enumerate(tokens) if row[f"{name}_start"] <= start and end <= row[f"{name}_end"]]
        places |= {f"{kind}_start": inside[0], f"{kind}_end": inside[-1], f"{kind}_type": row[f"{name}_type"]}
    words = [row["text"][start:end] for start, end in tokens]
    return {"id": row["sample_id"], "relation": row["relation"], "token": words, **places}
