from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray import measures
from divray.measures import diversity_of, ngram_vectors, vendi_score

SHARED = [
    "the cat sat on the mat and the dog sat on the mat",
    "the cat sat on the red mat",
    "a dog ran over the mat and the cat",
    "rain fell",
    "the cat",
    "completely different words stand here today",
    "the the the the the the the",
]
"""Sentences on which the scores were compared with the reference packages."""
SENTENCES = st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1, max_size=12)


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


def test_distinct_pairs_of_words() -> None:
    assert diversity_of(["a b a b", "A b"])["distinct_2"] == pytest.approx(2 / 4)
    assert diversity_of(["a"])["distinct_2"] == 0 == diversity_of([])["distinct_2"]


def test_the_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(list("abcdefgh"), 7)) for _ in range(40)]
    vectors = unit(40, 12).astype(np.float32)
    order = random.permutation(40)
    assert diversity_of(texts, vectors) == diversity_of([texts[i] for i in order], vectors[order])


@pytest.mark.parametrize("texts", [[], [""], ["one"], ["", "", "one two three four"]])
def test_tiny_sets_have_defined_scores(texts: list[str]) -> None:
    made = diversity_of(texts, np.ones((len(texts), 3), np.float32))
    assert made["n"] == len(texts)
    assert set(made) == {"n", "vendi_ngram", "vendi_embedding", "distinct_2"}
    assert all(value is None or math.isfinite(value) for value in made.values())
    assert diversity_of(texts)["vendi_embedding"] is None


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "SAMPLED_ROWS", 8)
    made = diversity_of([f"word{i} other{i} third{i}" for i in range(50)])
    assert made["vendi_ngram"] == pytest.approx(8)


def test_scripts_without_blanks_have_words() -> None:
    alike, different = ["他在上海工作", "他在北京工作"], ["他在上海工作", "我们明年去旅行"]
    assert diversity_of(alike)["vendi_ngram"] < diversity_of(different)["vendi_ngram"]
