"""Self-BLEU, ROUGE-L and n-grams against their definitions, and against what the reference packages gave."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_sentences import SHARED

from divray.diversity import overlap
from divray.diversity.ngrams import all_grams, counts_of, words_of
from divray.diversity.overlap import max_rouge_l, self_bleu

SENTENCES = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=8)


def bleu(references: list[list[str]], sentence: list[str], size: int) -> float:
    """As nltk 3.10 has it (``sentence_bleu``, ``method1``)."""
    if not sentence:
        return 0.0
    product = 1.0
    for n in range(1, size + 1):
        own, *others = (Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for text in [sentence, *references])
        matches = sum(min(count, max(other[gram] for other in others)) for gram, count in own.items())
        if n == 1 and not matches:
            return 0.0
        product *= ((matches or 0.1) / max(1, len(sentence) - n + 1)) ** (1 / size)
    closest = min((len(text) for text in references), key=lambda length: (abs(length - len(sentence)), length))
    return product * (1.0 if len(sentence) >= closest else math.exp(1 - closest / len(sentence)))


def longest_common(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


@settings(max_examples=200)
@given(SENTENCES, st.integers(1, 5))
def test_self_bleu_is_bleu_against_all_others(texts: list[str], size: int) -> None:
    words = [text.split() for text in texts]
    expected = [bleu(words[:i] + words[i + 1 :], words[i], size) if len(words) > 1 else 0.0 for i in range(len(words))]
    assert self_bleu(texts, size).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2, [0.669864, 0.755929, 0.57735, 0.0, 1.0, 0.0, 0.09759]),
        (3, [0.588641, 0.699903, 0.456671, 0.0, 0.464159, 0.0, 0.057537]),
        (4, [0.497357, 0.643459, 0.354948, 0.0, 0.316228, 0.0, 0.046714]),
        (5, [0.368541, 0.564147, 0.199682, 0.0, 0.251189, 0.0, 0.043665]),
    ],
)
def test_self_bleu_agrees_with_fast_bleu(size: int, expected: list[float]) -> None:
    """``fast_bleu.SelfBLEU`` 0.0.90 with uniform weights; nltk 3.10.4 gives the same."""
    assert self_bleu(SHARED, size).tolist() == pytest.approx(expected, abs=1e-6)


def test_rouge_l_agrees_with_rouge_score() -> None:
    """``rouge_scorer.RougeScorer(["rougeL"])`` of rouge-score 0.1.2, the largest of each sentence with the others."""
    assert max_rouge_l(SHARED).tolist() == pytest.approx([0.6, 0.6, 0.363636, 0.0, 0.444444, 0.0, 0.4], abs=1e-6)


@settings(max_examples=80)
@given(SENTENCES)
def test_rouge_l_is_the_largest_over_pairs(texts: list[str]) -> None:
    words = [text.split() for text in texts]
    expected = []
    for i, a in enumerate(words):
        values = [2 * longest_common(a, b) / (len(a) + len(b)) for j, b in enumerate(words) if i != j and a and b]
        expected.append(max(values, default=0.0))
    assert max_rouge_l(texts).tolist() == pytest.approx(expected)


def test_long_texts_are_compared_by_their_first_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_rouge_l(["a " * 5000 + "x", "a " * 5000 + "y z"]).tolist() == [1.0, 1.0]
    assert overlap.ROUGE_WORDS == 512
    assert self_bleu(["word " * 300_000, "word"])[1] == pytest.approx(0.1 ** (3 / 4) * math.exp(1 - 300_000))


@settings(max_examples=100)
@given(SENTENCES)
def test_grams_are_the_words_in_a_window(texts: list[str]) -> None:
    words = words_of(texts)
    assert words.lengths.tolist() == [len(text.split()) for text in texts]
    for size, grams in enumerate(all_grams(words, 4), start=1):
        made = [(row, tuple(text.split()[i : i + size])) for row, text in enumerate(texts) for i in range(len(text.split()) - size + 1)]
        assert grams.rows.tolist() == [row for row, _ in made]
        names = {gram: number for (_, gram), number in zip(made, grams.ids.tolist(), strict=True)}
        assert [names[gram] for _, gram in made] == grams.ids.tolist() and sorted(names.values()) == list(range(grams.distinct))
        rows, ids, counts = counts_of(grams)
        expected = Counter((row, names[gram]) for row, gram in made)
        assert dict(zip(zip(rows.tolist(), ids.tolist(), strict=True), counts.tolist(), strict=True)) == expected


def test_words_are_lower_cased_and_split_at_white_space() -> None:
    words = words_of(["A  b\tA\u00a0B", "", "É é"])
    assert words.offsets.tolist() == [0, 4, 4, 6]
    assert np.unique(words.ids[:4]).tolist() == [0, 1] and words.ids[4] == words.ids[5]
