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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    schema = None
    for batch, _ in _read(source):  # checks every row before the model is loaded
        schema = batch.schema if isinstance(batch, pa.RecordBatch) else None

    done = 0
    with _writer(target, schema) as write:
        extractor: RelationExtractor = importlib.import_module("divray.extraction.model").RelationExtractor.load(model)  # brings torch
        for batch, examples in _read(source):
            found = extractor.predict(examples)
            certain = found.probabilities.max(axis=1).tolist()
            write(batch, [label if sure >= threshold else None for label, sure in zip(found.labels, certain, strict=True)], certain)
            done += len(examples)
    return done


def _read(source: str) -> Iterator[tuple[Batch, list[Example]]]:
    """Batches of the file and their examples, all checked."""
    origin, names, before = Source(Path(source), name=source), set[str](), 0
    for batch in _batches(source):
        if isinstance(batch, pa.RecordBatch):
            if twice := [name for name in SENTENCE if batch.schema.names.count(name) > 1]:
                raise InputError(source, twice[0], "the column stands there twice", "Rename or drop one of them.")
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


def _answered(schema: pa.Schema) -> pa.Schema:
    """The schema of the result."""
    metadata = dict(schema.metadata or {})
    if not GIVEN.keys().isdisjoint(schema.names):
        metadata.pop(b"pandas", None)  # pandas' metadata has the old names of the columns
    given = [field.with_name(GIVEN.get(field.name, field.name)) for field in schema]
    return pa.schema([*given, pa.field("relation", pa.string()), pa.field("probability", pa.float64())], metadata)


@contextmanager
def _writer(target: str, schema: pa.Schema | None) -> Iterator[Callable[[Batch, list[str | None], list[float]], None]]:
    """A function that writes a batch with its answers.  The file appears under its name only if the block raises nothing."""
    filesystem, path = open_uri(target)
    make_folder(filesystem, posixpath.dirname(path))
    with ExitStack() as stack:
        stream = stack.enter_context(filesystem.open_output_stream(stack.enter_context(placed(filesystem, path))))
        if schema is not None:
            schema = _answered(schema)
            parquet = stack.enter_context(pq.ParquetWriter(stream, schema))

        def write(batch: Batch, labels: list[str | None], probabilities: list[float]) -> None:
            if isinstance(batch, pa.RecordBatch):
                columns = [*batch.columns, pa.array(labels, pa.string()), pa.array(probabilities, pa.float64())]
                parquet.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
                return
            for row, label, probability in zip(batch, labels, probabilities, strict=True):
                given = {GIVEN.get(name, name): value for name, value in row.items()}
                line = json.dumps({**given, "relation": label, "probability": probability}, ensure_ascii=False)
                stream.write(line.encode() + b"\n")

        yield write
