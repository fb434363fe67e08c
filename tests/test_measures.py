from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_sentences import SHARED

from divray.dedup import verify
from divray.errors import InputError
from divray.measures import diversity, diversity_of, max_rouge_l, overlap, self_bleu, semantic_pairs, vendi_score
from divray.measures.diversity import entropy, mean_cosine, ngram_vectors
from divray.measures.overlap import all_grams, counts_of, words_of
from divray.texts import connective_patterns

SENTENCES = st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1, max_size=12)
REPEATING = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=8)


def direct_vendi(kernel: np.ndarray) -> float:
    weights = np.linalg.eigvalsh(kernel / len(kernel))
    return math.exp(-sum(w * math.log(w) for w in weights if w > 1e-12))


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "d"), [(5, 40), (40, 5), (30, 30), (1, 3)])
def test_vendi_equals_the_n_by_n_eigenvalues(n: int, d: int) -> None:
    vectors = unit(n, d)
    assert vendi_score(vectors) == pytest.approx(direct_vendi(vectors @ vectors.T), rel=1e-9)


def test_vendi_of_known_sets() -> None:
    assert vendi_score(np.tile(unit(1, 8), (10, 1))) == pytest.approx(1)
    assert vendi_score(np.eye(10)) == pytest.approx(10)
    assert vendi_score(np.repeat(np.eye(4), 3, axis=0)) == pytest.approx(4)
    assert vendi_score(np.zeros((0, 3))) == 0


@settings(max_examples=100, deadline=None)
@given(SENTENCES)
def test_ngram_kernel_is_the_mean_cosine_of_counts(texts: list[str]) -> None:
    def counts(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) or Counter([tuple(words)])

    def cosine(one: Counter[tuple[str, ...]], two: Counter[tuple[str, ...]]) -> float:
        return sum(one[g] * two[g] for g in one) / math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in two.values()))

    kernel = np.array([[np.mean([cosine(counts(a, n), counts(b, n)) for n in (1, 2)]) for b in texts] for a in texts])
    vectors = ngram_vectors(texts)
    assert np.allclose((vectors @ vectors.T).toarray(), kernel)
    assert vendi_score(vectors) == pytest.approx(direct_vendi(kernel))


def test_vendi_of_many_float32_rows_is_nearly_exact() -> None:
    vectors = unit(20_000, 48).astype(np.float32)
    vectors[:15_000] = vectors[np.random.default_rng(1).integers(0, 12, 15_000)]
    assert vendi_score(vectors) == pytest.approx(vendi_score(vectors.astype(np.float64)), rel=1e-5)


def test_vendi_agrees_with_the_vendi_score_package() -> None:
    """vendi-score 0.0.3: ``vendi.score_X`` and ``score_dual``; ``score_K`` of the kernel of its ``ngram_vendi_score`` with words
    split at white space."""
    vectors = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8], [0.8, 0, -0.6], [1, 0, 0]])
    assert vendi_score(vectors) == pytest.approx(2.3020576032826665)
    assert vendi_score(ngram_vectors(SHARED)) == pytest.approx(5.385833314849627)


def test_entropy_of_patterns() -> None:
    assert entropy([]) == 0 == entropy(["a", "a"])
    assert entropy(list("abcd")) == pytest.approx(math.log(4))
    assert entropy(list("aab")) == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    row = {"text": "Rome,  the  Home of Ann ,", "head_start": 20, "head_end": 23, "tail_start": 0, "tail_end": 4}
    assert connective_patterns(pa.Table.from_pylist([row])) == ["TAIL , the home of HEAD"]


def test_mean_cosine_and_distinct() -> None:
    vectors = unit(9, 4)
    cosines = vectors @ vectors.T
    assert mean_cosine(vectors) == pytest.approx(cosines[~np.eye(9, dtype=bool)].mean())
    assert mean_cosine(vectors[:1]) is None
    assert diversity_of(["a b a b", "A b"])["distinct_2"] == pytest.approx(2 / 4)
    assert diversity_of(["a"])["distinct_2"] == 0 == diversity_of([])["distinct_1"]


def test_the_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(list("abcdefgh"), 7)) for _ in range(40)]
    vectors = unit(40, 12).astype(np.float32)
    order = random.permutation(40)
    patterns = [text[:3] for text in texts]
    shuffled = [texts[i] for i in order], vectors[order], [patterns[i] for i in order]
    assert diversity_of(texts, vectors, patterns) == diversity_of(*shuffled)


@pytest.mark.parametrize("texts", [[], [""], ["one"], ["", "", "one two three four"]])
def test_tiny_sets_have_defined_scores(texts: list[str]) -> None:
    made = diversity_of(texts, np.ones((len(texts), 3), np.float32))
    assert made["n"] == len(texts)
    assert {
        "vendi_ngram",
        "vendi_embedding",
        "distinct_2",
        "mean_cosine",
        "self_bleu",
        "rouge_l",
    } <= set(made)
    assert all(value is None or math.isfinite(value) for value in made.values())
    assert made["mean_cosine"] == (1.0 if len(texts) > 1 else None)
    assert diversity_of(texts)["vendi_embedding"] is None


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "SAMPLED_ROWS", 8)
    made = diversity_of([f"word{i} other{i} third{i}" for i in range(50)])
    assert made["vendi_ngram"] == pytest.approx(8)


SCORES_OF_TEXTS: list[Callable[[Any], Any]] = [
    diversity_of,
    lambda texts: diversity_of(["a"] * len(texts), patterns=texts),
    lambda texts: self_bleu(texts).tolist(),
    lambda texts: max_rouge_l(texts).tolist(),
    entropy,
    lambda texts: ngram_vectors(texts).toarray().tolist(),
]


@pytest.mark.parametrize("score", SCORES_OF_TEXTS)
def test_scores_take_arrow_columns(score: Callable[[Any], Any]) -> None:
    expected = score(SHARED)
    for column in (
        pa.array(SHARED),
        pa.array(SHARED, pa.large_string()),
        pa.array(SHARED).dictionary_encode(),
        pa.chunked_array([SHARED[:2], SHARED[2:]]),
        pa.array(["", *SHARED])[1:],
    ):
        assert score(column) == expected
    score(pa.chunked_array([], pa.string()))
    broken = pa.array([b"caf\xe9", b"two words"], pa.binary())
    score(pa.StringArray.from_buffers(2, *broken.buffers()[1:]))


@pytest.mark.parametrize("score", SCORES_OF_TEXTS)
@pytest.mark.parametrize("texts", [["a", None], pa.array(["a", None]), pa.chunked_array([["a"], [None]])])
def test_scores_of_a_null_are_an_error(score: Callable[[Any], Any], texts: Any) -> None:
    with pytest.raises(InputError, match="row 1: null instead of a text"):
        score(texts)


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


@settings(max_examples=100)
@given(REPEATING, st.integers(1, 5))
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
@given(REPEATING)
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
@given(REPEATING)
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


def clustered(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d))
    vectors = centres[rng.integers(5, size=n)] + 0.4 * rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 60), st.integers(0, 5), st.sampled_from([-0.5, 0.3, 0.8, 0.95]), st.sampled_from([1, 7, 64]))
def test_pairs_are_those_of_the_whole_matrix(n: int, seed: int, threshold: float, block: int) -> None:
    vectors = clustered(n, 12, seed)
    exact = vectors.astype(np.float64)
    cosines = exact @ exact.T
    expected = [(i, j) for i in range(n) for j in range(i + 1, n) if cosines[i, j] >= threshold]
    pairs = semantic_pairs(vectors, threshold, block)
    found = sorted(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.similarity.tolist(), strict=True))
    assert [(i, j) for i, j, _ in found] == expected
    assert [value for *_, value in found] == pytest.approx([cosines[i, j] for i, j in expected], abs=1e-12)


def test_identical_rows_are_near_at_one() -> None:
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (3, 1))
    assert semantic_pairs(vectors, 1.0).similarity.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("threshold", [-1.0, 1.1, float("nan")])
def test_bad_thresholds(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        semantic_pairs(np.eye(2), threshold)


def test_vectors_of_other_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="unit length"):
        semantic_pairs(2 * np.eye(2), 0.5)


def test_more_pairs_than_memory_holds_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (100, 1))
    monkeypatch.setattr(verify, "MOST_PAIRS", 4951)  # one more than there are
    assert len(semantic_pairs(vectors, 0.9, 7)) == 4950
    monkeypatch.setattr(verify, "MOST_PAIRS", 4950)
    with pytest.raises(InputError, match="more than 4,950 pairs"):
        semantic_pairs(vectors, 0.9, 7)
