"""The record that the LLM writes: head, tail, sentence, in this order.

A small LLM can't mark entities while it writes a sentence, but it can name two entities and then write a sentence about them.
A completion model writes the record as three lines.  A chat model writes JSON under a schema that fixes the form, but no word of
the sentence.  Either the LLM writes all three fields, or the prompt gives the pair and the LLM writes the sentence.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from divray.relations import Example, Relation

Pair = tuple[str, str]
"""A head and a tail, as they stand in the sentence."""

_FIELDS = ("head", "tail", "sentence")
_LABEL = re.compile(r"^ *(?:\d+[.)] +)?(Head|Tail|Sentence)(?: *\(.*?\))?:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Record:
    """What one record says; a field that the completion lacks is ``""``."""

    head: str = ""
    tail: str = ""
    sentence: str = ""


def labels(relation: Relation) -> tuple[str, str, str]:
    """The labels of the three fields, with the types of the entities if the relation has them."""
    types = (relation.head_type, relation.tail_type)
    head, tail = (f"{name} ({kind}):" if kind else f"{name}:" for name, kind in zip(("Head", "Tail"), types, strict=True))
    return head, tail, "Sentence:"


def as_lines(relation: Relation, example: Example) -> str:
    """``example`` as the three lines of a record."""
    return "\n".join(f"{label} {value}" for label, value in zip(labels(relation), _values(example), strict=True))


def as_json(example: Example) -> str:
    """``example`` as a JSON object on one line."""
    return json.dumps(dict(zip(_FIELDS, _values(example), strict=True)), ensure_ascii=False)


def completion_of(relation: Relation, example: Example, given: bool, chat: bool) -> str:
    """The completion that states ``example``.  ``given``: the prompt has the pair.  ``chat``: JSON; else lines, with the stop string."""
    if chat:
        return json.dumps({"sentence": example.text}, ensure_ascii=False) if given else as_json(example)
    return f" {example.text}\n" if given else f"{as_lines(relation, example).removeprefix(labels(relation)[0])}\n\n"


def _values(example: Example) -> tuple[str, str, str]:
    head, tail, text = (" ".join(value.split()) for value in (example.head_text, example.tail_text, example.text))
    return head, tail, text


def list_pattern(relation: Relation, count: int) -> str:
    """The regular expression of ``count`` records as lines, without the first label, which the prompt already has.  ``""`` for one
    record: the demonstrations show its form."""
    if count == 1:
        return ""
    head, tail, sentence = (re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", label) for label in labels(relation))
    line = r" [^\n]+\n"
    rest = f"{line}{tail}{line}{sentence}{line}"
    return rest + rf"\n{head}{rest}" * (count - 1)


def json_schema(given: bool, count: int = 1) -> str:
    """The JSON schema of a record (of its sentence alone if the pair is ``given``), or of a list of ``count`` records.

    Strings have no minimum length, which would make constrained decoding many times as slow.
    """
    names = _FIELDS[2:] if given else _FIELDS
    fields = {name: {"type": "string"} for name in names}
    record = {"type": "object", "properties": fields, "required": names, "additionalProperties": False}
    return json.dumps(record if count == 1 else {"type": "array", "items": record, "minItems": count, "maxItems": count})


def read_records(completion: str, given: Pair | None = None, cut: bool = False) -> list[Record]:
    """The records of a completion, in either form; those without a sentence are left out.

    Args:
        given: The pair, if the prompt gives it and the completion is the sentence alone.
        cut: Whether a limit ended the completion, so that its last line is incomplete.
    """
    if (found := _from_json(completion, given)) or completion.lstrip().startswith(("{", "[{")):
        return found
    text = (completion.rpartition("\n")[0] if cut else completion).strip()
    # The first label stands in the prompt.
    parts = _LABEL.split(text if _LABEL.match(text) else f"{'Sentence' if given else 'Head'}: {text}")
    records: list[Record] = []
    for name, value in zip(parts[1::2], parts[2::2], strict=True):
        line = value.strip().partition("\n")[0].strip()
        if given is not None:
            records += [Record(*given, line)] if name == "Sentence" else []
        elif name == "Head":
            records.append(Record(line))
        elif records:
            last = records[-1]
            records[-1] = Record(last.head, line) if name == "Tail" else Record(last.head, last.tail, line)
    return [record for record in records if record.sentence]


def _from_json(text: str, given: Pair | None) -> list[Record]:
    """The records among the JSON objects of ``text``, whatever stands around them."""
    decoder = json.JSONDecoder(strict=False)
    found, place = [], text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = {}, place
        head, tail, sentence = (_plain(value.get(name)) for name in _FIELDS)
        if sentence:
            found.append(Record(*given, sentence) if given else Record(head, tail, sentence))
        place = text.find("{", end if sentence else place + 1)
    return found


def _plain(value: Any) -> str:
    """A JSON string on one line, without unpaired surrogates, which no table can hold; ``""`` for other values."""
    return " ".join(value.encode(errors="ignore").decode().split()) if isinstance(value, str) else ""
