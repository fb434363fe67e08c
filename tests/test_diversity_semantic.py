"""Pairs above a cosine, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divray.diversity.semantic import novelty, semantic_pairs
from divray.errors import InputError


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d))
    vectors = centres[rng.integers(5, size=n)] + 0.4 * rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 60), st.integers(0, 5), st.sampled_from([-0.5, 0.3, 0.8, 0.95]), st.sampled_from([1, 7, 64]))
def test_pairs_are_those_of_the_whole_matrix(n: int, seed: int, threshold: float, block: int) -> None:
    vectors = unit(n, 12, seed)
    exact = vectors.astype(np.float64)
    cosines = exact @ exact.T
    expected = [(i, j) for i in range(n) for j in range(i + 1, n) if cosines[i, j] >= threshold]
    pairs = semantic_pairs(vectors, threshold, block)
    assert list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == expected
    assert pairs.similarity.tolist() == pytest.approx([cosines[i, j] for i, j in expected], abs=1e-12)


def test_blocks_change_nothing() -> None:
    vectors = unit(300, 40, 1)
    vectors[10:20] = vectors[0]
    one, other = semantic_pairs(vectors, 0.7, 32), semantic_pairs(vectors, 0.7, 301)
    assert all((a == b).all() for a, b in zip(one, other, strict=True)) and len(one) > 100
    unique = np.arange(300) % 3 > 0
    assert (novelty(vectors, unique, 32) == novelty(vectors, unique, 301)).all()


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
