from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.extraction.markers import encode_marked, mark_entities
from divray.models import local_model
from divray.relations import Example

FEW = st.integers(0, 60)


def example(text: str, head: str, tail: str, head_type: str = "", tail_type: str = "") -> Example:
    def span(words: str) -> tuple[int, int]:
        start = text.index(words)
        return start, start + len(words)

    return Example(text, span(head), span(tail), "r", head_type, tail_type)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(local_model("embedded:minilm"))


def test_types_stand_between_the_markers():
    marked = mark_entities(example("Ada was born in Rome.", "Ada", "Rome", "PERSON", "CITY_NAME"))
    assert marked.text == "@ * person * Ada @ was born in # ^ city name ^ Rome # ."
    assert marked.text[marked.head] == "@" and marked.text[marked.tail] == "#"


def test_no_type_part_without_types():
    ada = example("Rome is where Ada was born.", "Ada", "Rome", "person", "")
    assert mark_entities(ada).text == "# Rome # is where @ * person * Ada @ was born."
    assert mark_entities(ada, typed=False).text == "# Rome # is where @ Ada @ was born."


def test_positions_are_right_where_the_text_has_marker_characters():
    marked = mark_entities(example("@ # mail a@b.c (Ada) #1 Rome", "Ada", "Rome"))
    assert marked.text[marked.head :].startswith("@ Ada @")
    assert marked.text[marked.tail :].startswith("# Rome #")


@settings(deadline=None, max_examples=50)
@given(before=FEW, between=FEW, after=FEW, tail_first=st.booleans(), max_length=st.integers(6, 40))
def test_cut_sentences_keep_both_markers(tokenizer, before, between, after, tail_first, max_length):
    first, second = ("Rome", "Ada") if tail_first else ("Ada", "Rome")
    text = " ".join(["x"] * before + [first] + ["y"] * between + [second] + ["z"] * after)
    marked = mark_entities(example(text, "Ada", "Rome", "person", "city"))
    (encoded,) = encode_marked(tokenizer, [marked], max_length)
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert len(tokens) <= max_length
    assert tokens[encoded.head] == "@" and tokens[encoded.tail] == "#"
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"


def test_a_short_sentence_is_not_cut(tokenizer):
    marked = mark_entities(example("Ada was born in Rome.", "Ada", "Rome"))
    (encoded,) = encode_marked(tokenizer, [marked], 96)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "@ ada @ was born in # rome #."
    assert encode_marked(tokenizer, [], 96) == []
