from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divray.relations import span_problem
from divray.sampling.parsing import parse_completion


def test_a_good_completion_becomes_a_sample() -> None:
    parsed = parse_completion(" The [storm] caused  a {flood}.\n")
    assert parsed.rejection == ""
    assert parsed.text == "The storm caused a flood."
    assert parsed.text[slice(*parsed.head)] == "storm"
    assert parsed.text[slice(*parsed.tail)] == "flood"


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("The storm caused a {flood}.", "no_head"),
        ("The [storm] caused a flood.", "no_tail"),
        ("The [storm] and [wind] caused a {flood}.", "many_heads"),
        ("The [storm] caused a {flood} and {fire}.", "many_tails"),
        ("The [storm {caused}] a flood.", "nested_marks"),
        ("The [ ] caused a {flood}.", "empty_entity"),
        ("The [head] caused the {tail} to move.", "placeholder_entity"),
        ("The [storm] caused a {Storm} at night.", "same_entities"),
        ("The [storm]y day caused a {flood}.", "bad_span"),
        ("[Ada] saw {Rome}.", "too_short"),
        ("the [storm] caused a {flood}.", "no_sentence_start"),
        ("The [storm] caused a {flood}", "no_sentence_end"),
        ("The [storm] caused a {flood}. It was bad.", "several_sentences"),
        ("The [storm] hit the {WBO}. It was bad.", "several_sentences"),
        ("The [storm] and the sea and the sea and the sea and the sea hit {Rome}.", "repetition"),
        ("The [one two three four five six seven eight nine] caused a {flood}.", "long_entity"),
    ],
)
def test_every_rejection_has_its_reason(completion: str, reason: str) -> None:
    parsed = parse_completion(completion)
    assert parsed.rejection == reason
    assert parsed.text == ""
    assert parsed.head == parsed.tail == (0, 0)


def test_what_the_engine_says_comes_first() -> None:
    assert parse_completion("", error="rejected_request").rejection == "rejected_request"
    assert parse_completion("The [storm] caused a {flood}.", truncated=True).rejection == "truncated"


def test_titles_do_not_end_a_sentence() -> None:
    assert parse_completion("[Dr. Chen] works for {Acme Inc} in Rome.").rejection == ""


@given(st.text(alphabet="ab []{}.A", max_size=40))
def test_a_sample_always_has_sound_spans(completion: str) -> None:
    parsed = parse_completion(completion)
    if not parsed.rejection:
        assert span_problem(parsed.text, parsed.head, parsed.tail) == ""
        assert parsed.text.endswith((".", "!", "?"))


def test_full_stops_inside_a_sentence() -> None:
    assert parse_completion(" The [firm] of J. Smith made 3.5 tons of {steel} for U.S. ships.").rejection == ""
    assert parse_completion(" A small [window] makes a noise.4.1.1 in the old {turban} there.").rejection == "stray_full_stop"
    assert parse_completion(" A small [window] is in part 4.1.1 of the old {turban} there.").rejection == "stray_full_stop"
