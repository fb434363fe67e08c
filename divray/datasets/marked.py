"""What a user writes by hand: the relations file, and sentences with ``[head]`` and ``{tail}`` marked.

The relations file is a YAML list.  ``name`` and ``description`` must be there; ``examples`` are the
user's own seeds::

    - name: Cause-Effect
      description: The head brings the tail about.
      head_type: event
      tail_type: event
      examples:
        - "The [storm] caused {flooding} in the valley."

A test (or training) file of the same kind is a YAML mapping, relation -> list of marked sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from divray.datasets.source import Source
from divray.errors import InputError
from divray.relations import Example, Relation, parse_marked
from divray.textfiles import read_yaml

KEYS = ("name", "description", "head_type", "tail_type", "inverse", "examples")

_MENDS = {
    "no_head": "Put the head in [ ].",
    "no_tail": "Put the tail in { }.",
    "many_heads": "Mark one head only.",
    "many_tails": "Mark one tail only.",
    "nested_marks": "Close every mark, and keep head and tail apart.",
    "empty_entity": "Put words between the marks.",
}


def read_relations_file(path: Path) -> list[Relation]:
    """The relations, in the order of the file; their examples carry the relation's own types.

    Raises:
        InputError: An unknown key, no name or description, a name given twice, or a badly marked example.
    """
    where = str(path)
    rows = read_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(where, "", "no list of relations", "Write `- name: …` with a `description:` for each.")
    relations: dict[str, Relation] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(where, f"relation {number}", "no mapping", "Write `- name: …` with a `description:`.")
        name = row.get("name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(where, f"relation {number}, name", f"{name!r} is no name", "Give a string; quote words like yes or no.")
        name = _words(where, f"relation {number}", "name", name)
        place = f"relation {name}"
        unknown = [key for key in row if key not in KEYS]
        if unknown:
            raise InputError(where, f"{place}, {unknown[0]}", "unknown key", f"Known keys: {', '.join(KEYS)}.")
        if name in relations:
            raise InputError(where, place, "the name stands there twice", "Give each relation one entry.")
        values = {key: _words(where, place, key, row.get(key)) for key in KEYS[1:-1]}
        if not values["description"]:
            raise InputError(where, f"{place}, description", "missing", "Say in one sentence when the relation holds.")
        source = Source(path)
        examples = tuple(_marked(source, name, row.get("examples") or [], values["head_type"], values["tail_type"]))
        relations[name] = Relation(name, **values, examples=examples)
    for relation in relations.values():
        if relation.inverse and (relation.inverse not in relations or relations[relation.inverse].inverse != relation.name):
            fix = "Give the name of a relation in this file, which names this one as its inverse."
            raise InputError(where, f"relation {relation.name}, inverse", f"{relation.inverse!r} is no inverse", fix)
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
        yield from _marked(source, source.label(f"relation {name}", name), sentences)


def _marked(source: Source, relation: str, sentences: Any, head_type: str = "", tail_type: str = "") -> Iterator[Example]:
    if not isinstance(sentences, list):
        raise source.error(f"relation {relation}, examples", "no list", "Write a list of marked sentences.")
    for number, sentence in enumerate(sentences, start=1):
        place = f"relation {relation}, example {number}"
        if not isinstance(sentence, str) or not sentence.strip():
            raise source.error(place, f"{sentence!r} is no sentence", 'Quote it: "The [storm] caused {flooding}."')
        parsed = parse_marked(" ".join(sentence.split()))
        if isinstance(parsed, str):
            raise source.error(place, f"{parsed.replace('_', ' ')} in {sentence!r}", _MENDS[parsed])
        identity = source.identity(place, None, f"{relation}/{number}")
        yield from source.usable(Example(*parsed, relation, head_type, tail_type, identity))


def _words(where: str, place: str, key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(where, f"{place}, {key}", f"{value!r} is no text", "Give a string; quote it.")
    return " ".join(value.split())
