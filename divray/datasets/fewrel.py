"""FewRel (Han et al. 2018): a JSON object, relation -> list of instances.

An instance has ``tokens`` and, for head ``h`` and tail ``t``, ``[name, id, [[positions of a mention], …]]``.
The first pair of mentions that are contiguous and disjoint stands for the instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from divray.datasets.detokenize import detokenize
from divray.datasets.source import Source, entity_span
from divray.relations import Example, Span, overlap
from divray.textfiles import read_json


def read_fewrel(source: Source) -> Iterator[Example]:
    """Yield the instances relation by relation; the id is ``relation/position in its list``.

    Raises:
        InputError: A field is missing or of the wrong kind, or a position lies outside.
    """
    relations = read_json(source.path)
    if not isinstance(relations, dict):
        raise source.error("", "no JSON object", "Give a FewRel JSON file: relation -> list of instances.")
    for name, rows in relations.items():
        label = source.label(name, name)
        if not isinstance(rows, list):
            raise source.error(name, "no list of instances", "Every relation has a list.")
        for number, row in enumerate(rows, start=1):
            place = f"{name}, row {number}"
            if not isinstance(row, dict):
                raise source.error(place, "no JSON object", "Every instance is an object with `tokens`, `h` and `t`.")
            tokens = source.tokens(place, "tokens", row.get("tokens"))
            heads, tails = (_mentions(source, f"{place}, {key}", row.get(key), len(tokens)) for key in ("h", "t"))
            text, spans = detokenize(tokens, join_infixes=True)
            pair = _pair(source, label, spans, heads, tails)
            if pair is not None:
                yield from source.usable(Example(text, *pair, label, example_id=source.identity(place, f"{name}/{number}", "")))


def _mentions(source: Source, place: str, value: Any, count: int) -> list[list[int]]:
    mend = "Give [name, id, [[token positions], …]] with positions from 0."
    if not isinstance(value, list) or len(value) < 3 or not isinstance(value[2], list) or not value[2]:
        raise source.error(place, "missing" if value is None else "no entity with mentions", mend)
    for mention in value[2]:
        if not isinstance(mention, list) or not mention:
            raise source.error(place, "an empty mention", mend)
    return [sorted(source.position(place, position, count, mend) for position in mention) for mention in value[2]]


def _pair(source: Source, label: str, spans: list[Span], heads: list[list[int]], tails: list[list[int]]) -> tuple[Span, Span] | None:
    """First usable ``(head, tail)``; ``None`` where the instance was skipped and counted."""
    whole = [[m for m in mentions if m[-1] - m[0] == len(m) - 1] for mentions in (heads, tails)]
    if not all(whole):
        source.skip("discontinuous_entity", label)
        return None
    pairs = [(entity_span(spans, head[0], head[-1]), entity_span(spans, tail[0], tail[-1])) for head in whole[0] for tail in whole[1]]
    return next((pair for pair in pairs if all(start < end for start, end in pair) and not overlap(*pair)), pairs[0])
