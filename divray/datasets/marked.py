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

import yaml

from divray.datasets.source import Source, read_text
from divray.errors import InputError
from divray.relations import Example, Relation, parse_marked

KEYS = ("name", "description", "head_type", "tail_type", "inverse", "examples")

_MENDS = {
    "no_head": "Put the head in [ ].",
    "no_tail": "Put the tail in { }.",
    "many_heads": "Mark one head only.",
    "many_tails": "Mark one tail only.",
    "nested_marks": "Close every mark, and keep head and tail apart.",
    "empty_entity": "Put words between the marks.",
}


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which moreover refuses a key given twice (YAML would drop the first)."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str) or keys.count(key) > 1:
            problem = "stands there twice" if isinstance(key, str) else "is no string (quote it)"
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {problem}", node.start_mark)
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> Any:
    """A YAML file's plain values.

    Raises:
        InputError: The file is missing, empty, no UTF-8 or no YAML, or has a key twice; with the line.
    """
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except RecursionError:
        raise InputError(str(path), "", "YAML nested too deeply", "Give a plain list or mapping.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(
            str(path), place, f"no valid YAML ({problem})", 'Mend it; quote a sentence that starts with a mark: "[…".'
        ) from None


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
        yield source.checked(place, Example(*parsed, relation, head_type, tail_type, identity))


def _words(where: str, place: str, key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(where, f"{place}, {key}", f"{value!r} is no text", "Give a string; quote it.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(where, f"{place}, {key}", "half a surrogate pair", "Mend the \\u escape.")
    return " ".join(value.split())
