"""What every reader shares, and divray's own format: the relations file, sentences with ``[head]`` and ``{tail}`` marked, and rows.

All readers follow one rule.  For a *malformed* example they raise :class:`InputError` with file, row and field.  A well-formed example
may still not fit ``text`` + two disjoint spans (nested, overlapping, discontinuous or blank entities of a published corpus).  Readers
leave it out and count it in :attr:`Source.left_out`.  Blanks at the ends of an entity do not belong to it.

The relations file is a YAML list.  ``name`` and ``description`` must be there; ``examples`` are the seeds if there is no ``task.train``::

    - name: Cause-Effect
      description: The head brings the tail about.
      head_type: event
      tail_type: event
      examples:
        - "The [storm] caused {flooding} in the valley."

A test (or training) file in YAML is a mapping, relation -> list of marked sentences.

JSONL files have rows, as do Arrow and Parquet (:mod:`divray.datasets.huggingface`): ``{"text": "The storm caused flooding.",
"head": [4, 9], "tail": [17, 25], "relation": "cause"}``, with ``head_type``, ``tail_type`` and ``id`` where there are any; spans are
``[start, end)`` in characters.  Readers also accept ``{"start": 4, "end": 9}``; ``{"text": "storm"}`` if the text has these words once;
and the columns of divray's own data set (``head_start``, ``head_end``, …, ``sample_id``).  If a row has none of these, its ``text`` must
mark head and tail.  Readers ignore other keys.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from divray.errors import InputError
from divray.relations import Example, Relation, Span, as_name, mentions, overlap, parse_marked, tightened
from divray.textfiles import json_lines, read_bytes, read_yaml

SENTENCE = ("text", "head", "tail", "head_start", "head_end", "tail_start", "tail_end", "head_type", "tail_type")
"""Keys of a row that may give its text and its entities."""
IDS = ("id", "example_id", "sample_id")
"""Keys of a row that may give its id; the first one present counts."""

KEYS = ("name", "description", "head_type", "tail_type", "inverse", "examples")


@dataclass
class Source:
    """A file or folder of labelled sentences.

    Attributes:
        path: Where it lies.
        labels: The allowed labels; ``None`` allows any.
        unlabelled: Ignore labels; every sentence gets the label ``""``.
        name: What it is called in an error; default: its path.
        left_out: Reason -> number of examples left out so far.
    """

    path: Path
    labels: Collection[str] | None = None
    unlabelled: bool = False
    name: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    _ids: set[str] = field(default_factory=set, repr=False)

    def error(self, row: str, problem: str, mend: str) -> InputError:
        return InputError(self.name or str(self.path), row, problem, mend)

    def label(self, row: str, value: Any) -> str:
        """``value`` as one of the labels."""
        if self.unlabelled:
            return ""
        if not isinstance(value, str) or not value:
            raise self.error(f"{row}, relation", f"{value!r} is no label", "Give the name of a relation as a string.")
        name = as_name(value)
        if self.labels is not None and name not in self.labels:
            close = difflib.get_close_matches(name, list(self.labels), n=1)
            hint = f"Did you mean `{close[0]}`? Else add" if close else "Add"
            raise self.error(f"{row}, relation", f"label {value!r} is not among the relations", f"{hint} it to the relations file.")
        return name

    def identity(self, row: str, value: Any, default: str) -> str:
        """``value`` as an id that no earlier row has; ``default`` where it is ``None``."""
        name = default if value is None else str(value)
        if name in self._ids:
            raise self.error(f"{row}, id", f"id {name!r} stands there twice", "Give every example its own id.")
        self._ids.add(name)
        return name

    def string(self, row: str, name: str, value: Any, required: bool = True) -> str:
        """``value`` if it is a string (with something in it, if required); a missing one is ``""``."""
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            raise self.error(f"{row}, {name}", "missing" if value is None else f"{value!r} is not a text", "Give a string.")
        return value

    def usable(self, example: Example) -> Iterator[Example]:
        """Yield ``example`` with tight spans.  If an entity is blank or the two overlap, count the example and yield nothing."""
        head, tail = tightened(example.text, example.head), tightened(example.text, example.tail)
        if head is None or tail is None:
            self.left_out["blank_entity"] += 1
        elif overlap(head, tail):
            self.left_out["overlapping_entities"] += 1
        else:
            yield replace(example, head=head, tail=tail)


def read_relations_file(path: Path) -> list[Relation]:
    """The relations, in the order of the file; their examples carry the relation's own types.

    Raises:
        InputError: An unknown key, no name or description, a name given twice, a wrong inverse, or a badly marked example.
    """
    source, rows = Source(path), read_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise source.error("", "no list of relations", "Write `- name: …` with a `description:` for each.")
    relations: dict[str, Relation] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise source.error(f"relation {number}", "no mapping", "Write `- name: …` with a `description:`.")
        place = f"relation {row.get('name') or number}"
        if unknown := [key for key in row if key not in KEYS]:
            raise source.error(f"{place}, {unknown[0]}", "unknown key", f"Known keys: {', '.join(KEYS)}.")
        values: dict[str, str] = {}
        for key in KEYS[:-1]:
            value = row.get(key)
            if not isinstance(value, str | None):
                raise source.error(f"{place}, {key}", f"{value!r} is no text", "Give a string; quote words like true or null.")
            values[key] = as_name(value or "")
            if not values[key] and key in ("name", "description"):
                raise source.error(f"{place}, {key}", "missing", "Give a name, and in one sentence when the relation holds.")
        name = values["name"]
        if name in relations:
            raise source.error(place, "the name stands there twice", "Give each relation one entry.")
        examples = tuple(_marked(source, name, row.get("examples") or [], values["head_type"], values["tail_type"]))
        relations[name] = Relation(**values, examples=examples)
    for relation in relations.values():
        if relation.inverse and (relation.inverse not in relations or relations[relation.inverse].inverse != relation.name):
            fix = "Name a relation of this file whose own `inverse` names this one."
            raise source.error(f"relation {relation.name}, inverse", f"{relation.inverse!r} is no inverse", fix)
    return list(relations.values())


def read_marked(source: Source) -> Iterator[Example]:
    """Yield the sentences of a YAML mapping relation -> list of marked sentences.

    Raises:
        InputError: The file is no such mapping, a label is unknown, or a sentence is badly marked.
    """
    rows = read_yaml(source.path)
    if not isinstance(rows, dict) or not rows:
        raise source.error("", "no mapping of relations", "Write `relation:` and below it a list of marked sentences.")
    for name, sentences in rows.items():
        label = source.label(f"relation {name}", name)
        yield from (replace(example, relation=label) for example in _marked(source, label or name, sentences))


def _marked(source: Source, relation: str, sentences: Any, head_type: str = "", tail_type: str = "") -> Iterator[Example]:
    if not isinstance(sentences, list):
        raise source.error(f"relation {relation}, examples", "no list", "Write a list of marked sentences.")
    for number, sentence in enumerate(sentences, start=1):
        place = f"relation {relation}, example {number}"
        if not isinstance(sentence, str) or (found := parse_marked(" ".join(sentence.split()))) is None:
            fix = 'Put one head in [ ] and one tail in { }, and quote the sentence: "The [storm] caused {flooding}."'
            raise source.error(place, f"not one head and one tail marked in {sentence!r}", fix)
        yield Example(*found, relation, head_type, tail_type, source.identity(place, None, f"{relation}/{number}"))


def labelled(source: Source, place: str, row: Mapping[str, Any], default_id: str) -> Iterator[Example]:
    """:func:`example_from_row` with the row's label, types and id."""
    label = source.label(place, row.get("relation"))
    types = [source.string(place, name, row.get(name), required=False) for name in ("head_type", "tail_type")]
    given = next((row[name] for name in IDS if row.get(name) is not None), None)
    identity = source.identity(place, given, default_id)
    for example in example_from_row(source, place, row):
        yield replace(example, relation=label, head_type=types[0], tail_type=types[1], example_id=identity)


def example_from_row(source: Source, place: str, row: Mapping[str, Any]) -> Iterator[Example]:
    """Yield the checked text and entities of a row; if unusable, count it and yield nothing.  ``place`` names the row in an error.

    Raises:
        InputError: A field is missing or wrong, or an entity is not in the text.
    """
    text = source.string(place, "text", row.get("text"))
    if all(row.get(name) is None for name in ("head", "tail", "head_start", "tail_start")):
        if (parsed := parse_marked(text)) is None:
            fix = "Give `head` and `tail` as [start, end), or mark them in `text`: one [head], one {tail}."
            raise source.error(place, f"no head and tail, and not one of each marked in {text!r}", fix)
        text, head, tail = parsed
    else:
        head, tail = (span_of(source, place, row, side, text) for side in ("head", "tail"))
    yield from source.usable(Example(text, head, tail, ""))


def span_of(source: Source, place: str, row: Mapping[str, Any], side: str, text: str) -> Span:
    """The span of ``side`` (``head`` or ``tail``), in any of the forms above.

    Raises:
        InputError: There is none, or it does not lie in the text.
    """
    field = f"{place}, {side}"
    value, words = row.get(side), None
    if value is None:
        value = {end: row.get(f"{side}_{end}") for end in ("start", "end")}
    if isinstance(value, Mapping):
        words, value = value.get("text"), [value.get("start"), value.get("end")]
    if isinstance(words, str) and value[0] is None:
        name = words.strip()
        found = [span for span in mentions(text, name) if text[slice(*span)] == name]
        if len(found) != 1:
            problem = f"{name!r} stands in the text {len(found)} times as words of its own"
            raise source.error(field, problem, "Copy the words from the text, or give `start` and `end` too.")
        return found[0]
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(end) is int for end in value):
        problem = "missing" if value == [None, None] else f"{value!r} is no span"
        raise source.error(field, problem, "Give [start, end) in characters of the text.")
    start, end = value
    if not 0 <= start <= end <= len(text):
        raise source.error(field, f"[{start}, {end}) does not lie in the text ({len(text)} characters)", "Fix the span.")
    if isinstance(words, str) and text[start:end] != words:
        mend = "Fix the span or the words; offsets count characters, not bytes."
        raise source.error(field, f"text[{start}:{end}] is {text[start:end]!r}, not {words!r}", mend)
    return start, end


def read_jsonl(source: Source) -> Iterator[Example]:
    """Yield the examples in the order of the file; a row without an id gets the id ``line-N``.

    Raises:
        InputError: A line is no JSON object, or a field of it is wrong.
    """
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), str(source.path)):
        yield from labelled(source, f"line {number}", row, f"line-{number}")
