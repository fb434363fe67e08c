"""``divray predict``: relations of new sentences by a trained model, a batch at a time.

Whatever the result can't hold is refused before the model is loaded.  Parquet goes through as Arrow tables, so that unused columns keep
their types.  JSONL's objects stay objects on the way to JSONL; on the way to Parquet a column gets the one type that holds all its values.
"""

from __future__ import annotations

import importlib
import io
import json
import posixpath
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.datasets.own import SENTENCE, span_of
from divray.dedup.storage import open_uri, placed
from divray.errors import InputError
from divray.models import check_model, facts_of
from divray.relations import Example, parse_marked, span_problem, tightened
from divray.run_folder import RunFolder, make_folder
from divray.textfiles import json_lines

if TYPE_CHECKING:
    from divray.extraction.model import RelationExtractor

BATCH = 1024
Row = dict[str, Any]
Batch: TypeAlias = pa.Table | list[Row]
"""Rows of a Parquet file, or of a JSONL file."""

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


def predict(model: str, source: str, target: str, on_progress: Callable[[int], None] | None = None, threshold: float = 0.0) -> int:
    """Write each row of ``source`` with its ``relation`` and ``probability`` to ``target``.

    A row has ``text`` with the head in ``[ ]`` and the tail in ``{ }``; or plain ``text`` with spans in any form of
    :mod:`divray.datasets.own`.  What it has under the names of :data:`GIVEN` gets another name.  Below ``threshold`` the model
    abstains: ``relation`` is null.

    ``model`` is a folder or URI of what the ``train`` stage saved; ``source`` and ``target`` are paths or URIs of ``.jsonl`` or
    ``.parquet`` files.  ``on_progress`` gets the number of rows done, which is returned in the end.  :class:`InputError`: the model is
    none of ours, a row is wrong, or ``target`` can't hold a column; then nothing is written.
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
        if not path.endswith((".jsonl", ".parquet")):
            raise InputError(path, "", "neither .jsonl nor .parquet", "Give a file with one of these endings.")
    schema = _checked(source, target)

    with _writer(target, schema) as write:
        extractor: RelationExtractor = importlib.import_module("divray.extraction.model").RelationExtractor.load(model)  # brings torch
        for before, batch in _read(source):
            found = extractor.predict(list(_examples(batch, source, before)))
            certain = found.probabilities.max(axis=1).tolist()
            write(batch, [label if sure >= threshold else None for label, sure in zip(found.labels, certain, strict=True)], certain)
            done = before + len(batch)
            if on_progress:
                on_progress(done)
    return done


# what is checked before the model is loaded ----------------------------------------------------


def _checked(source: str, target: str) -> pa.Schema | None:
    """Check every row of ``source``, and that ``target`` can hold it; returns the schema of the result where that is Parquet."""
    names: set[str] = set()
    types: dict[str, pa.DataType] = {}
    schema, to_parquet = None, target.endswith(".parquet")
    for before, batch in _read(source):
        list(_examples(batch, source, before))
        if isinstance(batch, pa.Table):
            schema = batch.schema
            names |= set(schema.names)
            for field in () if to_parquet else schema:
                if not _in_json(field.type):
                    mend = "Write a .parquet file, or turn the column into text."
                    raise InputError(source, field.name, f"JSON has no {field.type}", mend)
        else:
            own = dict.fromkeys(name for row in batch for name in row)
            names |= own.keys()
            for name in own if to_parquet else ():  # make each column's type hold these values, too
                with _one_type(name, source, before, batch):
                    both = types.get(name, pa.null()), pa.array([row.get(name) for row in batch]).type
                    types[name] = pa.unify_schemas([pa.schema({name: kind}) for kind in both], promote_options="permissive")[0].type
        if isinstance(batch, list) or not to_parquet:
            _check_numbers(batch, source, before, to_parquet)
    for name, given in GIVEN.items():
        if {name, given} <= names:
            raise InputError(source, given, f"stands there beside {name}, which would take its name", f"Rename or drop {given}.")
    if not to_parquet:
        return None
    if schema is None:
        schema = pa.schema(types.items())
        for before, batch in _read(source):
            _as_table(batch, schema, source, before)
    try:
        sink = pa.BufferOutputStream()
        pq.write_table(_answered(schema.empty_table(), [], []), sink)
        pq.read_schema(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowException, OSError) as error:  # OSError: it is written, but nested too deeply to be read
        raise InputError(source, "", f"Parquet can't hold it ({str(error).splitlines()[0]})", "Write a .jsonl file.") from None
    return schema


def _as_table(batch: Batch, schema: pa.Schema, source: str, before: int) -> pa.Table:
    if isinstance(batch, pa.Table):
        return batch
    columns = []
    for field in schema:
        with _one_type(field.name, source, before, batch):
            columns.append(pa.array([row.get(field.name) for row in batch], field.type))
    return pa.table(columns, schema=schema)


@contextmanager
def _one_type(name: str, source: str, before: int, rows: list[Row]) -> Iterator[None]:
    """Says which column and rows have no common type."""
    try:
        yield
    except (pa.ArrowException, OverflowError) as error:
        problem = f"no one type holds its values ({str(error).splitlines()[0]})"
        place = f"rows {before + 1} to {before + len(rows)}, {name}"
        raise InputError(source, place, problem, "Mend them, or write a .jsonl file.") from None


def _check_numbers(batch: Batch, source: str, before: int, to_parquet: bool) -> None:
    """Refuse NaN and infinity in JSON; on the way from JSON to Parquet infinity alone, which a number that is too large is read as."""
    for number, row in enumerate(_plain(batch, source, before), before + 1):
        try:
            json.dumps(row, allow_nan=False)
        except ValueError:
            odd: list[str] = []
            json.loads(json.dumps(row), parse_constant=odd.append)
            problem, mend = "JSON has neither NaN nor infinity", "Write a .parquet file, or give null."
            if to_parquet:
                problem, mend = "a number is infinite or too large", "Give a smaller one, or null."
            if not to_parquet or set(odd) != {"NaN"}:
                raise InputError(source, f"row {number}", problem, mend) from None


def _in_json(kind: pa.DataType) -> bool:
    """Whether JSON holds a column of this type as it is."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _in_json(kind.value_type)
    if types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return len({field.name for field in fields}) == len(fields) and all(_in_json(field.type) for field in fields)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_kind(kind) for is_kind in (types.is_null, types.is_boolean, types.is_integer, types.is_floating, *texts))


# rows -------------------------------------------------------------------------------------------


def _read(source: str) -> Iterator[tuple[int, Batch]]:
    """Batches of the file, each behind the number of rows before it."""
    filesystem, path = open_uri(source)
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        raise InputError(source, "", "no such file", "Give the path of the sentences.")
    done = 0
    for batch in _jsonl(filesystem, path, source) if source.endswith(".jsonl") else _parquet(filesystem, path, source):
        yield done, batch
        done += len(batch)
    if not done:
        raise InputError(source, "", "no rows", "Give at least one sentence.")


def _jsonl(filesystem: pafs.FileSystem, path: str, source: str) -> Iterator[list[Row]]:
    with io.BufferedReader(filesystem.open_input_stream(path)) as lines:
        rows = (row for _, row in json_lines(lines, source))
        while batch := list(islice(rows, BATCH)):
            yield batch


def _parquet(filesystem: pafs.FileSystem, path: str, source: str) -> Iterator[pa.Table]:
    try:
        with filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(source, twice[0], "the column stands there twice", "Rename or drop one of them.")
            for batch in file.iter_batches(BATCH):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)
    except (pa.ArrowException, OSError) as error:
        raise InputError(source, "", f"not readable ({str(error).splitlines()[0]})", "Give a whole Parquet file.") from None


def _plain(batch: Batch, source: str, before: int) -> list[Row]:
    """Python values of the rows, in which the names of a ``ClassLabel`` stand for its numbers."""
    if isinstance(batch, list):
        return batch
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:
        raise InputError(source, f"rows {before + 1} to {before + len(batch)}", "invalid UTF-8", "Save the data as UTF-8.") from None
    for name, labels in _class_names(batch.schema).items():
        for row in rows:
            if isinstance(row.get(name), int) and 0 <= row[name] < len(labels):
                row[name] = labels[row[name]]
    return rows


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of each ``ClassLabel`` column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: one for name, one in features.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"}
        return {name: list(map(str, one["names"])) for name, one in labels.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _examples(batch: Batch, source: str, before: int) -> Iterator[Example]:
    used = batch.select([name for name in SENTENCE if name in batch.column_names]) if isinstance(batch, pa.Table) else batch
    for number, row in enumerate(_plain(used, source, before), before + 1):
        yield _example(row, f"row {number}", partial(InputError, source))


def _example(row: Row, place: str, error: Callable[[str, str, str], InputError]) -> Example:
    mend = "Mark head and tail in `text` as [head] and {tail}, or give spans."
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise error(f"{place}, text", "missing" if text is None else f"{text!r} is not a text", mend)
    types: dict[str, Any] = {name: row.get(name) or "" for name in ("head_type", "tail_type")}
    for name, kind in types.items():
        if not isinstance(kind, str):
            raise error(f"{place}, {name}", f"{kind!r} is not a text", "Give a string.")
    if all(row.get(name) is None for name in ("head", "tail", "head_start", "tail_start")):
        parsed = parse_marked(text)
        if isinstance(parsed, str):
            raise error(f"{place}, text", parsed.replace("_", " "), mend)
        return Example(*parsed, "", **types)
    head, tail = (tightened(text, span) or span for span in (span_of(row, side, text, place, error) for side in ("head", "tail")))
    if problem := span_problem(text, head, tail):
        raise error(f"{place}, head, tail", problem, mend)
    return Example(text, head, tail, "", **types)


# the result -------------------------------------------------------------------------------------


def _answered(table: pa.Table, labels: Iterable[str | None], probabilities: Iterable[float]) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # what `datasets` and pandas say of a column goes along with its name
        found = json.loads(metadata[b"huggingface"])
        found["info"]["features"] = {GIVEN.get(name, name): feature for name, feature in found["info"]["features"].items()}
        metadata[b"huggingface"] = json.dumps(found)
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        found = json.loads(metadata[b"pandas"])
        found["columns"] = [{**one, **{key: GIVEN.get(one[key], one[key]) for key in ("name", "field_name")}} for one in found["columns"]]
        found["index_columns"] = [GIVEN.get(str(one), one) for one in found["index_columns"]]
        metadata[b"pandas"] = json.dumps(found)
    table = table.rename_columns([GIVEN.get(name, name) for name in table.column_names])
    table = table.append_column("relation", pa.array(labels, pa.string()))
    return table.append_column("probability", pa.array(probabilities, pa.float64())).replace_schema_metadata(metadata)


@contextmanager
def _writer(target: str, schema: pa.Schema | None) -> Iterator[Callable[[Batch, list[str | None], list[float]], None]]:
    """Writes batches with their answers; the file appears under its name only when the block ends well."""
    filesystem, path = open_uri(target)
    make_folder(filesystem, posixpath.dirname(path))
    with ExitStack() as stack:
        stream = stack.enter_context(filesystem.open_output_stream(stack.enter_context(placed(filesystem, path))))
        if schema is not None:
            parquet = stack.enter_context(pq.ParquetWriter(stream, _answered(schema.empty_table(), [], []).schema))

        def write(batch: Batch, labels: list[str | None], probabilities: list[float]) -> None:
            if schema is not None:
                parquet.write_table(_answered(_as_table(batch, schema, target, 0), labels, probabilities))
                return
            for row, label, probability in zip(_plain(batch, target, 0), labels, probabilities, strict=True):
                given = {GIVEN.get(name, name): value for name, value in row.items()}
                line = json.dumps({**given, "relation": label, "probability": probability}, ensure_ascii=False)
                stream.write(line.encode() + b"\n")

        yield write
