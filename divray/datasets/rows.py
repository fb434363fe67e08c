"""divray's own row form, as JSONL has it, and Arrow and Parquet.

``{"text": "The storm caused flooding.", "head": [4, 9], "tail": [17, 25], "relation": "cause"}``, with
``head_type``, ``tail_type`` and ``id`` where there are any; spans are ``[start, end)`` in characters.  Also
read: ``{"start": 4, "end": 9}``; ``{"text": "storm"}`` where it stands in the text once; and the columns of
divray's own data set (``head_start``, ``head_end``, …, ``sample_id``).  Other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from divray.datasets.source import Source
from divray.errors import InputError
from divray.relations import Example, Span
from divray.textfiles import json_lines, read_bytes
from divray.words import mentions


def example_from_row(source: Source, place: str, row: Mapping[str, Any], default_id: str) -> Iterator[Example]:
    """One checked example, or none where it can't be used, which is counted.

    Args:
        source: The file, for errors and labels.
        place: The row's name in an error.
        row: Plain Python values.
        default_id: Id of a row that has none of its own.

    Raises:
        InputError: A field is missing or wrong, or an entity is not in the text.
    """
    text = source.string(place, "text", row.get("text"))
    label = source.label(place, row.get("relation"))
    head, tail = (span_of(row, side, text, place, source.error) for side in ("head", "tail"))
    types = [source.string(place, name, row.get(name), required=False) for name in ("head_type", "tail_type")]
    given = next((row[name] for name in ("id", "example_id", "sample_id") if row.get(name) is not None), None)
    identity = source.identity(place, given, default_id)
    yield from source.usable(Example(text, head, tail, label, types[0], types[1], identity))


def span_of(row: Mapping[str, Any], side: str, text: str, place: str, error: Callable[[str, str, str], InputError]) -> Span:
    """The span of ``side`` (``head`` or ``tail``), in any of the forms above.

    Args:
        row: Plain Python values.
        side: ``head`` or ``tail``.
        text: The row's text.
        place: The row's name in an error.
        error: Makes an error of a field, what is wrong with it, and what to change.

    Raises:
        InputError: There is none, or it does not lie in the text.
    """
    field = f"{place}, {side}"
    value = row.get(side)
    if value is None and row.get(f"{side}_start") is not None:
        value = [row[f"{side}_start"], row.get(f"{side}_end")]
    words = None
    if isinstance(value, Mapping):
        words = value.get("text")
        if value.get("start") is None and isinstance(words, str) and words.strip():
            return _find(words.strip(), text, field, error)
        value = [value.get("start"), value.get("end")]
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        problem = "missing" if value is None else f"{value!r} is no span"
        raise error(field, problem, "Give [start, end) in characters of the text.")
    start, end = value
    if not 0 <= start <= end <= len(text):
        raise error(field, f"[{start}, {end}) does not lie in the text ({len(text)} characters)", "Mend the span.")
    if isinstance(words, str) and text[start:end] != words:
        mend = "Mend the span or the words; offsets count characters, not bytes."
        raise error(field, f"text[{start}:{end}] is {text[start:end]!r}, not {words!r}", mend)
    return start, end


def _find(words: str, text: str, field: str, error: Callable[[str, str, str], InputError]) -> Span:
    found = [span for span in mentions(text, words) if text[slice(*span)] == words]
    if not found:
        raise error(field, f"{words!r} is not in the text", "Write it as it stands in the text.")
    if len(found) > 1:
        raise error(field, f"{words!r} stands in the text {len(found)} times", "Give `start` and `end` too.")
    return found[0]


def read_jsonl(source: Source) -> Iterator[Example]:
    """Yield the examples in the order of the file; a row without id is called after its line.

    Raises:
        InputError: A line is no JSON object, or a field of it is wrong.
    """
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), str(source.path)):
        yield from example_from_row(source, f"line {number}", row, f"line-{number}")
