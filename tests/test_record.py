"""The record that the LLM writes, in both forms, and the way back."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_examples import marked

from divray.prompts.parsing import Form, parse_record
from divray.prompts.record import Record, as_json, as_lines, completion_of, json_schema, labels, list_pattern, read_records
from divray.relations import Example, Relation

TYPED = Relation("works_for", "The head works for the tail.", "person", "organization")
ADA = marked("In May, {Hask Motors} hired [Ada Varn].")
ADAS = Record("Ada Varn", "Hask Motors", "In May, Hask Motors hired Ada Varn.")
BO = Record("Bo Lind", "Alden Mill", "Bo Lind is the cook of Alden Mill.")
BOS_LINES = " Bo Lind\nTail (organization): Alden Mill\nSentence: Bo Lind is the cook of Alden Mill.\n"


def test_an_example_as_lines_and_as_json() -> None:
    lines = "Head (person): Ada Varn\nTail (organization): Hask Motors\nSentence: In May, Hask Motors hired Ada Varn."
    assert as_lines(TYPED, ADA) == lines
    assert as_lines(Relation("r", ""), ADA).startswith("Head: Ada Varn\nTail: Hask Motors\n")
    assert as_json(ADA) == '{"head": "Ada Varn", "tail": "Hask Motors", "sentence": "In May, Hask Motors hired Ada Varn."}'
    broken = Example("In May,\n Hask  Motors hired Ada.", (27, 30), (9, 21), "r")
    assert as_lines(TYPED, broken).count("\n") == 2 and "\\n" not in as_json(broken)


def test_a_completion_ends_where_sampling_stops() -> None:
    assert completion_of(TYPED, ADA, given=True, chat=False) == " In May, Hask Motors hired Ada Varn.\n"
    whole = completion_of(TYPED, ADA, given=False, chat=False)
    assert f"Head (person):{whole}" == f"{as_lines(TYPED, ADA)}\n\n"
    assert json.loads(completion_of(TYPED, ADA, given=True, chat=True)) == {"sentence": ADAS.sentence}
    assert completion_of(TYPED, ADA, given=False, chat=True) == as_json(ADA)


ADAS_JSON = as_json(ADA)


@pytest.mark.parametrize(
    ("completion", "records"),
    [
        (BOS_LINES, [BO]),
        (f"Head (person):{BOS_LINES}", [BO]),
        (f"{BOS_LINES}\n{as_lines(TYPED, ADA)}", [BO, ADAS]),
        (f"{BOS_LINES}\n\nHead: Ada Varn\n  Tail: Hask Motors\nSentence:\n{ADAS.sentence}\nThat is all.", [BO, ADAS]),
        (f"{BOS_LINES}Note: done.", [BO]),
        (" Bo Lind\nSentence: Bo Lind came.", [Record("Bo Lind", "", "Bo Lind came.")]),
        ("\nTail (organization): Alden Mill\nSentence: Bo Lind came.", []),
        (" Bo Lind\nTail: Alden Mill\n", []),
        (" Bo Lind\nTail: Alden Mill\nSentence: \n", []),
        (" a word", []),
        ("  \n", []),
        (ADAS_JSON, [ADAS]),
        (f"Here it is:\n\n```json\n{ADAS_JSON}\n```\nI hope that {{helps}}!", [ADAS]),
        (f"{{not this}} {ADAS_JSON}", [ADAS]),
        (f"[{ADAS_JSON}, {ADAS_JSON}]", [ADAS, ADAS]),
        (f"1. {ADAS_JSON}\n2. {ADAS_JSON}", [ADAS, ADAS]),
        (f'{{"records": [{ADAS_JSON}]}}', [ADAS]),
        (f'[{ADAS_JSON}, {{"head": "Bo", "tail": "Al', [ADAS]),
        ('{"head": "Bo", "sentence": "Bo  came\n home."}', [Record("Bo", "", "Bo came home.")]),
        ('{"head": ["Bo"], "tail": null, "sentence": "Bo came."}', [Record("", "", "Bo came.")]),
        ('{"head": "Bo", "tail": "Al", "sentence": " "}', []),
        ('{"head": "Bo", "tail": "Al", "sentence": 3}', []),
        (
            '{"head": "B\\u00f6", "tail": "Al\\ud83d", "sentence": "B\\u00f6 \\ud83d\\ude00 \\udc00came."}',
            [Record("Bö", "Al", "Bö 😀 came.")],
        ),
    ],
)
def test_records_are_read_back(completion: str, records: list[Record]) -> None:
    assert read_records(completion) == records


@pytest.mark.parametrize(
    ("completion", "sentence"),
    [
        (" Bo Lind came.\n", "Bo Lind came."),
        (" Bo Lind came.\nHead (person): Cy", "Bo Lind came."),
        ("Sentence: Bo Lind came.", "Bo Lind came."),
        ("Head (person): Bo\nTail (organization): Al\nSentence: Bo Lind came.", "Bo Lind came."),
        (" Head of the mill: Bo Lind.", "Head of the mill: Bo Lind."),
        ('{"sentence": "Bo Lind came."}', "Bo Lind came."),
        ('Sure: {"head": "other", "tail": "names", "sentence": "Bo Lind came."}', "Bo Lind came."),
    ],
)
def test_a_given_pair_needs_the_sentence_alone(completion: str, sentence: str) -> None:
    assert read_records(completion, ("Bo", "Al")) == [Record("Bo", "Al", sentence)]
    assert read_records("\n", ("Bo", "Al")) == read_records('{"sentence": ""}', ("Bo", "Al")) == []


@pytest.mark.parametrize(
    ("completion", "given", "count"),
    [
        (f"{BOS_LINES}\nHead (person): Ada", None, 1),
        (BOS_LINES.rstrip(), None, 0),
        (f"[{ADAS_JSON}, {ADAS_JSON[:-3]}", None, 1),
        (" Bo Lind ca", ("Bo", "Al"), 0),
    ],
)
def test_of_a_cut_completion_the_whole_records_are_read(completion: str, given: tuple[str, str] | None, count: int) -> None:
    assert len(read_records(completion, given, cut=True)) == count


TYPES = ("", "person", "schema:Person", "person (living)", "a+b [c]", "人物")


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_any_form_stand_in_the_labels(kind: str) -> None:
    relation = Relation("r", "", kind, kind)
    records = [completion_of(relation, ADA, given=False, chat=False)] * 2
    completion = f"{records[0]}{labels(relation)[0]}{records[1]}"
    assert read_records(completion) == [ADAS, ADAS]
    assert re.fullmatch(list_pattern(relation, 2), completion.removesuffix("\n"))
    assert not re.fullmatch(list_pattern(relation, 3), completion.removesuffix("\n"))


@pytest.mark.parametrize(("given", "count", "fields"), [(False, 1, 3), (True, 1, 1), (False, 3, 3)])
def test_the_schema_has_the_fields_of_the_record(given: bool, count: int, fields: int) -> None:
    schema = json.loads(json_schema(given, count))
    assert (schema.get("minItems"), schema.get("maxItems")) == ((count, count) if count > 1 else (None, None))
    record = schema["items"] if count > 1 else schema
    assert list(record["properties"]) == record["required"] == ["head", "tail", "sentence"][-fields:]


LETTERS = "abXyé İßﬁЖяΑαסש京都とกख9ア'’-&."
FILLING = LETTERS + '"“”{}[]()|:,!?،。।\\'


def words(alphabet: str) -> st.SearchStrategy[str]:
    return st.text(alphabet=alphabet, min_size=3, max_size=12).map(lambda text: " ".join(text.split())).filter(bool)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    first, second = draw(words(LETTERS)), draw(words(LETTERS))
    before, between, after = draw(words(FILLING)), draw(words(FILLING)), draw(words(FILLING))
    text = f"{before} {first} {between} {second} {after}"
    place = len(before) + 1
    one = (place, place + len(first))
    place = one[1] + len(between) + 2
    other = (place, place + len(second))
    head, tail = draw(st.permutations([one, other]))
    return Example(text, head, tail, "r")


ANY_FORM = Form(
    ended=False, asserted=False, capital=False, single=False, bare=False, varied=False, whole_names=False, least_words=0,
    persons=frozenset(), placeholders=frozenset(), pairs=frozenset(), texts=frozenset(),
)  # fmt: skip
"""Takes what can be found."""


@given(examples(), st.sampled_from(TYPES), st.booleans(), st.booleans())
def test_an_example_comes_back_whole(example: Example, kind: str, given: bool, chat: bool) -> None:
    assume(not example.text.startswith("{"))  # such a line is read as JSON
    relation = Relation("r", "", kind, kind)
    completion = completion_of(relation, example, given, chat)
    pair = (example.head_text, example.tail_text)
    (record,) = read_records(completion, pair if given else None)
    assert record == Record(*pair, example.text)
    made = parse_record(record, ANY_FORM)
    assert made.rejection in (
        "",
        "doubled_head",
        "doubled_tail",
        "same_entities",
        "placeholder_entity",
        "too_short",
        "repetition",
        "overlap",
    )
    if not made.rejection:
        assert (made.text, made.head, made.tail) == (example.text, example.head, example.tail)
