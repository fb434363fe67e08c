"""Examples of the tests' own, from marked sentences."""

from __future__ import annotations

from divray.relations import Example, parse_marked


def marked(text: str, relation: str = "r", example_id: str = "") -> Example:
    parsed = parse_marked(text)
    assert parsed is not None, text
    return Example(*parsed, relation, example_id=example_id)
