"""Sentences for display: head and tail marked, differing words marked, nothing invisible left in."""

from __future__ import annotations

import difflib
import itertools
import re
from typing import Any, NamedTuple

Row = dict[str, Any]

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


class Piece(NamedTuple):
    """A stretch of a sentence with one look; ``classes`` are CSS classes (``head``, ``tail``, ``differs``)."""

    text: str
    classes: str


def visible(text: object) -> str:
    """``text`` with control and direction characters replaced by ``\N{REPLACEMENT CHARACTER}``, so that it can't disguise itself."""
    return _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


def pieces(row: Row, differing: list[tuple[int, int]] | None = None) -> list[Piece]:
    """The sentence of a table row, cut where the look changes."""
    text = row["text"]
    spans = [("head", row["head_start"], row["head_end"]), ("tail", row["tail_start"], row["tail_end"])]
    spans += [("differs", start, end) for start, end in differing or []]
    cuts = sorted({0, len(text), *(at for _, start, end in spans for at in (start, end) if 0 <= at <= len(text))})
    found = []
    for start, end in itertools.pairwise(cuts):
        classes = [name for name, first, last in spans if first <= start and end <= last]
        found.append(Piece(visible(text[start:end]), " ".join(classes)))
    return found


def side_by_side(row: Row, neighbour: Row) -> tuple[list[Piece], list[Piece]]:
    """Both sentences with the words marked that the other one lacks; head and tail count as equal to each other."""
    left, right = _words(row), _words(neighbour)
    matcher = difflib.SequenceMatcher(None, [word for word, _, _ in left], [word for word, _, _ in right], autojunk=False)
    differing: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            for words, first, last, found in ((left, a, b, differing[0]), (right, c, d, differing[1])):
                found += _runs(words[first:last])
    return pieces(row, differing[0]), pieces(neighbour, differing[1])


def _runs(words: list[tuple[str, int, int]]) -> list[tuple[int, int]]:
    """Spans of the stretches between entities."""
    stretches = itertools.groupby(words, key=lambda word: word[0].startswith("\0"))
    return [(run[0][1], run[-1][2]) for entity, run in ((e, list(group)) for e, group in stretches) if not entity]


def _words(row: Row) -> list[tuple[str, int, int]]:
    """``(compared form, start, end)`` of each word, an entity being one word."""
    text = row["text"]
    entities = sorted([(row["head_start"], row["head_end"], "\0head"), (row["tail_start"], row["tail_end"], "\0tail")])
    found, at = [], 0
    for start, end, name in [*entities, (len(text), len(text), "")]:
        found += [(match.group().lower(), at + match.start(), at + match.end()) for match in re.finditer(r"\S+", text[at:start])]
        if name:
            found.append((name, start, end))
        at = end
    return found
