"""Answers of another tool on the test set, such as GLiNER's, an API's or a rule system's: a row of the comparison.

``divray evaluate RUN --force --predictions FILE`` takes a JSONL file in; the row is called after the file.  Each line has the ``id`` of
a test sentence and its ``relation``, null for none.  Other fields are not looked at, so that what ``divray predict`` writes of the test
file will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from divray.datasets.own import IDS, Source
from divray.datasets.stage import read_relations
from divray.relations import Example
from divray.run_folder import TEST, RunFolder
from divray.textfiles import json_lines, read_bytes

FOLDER = "evaluation/external"


def take_in(run: RunFolder, file: str) -> int:
    """Keep the answers of a file in the run, in place of an earlier file's of this name; returns how many test sentences have none.

    Raises:
        InputError: A line is no JSON object, its id is that of no test sentence or stands there twice, or its relation is no label.
    """
    source = Source(Path(file), {relation.name for relation in read_relations(run)})
    known, found = set(run.read_table(TEST)["example_id"].to_pylist()), {}
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), file):
        place = f"line {number}"
        given = next((row[name] for name in IDS if row.get(name) is not None), None)
        name = source.identity(place, given, "")
        if (full := f"test:{name}") not in known:
            raise source.error(f"{place}, id", f"{given!r} is the id of no test sentence", "Give the ids of the test file.")
        found[full] = None if row.get("relation") is None else source.label(place, row["relation"])
    table = pa.table({"example_id": [*found], "predicted": pa.array(found.values(), pa.string())})
    run.write_table(f"{FOLDER}/{source.path.name}", table)
    return len(known - found.keys())


def answers(run: RunFolder, test: Sequence[Example]) -> Iterator[tuple[str, list[str | None]]]:
    """Name and labels, in order of the test set, of each file that was taken in; ``None`` where it had none."""
    for name in sorted({file.split("/")[2] for file in run.files(FOLDER, ".parquet")}):
        rows = run.read_table(f"{FOLDER}/{name}").to_pylist()
        found = {row["example_id"]: row["predicted"] for row in rows}
        yield name, [found.get(example.example_id) for example in test]
