"""``divray predict``: relations of new sentences by a trained model, a batch at a time, JSONL to JSONL.

Every row is checked before the model is loaded.
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

import pyarrow.fs as pafs

from divray.datasets.own import Source, marked, span_of
from divray.dedup.storage import open_uri, placed
from divray.errors import InputError
from divray.models import check_model, facts_of
from divray.relations import Example, span_problem, tightened
from divray.run_folder import RunFolder, make_folder
from divray.scan import Row
from divray.textfiles import json_lines

if TYPE_CHECKING:
    from divray.extraction.model import RelationExtractor

BATCH = 1024

GIVEN = {"relation": "given_relation", "probability": "given_probability"}
"""Columns that the result has of its own -> what those of the source are called in it."""


def command(arguments: Namespace) -> None:
    """``divray predict RUN SOURCE TARGET``; RUN may be a model folder, too."""
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
    :mod:`divray.datasets.own`.  What it has under the names of :data:`GIVEN` gets another name.  Below ``threshold`` the model
    abstains: ``relation`` is null.

    ``model`` is a folder or URI of what the ``train`` stage saved; ``source`` and ``target`` are paths or URIs of two ``.jsonl`` files.
    Returns the number of rows.  :class:`InputError`: the model is none of ours, or a row is wrong; then nothing is written.
    """
    if not 0 <= threshold <= 1:
        raise InputError("command line", "--threshold", f"{threshold:g} is no probability", "Give a number from 0 to 1.")
    check_model(model, "model", "")
    facts = facts_of(model, "", "model")
    if facts and facts.kind != "divray-relation-extractor":
        kind = f"a {facts.kind} model" if facts.kind else "no model_type"
        raise InputError(model, "config.json", f"{kind}, not a relation extractor", "Give the `model` folder of a run.")
    for path in (source, target):
        open_uri(path)
        if not path.endswith(".jsonl"):
            raise InputError(path, "", "no .jsonl", "Give a JSONL file with this ending.")
    for _ in _read(source):  # which checks every row, before the model is loaded
        pass

    done = 0
    filesystem, path = open_uri(target)
    make_folder(filesystem, posixpath.dirname(path))
    with placed(filesystem, path) as beside, filesystem.open_output_stream(beside) as stream:
        extractor: RelationExtractor = importlib.import_module("divray.extraction.model").RelationExtractor.load(model)  # brings torch
        for rows, examples in _read(source):
            found = extractor.predict(examples)
            for row, label, sure in zip(rows, found.labels, found.probabilities.max(axis=1).tolist(), strict=True):
                given = {GIVEN.get(name, name): value for name, value in row.items()}
                answered = {**given, "relation": label if sure >= threshold else None, "probability": sure}
                stream.write(json.dumps(answered, ensure_ascii=False).encode() + b"\n")
            done += len(rows)
    return done


def _read(source: str) -> Iterator[tuple[list[Row], list[Example]]]:
    """Rows of the file and their examples, a batch at a time, all checked."""
    filesystem, path = open_uri(source)
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        raise InputError(source, "", "no such file", "Give the path of the sentences.")
    origin, names, before = Source(Path(source), name=source), set[str](), 0
    with io.BufferedReader(filesystem.open_input_stream(path)) as lines:
        numbered = json_lines(lines, source)
        while rows := [row for _, row in islice(numbered, BATCH)]:
            examples = [_example(origin, f"row {number}", row) for number, row in enumerate(rows, before + 1)]
            names.update(*rows)
            for name, given in GIVEN.items():
                if {name, given} <= names:
                    raise InputError(source, given, f"stands there beside {name}, which would take its name", f"Rename or drop {given}.")
            yield rows, examples
            before += len(rows)
    if not before:
        raise InputError(source, "", "no rows", "Give at least one sentence.")


def _example(source: Source, place: str, row: Row) -> Example:
    try:
        json.dumps(row, allow_nan=False)  # Python reads a number that is too large as infinity
    except ValueError:
        raise source.error(place, "JSON has neither NaN nor infinity", "Give null, or a smaller number.") from None
    text = source.string(place, "text", row.get("text"))
    types = [source.string(place, name, row.get(name), required=False) for name in ("head_type", "tail_type")]
    if all(row.get(name) is None for name in ("head", "tail", "head_start", "tail_start")):
        return Example(*marked(source, f"{place}, text", text), "", *types)
    head, tail = (tightened(text, span) or span for span in (span_of(source, place, row, side, text) for side in ("head", "tail")))
    if problem := span_problem(text, head, tail):
        raise source.error(f"{place}, head, tail", problem, "Correct the spans, or mark head and tail in `text` as [head] and {tail}.")
    return Example(text, head, tail, "", *types)
