"""``divray predict``: relations of new sentences by a trained model, a batch at a time."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from divray.errors import InputError
from divray.models import check_model
from divray.relations import Example, parse_marked, span_problem
from divray.runs import open_uri, placed

BATCH = 1024
Row = dict[str, Any]


def predict(model: str, source: str, target: str, on_progress: Callable[[int], None] | None = None) -> int:
    """Write each row of ``source`` with its ``relation`` and ``probability`` to ``target``.

    A row has ``text`` with the head in ``[ ]`` and the tail in ``{ }``; or plain ``text`` with spans, as
    ``head`` and ``tail`` (``[start, end]``) or as the columns ``head_start`` … ``tail_end``.  ``head_type`` and
    ``tail_type`` are used where the model was trained with types.  A ``relation`` that the row has already
    is kept as ``given_relation``.

    Args:
        model: Folder or URI of a model that the ``train`` stage saved.
        source: Path or URI of a ``.jsonl`` or ``.parquet`` file.
        target: The same, for the result; replaced if it exists.
        on_progress: Called with the number of rows done.

    Returns:
        How many rows were written.

    Raises:
        InputError: The model is none of ours, or a row is wrong; then nothing is written.
    """
    check_model(model, "--model", "")
    _check_kind(model)
    for path in (source, target):
        if not path.endswith((".jsonl", ".parquet")):
            raise InputError(path, "", "neither .jsonl nor .parquet", "Give a file with one of these endings.")
    total = 0
    for batch in _read(source):
        for number, row in enumerate(batch, total + 1):
            _example(row, source, number)
        total += len(batch)
    if not total:
        raise InputError(source, "", "no rows", "Give at least one sentence.")

    from divray.extraction.model import RelationExtractor

    extractor, done = RelationExtractor.load(model), 0
    with _writer(target) as write:
        for batch in _read(source):
            found = extractor.predict([_example(row, source, done + n) for n, row in enumerate(batch, 1)])
            write([_answered(*row) for row in zip(batch, found.labels, found.probabilities.max(axis=1).tolist(), strict=True)])
            done += len(batch)
            if on_progress:
                on_progress(done)
    return done


def _check_kind(model: str) -> None:
    from divray.models import local_model

    filesystem, folder = open_uri(model if "://" in model else local_model(model))
    config = f"{folder}/config.json"
    if filesystem.get_file_info(config).type != pafs.FileType.NotFound:
        with filesystem.open_input_stream(config) as stream:
            kind = json.loads(stream.read()).get("model_type")
        if kind != "divray-relation-extractor":
            raise InputError(model, "config.json", f"a {kind} model, not a relation extractor", "Give the `model` folder of a run.")


def _answered(row: Row, relation: str, probability: float) -> Row:
    given = {"given_relation": row["relation"]} if "relation" in row else {}
    return {**{k: v for k, v in row.items() if k != "relation"}, **given, "relation": relation, "probability": probability}


def _example(row: Row, where: str, number: int) -> Example:
    def error(field: str, problem: str) -> InputError:
        mend = "Mark head and tail in `text` as [head] and {tail}, or give spans."
        return InputError(where, f"row {number}, {field}", problem, mend)

    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise error("text", "missing")
    types = [row.get(name) or "" for name in ("head_type", "tail_type")]
    spans: list[Any] = [row.get(side) or [row.get(f"{side}_start"), row.get(f"{side}_end")] for side in ("head", "tail")]
    if all(span == [None, None] for span in spans):
        parsed = parse_marked(text)
        if isinstance(parsed, str):
            raise error("text", parsed.replace("_", " "))
        return Example(*parsed, "", *types)
    for side, span in zip(("head", "tail"), spans, strict=True):
        if not (isinstance(span, list) and len(span) == 2 and all(isinstance(value, int) for value in span)):
            raise error(side, f"{span!r} is no [start, end]")
    head, tail = (spans[0][0], spans[0][1]), (spans[1][0], spans[1][1])
    if problem := span_problem(text, head, tail):
        raise error("head, tail", problem)
    return Example(text, head, tail, "", *types)


def _read(source: str) -> Iterator[list[Row]]:
    filesystem, path = open_uri(source)
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        raise InputError(source, "", "no such file", "Give the path of the sentences.")
    try:
        if source.endswith(".parquet"):
            for batch in pq.ParquetFile(filesystem.open_input_file(path)).iter_batches(BATCH):
                yield batch.to_pylist()
            return
        rows: list[Row] = []
        with io.TextIOWrapper(filesystem.open_input_stream(path), encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_json_row(line, source, number))
                if len(rows) == BATCH:
                    yield rows
                    rows = []
        if rows:
            yield rows
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(source, "", f"not readable ({str(error).splitlines()[0]})", "Give whole UTF-8 JSONL or Parquet.") from None


def _json_row(line: str, source: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(source, f"line {number}", f"no JSON ({error.msg})", "Give one JSON object a line.") from None
    if not isinstance(row, dict):
        raise InputError(source, f"line {number}", "no JSON object", "Give one JSON object a line.")
    return row


@contextmanager
def _writer(target: str) -> Iterator[Callable[[list[Row]], None]]:
    """Writes batches of rows; the file appears under its name only when the block ends well."""
    filesystem, path = open_uri(target)
    filesystem.create_dir(posixpath.dirname(path), recursive=True)
    parquet: pq.ParquetWriter | None = None
    with placed(filesystem, path) as beside, filesystem.open_output_stream(beside) as stream:

        def write(rows: list[Row]) -> None:
            nonlocal parquet
            if target.endswith(".jsonl"):
                stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                return
            table = pa.Table.from_pylist(rows, parquet.schema if parquet else None)
            parquet = parquet or pq.ParquetWriter(stream, table.schema)
            parquet.write_table(table)

        yield write
        if parquet:
            parquet.close()
