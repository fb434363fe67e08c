"""``divray predict``: relations of new sentences by a trained model, a batch at a time.

``predict`` checks every row before it loads the model.  From Parquet it writes Parquet, and columns that it does not use keep their
types.  From JSONL it writes JSONL, and the objects keep their other fields.
"""

from __future__ import annotations

import importlib
import io
import json
import posixpath
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from divray.datasets.huggingface import plain_rows
from divray.datasets.own import SENTENCE, Source, example_from_row
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
Batch: TypeAlias = pa.RecordBatch | list[Row]
"""Rows of a Parquet file, or of a JSONL file."""

GIVEN = {"relation": "given_relation", "probability": "given_probability"}
"""Columns that the result adds -> the new names of source columns that have the same names."""


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
    :mod:`divray.datasets.own`.  A column ``relation`` or ``probability`` of the source is renamed, see :data:`GIVEN`.  Where the
    probability is below ``threshold``, ``relation`` is null.

    ``model`` is the folder or URI of a model that the ``train`` stage saved.  ``source`` and ``target`` are paths or URIs of two ``.jsonl``
    or two ``.parquet`` files.  Returns the number of rows.  Raises :class:`InputError`, and writes nothing, where the model is not
    divray's or a row is wrong.
    """
    if not 0 <= threshold <= 1:
        raise InputError("command line", "--threshold", f"{threshold:g} is no probability", "Give a number from 0 to 1.")
    check_model(model, "model", "")
    kind = read_object(Path(small_files(model, "") or model, "config.json")).get("model_type")
    if kind != "divray-relation-extractor":
        other = f"a {kind} model" if kind else "no model_type"
        raise InputError(model, "config.json", f"{other}, not a relation extractor", "Give the `model` folder of a run.")
    if {posixpath.splitext(path)[1] for path in (source, target)} not in ({".jsonl"}, {".parquet"}):
        raise InputError(target, "", f"it and {source} are neither both .jsonl nor both .parquet", "Give both files one of these endings.")
    for _ in _read(source):  # checks every row before the model is loaded
        pass

    done = 0
    filesystem, path = open_uri(target)
    make_folder(filesystem, posixpath.dirname(path))
    with placed(filesystem, path) as beside, filesystem.open_output_stream(beside) as stream, ExitStack() as stack:
        extractor: RelationExtractor = importlib.import_module("divray.extraction.model").RelationExtractor.load(model)  # brings torch
        parquet: pq.ParquetWriter | None = None
        for batch, examples in _read(source):
            found = extractor.predict(examples)
            certain = found.probabilities.max(axis=1).tolist()
            labels = [label if sure >= threshold else None for label, sure in zip(found.labels, certain, strict=True)]
            if isinstance(batch, pa.RecordBatch):
                answered = _with_columns(batch, labels, certain)
                parquet = parquet or stack.enter_context(pq.ParquetWriter(stream, answered.schema))
                parquet.write_batch(answered)
            else:
                stream.writelines(_with_fields(batch, labels, certain))
            done += len(examples)
    return done


def _read(source: str) -> Iterator[tuple[Batch, list[Example]]]:
    """Batches of the file and their examples, all checked."""
    origin, names, before = Source(Path(source), name=source), set[str](), 0
    for batch in _batches(source):
        if isinstance(batch, pa.RecordBatch):
            names.update(batch.schema.names)
            rows = plain_rows(batch.select([name for name in SENTENCE if name in names]))
        else:
            names.update(*batch)
            rows = batch
        examples = [_example(origin, f"row {number}", row) for number, row in enumerate(rows, before + 1)]
        for name, given in GIVEN.items():
            if {name, given} <= names:
                raise InputError(source, given, f"stands there beside {name}, which is renamed to {given}", f"Rename or drop {given}.")
        yield batch, examples
        before += len(examples)
    if not before:
        raise InputError(source, "", "no rows", "Give at least one sentence.")


def _batches(source: str) -> Iterator[Batch]:
    filesystem, path = open_uri(source)
    try:
        if source.endswith(".jsonl"):
            with io.BufferedReader(filesystem.open_input_stream(path)) as lines:
                rows = (row for _, row in json_lines(lines, source))
                while batch := list(islice(rows, BATCH)):
                    yield batch
        else:
            with filesystem.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                for part in file.iter_batches(BATCH):
                    part.validate(full=True)
                    yield part.replace_schema_metadata(file.schema_arrow.metadata)
    except (pa.ArrowException, OSError) as error:
        raise InputError(source, "", f"not readable ({first_line(error)})", "Give a whole file of sentences.") from None


def _example(source: Source, place: str, row: Row) -> Example:
    if example := next(example_from_row(source, place, row), None):
        return example
    problem = ", ".join(source.left_out).replace("_", " ")
    raise source.error(f"{place}, head, tail", problem, "Correct the spans, or mark head and tail in `text` as [head] and {tail}.")


def _with_columns(batch: pa.RecordBatch, labels: list[str | None], probabilities: list[float]) -> pa.RecordBatch:
    metadata = {key: value for key, value in (batch.schema.metadata or {}).items() if key != b"pandas"}  # which has the old names
    given = batch.rename_columns([GIVEN.get(name, name) for name in batch.schema.names]).replace_schema_metadata(metadata)
    return given.append_column("relation", pa.array(labels, pa.string())).append_column("probability", pa.array(probabilities))


def _with_fields(batch: list[Row], labels: list[str | None], probabilities: list[float]) -> Iterator[bytes]:
    for row, label, probability in zip(batch, labels, probabilities, strict=True):
        given = {GIVEN.get(name, name): value for name, value in row.items()}
        yield json.dumps({**given, "relation": label, "probability": probability}, ensure_ascii=False).encode() + b"\n"
