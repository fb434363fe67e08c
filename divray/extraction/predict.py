"""``divray predict``: a trained model labels new sentences, a batch at a time.

``predict`` checks every row before it loads the model.  It reads and writes JSONL; the objects keep their other fields.
"""

from __future__ import annotations

import importlib
import io
import json
import posixpath
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from divray.datasets.own import Source, example_from_row
from divray.dedup.storage import first_line, make_folder, open_uri, placed
from divray.errors import InputError
from divray.models import check_model, read_object, small_files
from divray.relations import Example
from divray.run_folder import RunFolder
from divray.scan import Row
from divray.textfiles import json_lines

if TYPE_CHECKING:
    from divray.extraction.model import RelationExtractor

BATCH = 1024
GIVEN = {"relation": "given_relation", "probability": "given_probability"}
"""Field that the result adds -> new name of a source field with this name."""


def command(arguments: Namespace) -> None:
    """``divray predict RUN SOURCE TARGET``; RUN may also be a model folder."""
    run = RunFolder(arguments.run)
    model = run.full_uri("model") if run.exists("model/config.json") else arguments.run
    if model == arguments.run and not run.exists("config.json"):
        mend = "Give a run folder whose `train` stage is done, or a model folder."
        raise InputError(arguments.run, "model", "no trained model here", mend)
    rows = predict(model, arguments.source, arguments.target, threshold=arguments.threshold)
    print(f"{rows} sentences -> {arguments.target}")


def predict(model: str, source: str, target: str, threshold: float = 0.0) -> int:
    """Write each row of ``source`` with its ``relation`` and ``probability`` to ``target``.

    A row has ``text`` with the head in ``[ ]`` and the tail in ``{ }``; or plain ``text`` with spans in any form of
    :mod:`divray.datasets.own`.  ``predict`` renames a source field ``relation`` or ``probability`` (:data:`GIVEN`).  If the
    probability is below ``threshold``, ``relation`` is null.

    ``model`` is the folder or URI of a model that the ``train`` stage saved; ``source`` and ``target`` are paths or URIs of JSONL files.
    Returns the number of rows.  If the model is not divray's or a row is wrong, raises :class:`InputError` and writes nothing.
    """
    if not 0 <= threshold <= 1:
        raise InputError("command line", "--threshold", f"{threshold:g} is no probability", "Give a number from 0 to 1.")
    check_model(model, "model", "")
    kind = read_object(Path(small_files(model, "") or model, "config.json")).get("model_type")
    if kind != "divray-relation-extractor":
        other = f"a {kind} model" if kind else "no model_type"
        raise InputError(model, "config.json", f"{other}, not a relation extractor", "Give the `model` folder of a run.")
    for path in (source, target):
        if not path.endswith(".jsonl"):
            fix = "Give .jsonl files; `datasets.Dataset.from_parquet(FILE).to_json(JSONL)` makes one of Parquet."
            raise InputError(path, "", "no .jsonl file", fix)
    for _ in _read(source):  # checks every row before the model is loaded
        pass

    done = 0
    filesystem, path = open_uri(target)
    make_folder(filesystem, posixpath.dirname(path))
    with placed(filesystem, path) as beside, filesystem.open_output_stream(beside) as stream:
        extractor: RelationExtractor = importlib.import_module("divray.extraction.model").RelationExtractor.load(model)  # imports torch
        for rows, examples in _read(source):
            found = extractor.predict(examples)
            for row, name, sure in zip(rows, found.labels, found.probabilities.max(axis=1).tolist(), strict=True):
                given = {GIVEN.get(field, field): value for field, value in row.items()}
                answered = {**given, "relation": name if sure >= threshold else None, "probability": sure}
                stream.write(json.dumps(answered, ensure_ascii=False).encode() + b"\n")
            done += len(rows)
    return done


def _read(source: str) -> Iterator[tuple[list[Row], list[Example]]]:
    """Batches of rows and their examples, all checked."""
    origin, names = Source(Path(source), name=source), set[str]()
    filesystem, path = open_uri(source)
    try:
        with io.BufferedReader(filesystem.open_input_stream(path)) as lines:
            numbered = json_lines(lines, source)
            while batch := list(islice(numbered, BATCH)):
                rows = [row for _, row in batch]
                examples = [_example(origin, f"line {number}", row) for number, row in batch]
                names.update(*rows)
                for name, given in GIVEN.items():
                    if {name, given} <= names:
                        problem = f"stands there beside {name}, which divray renames to {given}"
                        raise InputError(source, given, problem, f"Rename or drop {given}.")
                yield rows, examples
    except OSError as error:
        raise InputError(source, "", f"not readable ({first_line(error)})", "Give a JSONL file that can be read.") from None
    if not names:
        raise InputError(source, "", "no rows", "Give at least one sentence.")


def _example(source: Source, place: str, row: Row) -> Example:
    if example := next(example_from_row(source, place, row), None):
        return example
    problem = ", ".join(source.left_out).replace("_", " ")
    raise source.error(f"{place}, head, tail", problem, "Correct the spans, or mark head and tail in `text` as [head] and {tail}.")
