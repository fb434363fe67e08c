from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.dedup.shingle import Shingles, fold, shingle

TEXTS = st.lists(st.text(alphabet="aAbB .,é\u00a0\u3000\t\nİΣß😀", max_size=30), max_size=20)


def rows(shingles: Shingles) -> list[list[int]]:
    return [shingles.values[start:end].tolist() for start, end in pairwise(shingles.offsets)]


def word_grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def character_grams(text: str, n: int) -> set[str]:
    plain = " ".join(text.lower().split())
    return {plain[i : i + n] for i in range(max(1, len(plain) - n + 1))}


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 4), st.sampled_from(["word", "char"]))
def test_sets_correspond_one_to_one_to_python_ngrams(texts: list[str], n: int, kind: str) -> None:
    hashed = shingle(texts, kind, n)  # type: ignore[arg-type]
    grams = [(word_grams if kind == "word" else character_grams)(text, n) for text in texts]
    assert [len(row) for row in rows(hashed)] == [len(set_) for set_ in grams]
    made = rows(hashed)
    for i, mine in enumerate(made):
        assert mine == sorted(set(mine))
        for j in range(i):
            assert len(set(mine) & set(made[j])) == len(grams[i] & grams[j])


def test_short_and_empty_texts_are_one_shingle() -> None:
    made = rows(shingle(["", "  ", "One", "one", "one two", "two one", "one two three"], "word", 3))
    assert all(len(row) == 1 for row in made)
    assert made[0] == made[1] and made[2] == made[3]
    assert len({tuple(row) for row in made}) == 5
    assert rows(shingle([], "word", 3)) == []


def test_punctuation_counts_and_case_does_not() -> None:
    plain = rows(shingle(["don't stop the co-op now"], "word", 2))
    assert rows(shingle(["Don't stop, the co-op now"], "word", 2)) != plain
    assert rows(shingle(["Don't STOP the Co-op now"], "word", 2)) == plain


def test_any_arrow_form_gives_the_same() -> None:
    texts = ["a b c d", "é f g", "", "h"]
    wanted = rows(shingle(texts))
    sliced = pa.array(["x", *texts]).slice(1)
    assert rows(shingle(sliced)) == rows(shingle(sliced.cast(pa.large_string()))) == wanted
    assert rows(shingle(pa.chunked_array([sliced]))) == wanted
    assert rows(shingle(pa.chunked_array([texts[:1], texts[1:]]))) == wanted
    assert rows(shingle(pa.array(texts, pa.large_string()))) == wanted


def test_long_text() -> None:
    words = [f"w{i}" for i in range(150_000)]
    assert len(shingle([" ".join(words)]).values) == len(words) - 2


def test_hashes_are_fixed_and_the_same_in_every_process() -> None:
    wanted = "[8513607782009071966, 11087228575493277033, 7803819729735651895]"
    assert str(shingle(["The quick é fox", "x"]).values.tolist()) == wanted
    code = "from divray.dedup.shingle import shingle; print(shingle(['The quick é fox', 'x']).values.tolist())"
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b c", "a b c", "", "x y z w"]), max_size=12))
def test_equal_sets_are_folded(texts: list[str]) -> None:
    sets, first, group = fold(shingle(texts))
    assert rows(sets) == [rows(shingle(texts))[row] for row in first]
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        seen.setdefault(text, i)
        assert first[group[i]] == seen[text]
    assert first.tolist() == sorted(seen.values())


@pytest.mark.parametrize("text", ["他在上海工作了很多年", "เขาทำงานที่นี่", "彼は東京で働く"])
def test_letters_of_scripts_without_blanks_are_words(text: str) -> None:
    one, spaced = rows(shingle([text, " ".join(text)]))
    assert len(one) == len(text) - 2 and one == spaced
