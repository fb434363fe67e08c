"""Relations, their examples, and the one notation for a marked sentence.

Inside the code a marked sentence is always plain text plus two character spans.  Prompts show it
with the head in ``[ ]`` and the tail in ``{ }``; that rendering, and the way back, live here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

Span = tuple[int, int]

HEAD_OPEN, HEAD_CLOSE, TAIL_OPEN, TAIL_CLOSE = "[", "]", "{", "}"
MARKERS = HEAD_OPEN + HEAD_CLOSE + TAIL_OPEN + TAIL_CLOSE


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence with its head and tail, and the relation between them.

    Attributes:
        text: One sentence, unmarked.
        head: ``(start, end)`` character span of the head in ``text``.
        tail: ``(start, end)`` character span of the tail; never overlaps ``head``.
        relation: Name of the relation that holds from head to tail.
        head_type: Type of the head entity, or ``""`` where the data has none.
        tail_type: Type of the tail entity, or ``""``.
        example_id: Identity of the example in its source, stable across reads.
    """

    text: str
    head: Span
    tail: Span
    relation: str
    head_type: str = ""
    tail_type: str = ""
    example_id: str = ""

    @property
    def head_text(self) -> str:
        return self.text[slice(*self.head)]

    @property
    def tail_text(self) -> str:
        return self.text[slice(*self.tail)]


@dataclass(frozen=True, slots=True)
class Relation:
    """What the user says of one relation.

    Attributes:
        name: The label, as it stands in the data.
        description: One sentence that says when the relation holds from head to tail.
        head_type: Type of the head, in words (``"person"``).
        tail_type: Type of the tail, in words.
        inverse: Name of the relation that holds from tail to head whenever this one holds; its own name if it is symmetric.
        examples: The user's own examples (seeds given in the relations file).
    """

    name: str
    description: str
    head_type: str = ""
    tail_type: str = ""
    inverse: str = ""
    examples: tuple[Example, ...] = field(default=())


def span_problem(text: str, head: Span, tail: Span) -> str:
    """Say what is wrong with the two spans of ``text``, or ``""`` if nothing is."""
    for name, (start, end) in (("head", head), ("tail", tail)):
        if not 0 <= start < end <= len(text):
            return f"the {name} span ({start}, {end}) does not lie in the text"
        if text[start:end] != text[start:end].strip():
            return f"the {name} carries loose blanks"
    return "head and tail overlap" if overlap(head, tail) else ""


def overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def metric_tag(name: str) -> str:
    """A relation's name as a tag of Ray's metrics, which take ASCII alone; other characters are percent-encoded."""
    return quote(name, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")


def render_marked(example: Example) -> str:
    """``text`` with the head in ``[ ]`` and the tail in ``{ }``."""
    opening = {example.head[0]: HEAD_OPEN, example.tail[0]: TAIL_OPEN}
    closing = {example.head[1]: HEAD_CLOSE, example.tail[1]: TAIL_CLOSE}
    parts: list[str] = []
    for position in range(len(example.text) + 1):
        parts.append(closing.get(position, ""))
        parts.append(opening.get(position, ""))
        parts.append(example.text[position : position + 1])
    return "".join(parts)


MarkProblem = Literal["no_head", "no_tail", "many_heads", "many_tails", "nested_marks", "empty_entity"]


def parse_marked(marked: str) -> tuple[str, Span, Span] | MarkProblem:
    """Turn a marked sentence back into ``(text, head, tail)``, or name what is wrong with it.

    Blanks inside the marks are moved out of the entity, so that a span never carries them.
    """
    text: list[str] = []
    length = 0
    spans: dict[str, list[Span]] = {HEAD_OPEN: [], TAIL_OPEN: []}
    closes = {HEAD_OPEN: HEAD_CLOSE, TAIL_OPEN: TAIL_CLOSE}
    inside: str | None = None
    start = 0
    for character in marked:
        if character in closes:
            if inside is not None:
                return "nested_marks"
            inside, start = character, length
        elif character in closes.values():
            if inside is None or closes[inside] != character:
                return "nested_marks"
            spans[inside].append((start, length))
            inside = None
        else:
            text.append(character)
            length += 1
    if inside is not None:
        return "nested_marks"
    if not spans[HEAD_OPEN]:
        return "no_head"
    if not spans[TAIL_OPEN]:
        return "no_tail"
    if len(spans[HEAD_OPEN]) > 1:
        return "many_heads"
    if len(spans[TAIL_OPEN]) > 1:
        return "many_tails"
    plain = "".join(text)
    head, tail = tightened(plain, spans[HEAD_OPEN][0]), tightened(plain, spans[TAIL_OPEN][0])
    if head is None or tail is None:
        return "empty_entity"
    return plain, head, tail


def tightened(text: str, span: Span) -> Span | None:
    """``span`` without the blanks at its ends; ``None`` where it holds nothing else."""
    inner = text[slice(*span)]
    if not inner.strip():
        return None
    start = span[0] + len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())


def mask_entities(text: str, head: Span, tail: Span) -> str:
    """``text`` with the entities replaced by ``HEAD`` and ``TAIL``: its structure without its names."""
    first, second = sorted(((head, "HEAD"), (tail, "TAIL")))
    return text[: first[0][0]] + first[1] + text[first[0][1] : second[0][0]] + second[1] + text[second[0][1] :]
