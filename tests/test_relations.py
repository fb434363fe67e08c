from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_examples import span_problem

from divray.relations import Example, mask_entities, parse_marked, render_marked

WORDS = st.text(alphabet="abcdefgh ", min_size=1, max_size=12).map(str.strip).filter(bool)


@given(WORDS, WORDS, WORDS, WORDS, WORDS, st.booleans())
def test_render_and_parse_are_inverse(before: str, first: str, between: str, second: str, after: str, head_first: bool) -> None:
    text = f"{before} {first} {between} {second} {after}."
    one = (len(before) + 1, len(before) + 1 + len(first))
    start = one[1] + len(between) + 2
    other = (start, start + len(second))
    head, tail = (one, other) if head_first else (other, one)
    example = Example(text, head, tail, "r")
    assert parse_marked(render_marked(example)) == (text, head, tail)
    assert span_problem(text, head, tail) == ""


@pytest.mark.parametrize(
    "marked",
    ["No marks.", "Only [a].", "[a] [b] {c}.", "[a] {b} {c}.", "[a {b}] c.", "[a} {b].", "[a {b.", "[ ] hits {b}."],
)
def test_badly_marked_sentences_are_none(marked: str) -> None:
    assert parse_marked(marked) is None


def test_blanks_leave_the_entity() -> None:
    assert parse_marked("The [ storm ] hit {Rome}.") == ("The  storm  hit Rome.", (5, 10), (16, 20))


def test_masking_keeps_the_structure() -> None:
    assert mask_entities("Ada lives in Rome.", (0, 3), (13, 17)) == "HEAD lives in TAIL."
    assert mask_entities("Rome is home to Ada.", (16, 19), (0, 4)) == "TAIL is home to HEAD."
    assert mask_entities("Ada was born in Rome in 1952, at 7 a.m.", (0, 3), (16, 20)) == "HEAD was born in TAIL in 0, at 0 a.m."
