"""Examples of the tests' own, from marked sentences."""

from __future__ import annotations

from divray.relations import Example, Span, overlap, parse_marked


def marked(text: str, relation: str = "r", example_id: str = "") -> Example:
    parsed = parse_marked(text)
    assert parsed is not None, text
    return Example(*parsed, relation, example_id=example_id)


def span_problem(text: str, head: Span, tail: Span) -> str:
    """What is wrong with the two spans of ``text``, or ``""`` if nothing is."""
    for name, (start, end) in (("head", head), ("tail", tail)):
        if not 0 <= start < end <= len(text):
            return f"the {name} span ({start}, {end}) does not lie in the text"
        if text[start:end] != text[start:end].strip():
            return f"the {name} carries loose blanks"
    return "head and tail overlap" if overlap(head, tail) else ""
