"""Pairs above a cosine, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divray.diversity import cells, joins
from divray.diversity.cells import approximate_semantic_pairs
from divray.diversity.semantic import distances, novelty, pairs_between, semantic_pairs
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


def test_cells_find_the_pairs_that_they_state_and_no_other() -> None:
    vectors = unit(3000, 24, 2)
    rng = np.random.default_rng(3)
    vectors[:300] = vectors[300:600] + 0.03 * rng.normal(size=(300, 24))
    vectors[:300] /= np.linalg.norm(vectors[:300], axis=1, keepdims=True)
    exact = semantic_pairs(vectors, 0.93)
    there = set(zip(exact.left.tolist(), exact.right.tolist(), strict=True))
    found = approximate_semantic_pairs(vectors, 0.93, 0.98, cells=60, sample=1500)
    pairs = set(zip(found.pairs.left.tolist(), found.pairs.right.tolist(), strict=True))
    assert pairs <= there and len(there) > 300
    assert found.recall >= 0.98 and found.sampled_pairs > 100
    assert len(pairs) / len(there) == pytest.approx(found.recall, abs=0.03)
    by_pair = dict(zip(zip(exact.left.tolist(), exact.right.tolist(), strict=True), exact.similarity.tolist(), strict=True))
    assert all(
        similarity == pytest.approx(by_pair[left, right], abs=1e-12)
        for left, right, similarity in zip(*(column.tolist() for column in found.pairs), strict=True)
    )
    fewer = approximate_semantic_pairs(vectors, 0.93, 0.1, cells=60, sample=1500)
    assert fewer.cells_a_row == 1 and len(fewer.pairs) <= len(found.pairs)


def test_a_small_partition_is_compared_whole() -> None:
    vectors = unit(200, 24, 4)
    found = approximate_semantic_pairs(vectors, 0.9)
    assert (found.recall, found.sampled_pairs) == (1.0, 0)
    assert all((a == b).all() for a, b in zip(found.pairs, semantic_pairs(vectors, 0.9), strict=True))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_rows_in_cells(n: int) -> None:
    found = approximate_semantic_pairs(unit(n, 8, 5), -0.9, cells=3)
    assert len(found.pairs) <= 1 and found.recall == 1.0


def test_more_pairs_than_memory_holds_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (100, 1))
    monkeypatch.setattr(joins, "MOST_PAIRS", 4951)  # one more than there are
    assert len(semantic_pairs(vectors, 0.9, 7)) == len(approximate_semantic_pairs(vectors, 0.9).pairs) == 4950
    monkeypatch.setattr(joins, "MOST_PAIRS", 4950)
    for find in (
        lambda: semantic_pairs(vectors, 0.9, 7),
        lambda: approximate_semantic_pairs(vectors, 0.9),
        lambda: approximate_semantic_pairs(vectors, 0.9, cells=3, sample=10),
        lambda: pairs_between(vectors, np.arange(50), np.arange(100), 0.9),
    ):
        with pytest.raises(InputError, match="more than 4,950 pairs"):
            find()


@pytest.mark.parametrize("compacted", [1, 1000, 1 << 20])
def test_a_pair_in_many_cells_counts_once(monkeypatch: pytest.MonkeyPatch, compacted: int) -> None:
    vectors = unit(400, 6, 6)
    exact = semantic_pairs(vectors, 0.3)
    monkeypatch.setattr(joins, "MOST_PAIRS", 2 * len(exact) + 401)  # the estimate meets each pair twice, and each row itself
    monkeypatch.setattr(cells, "_COMPACTED", compacted)
    found = approximate_semantic_pairs(vectors, 0.3, 1.0, cells=8, sample=400)
    assert found.cells_a_row >= 4 and found.pairs.left.tolist() == exact.left.tolist()
    assert found.pairs.similarity.tolist() == pytest.approx(exact.similarity.tolist(), abs=1e-12)


def test_distances_of_parts_are_those_of_the_whole() -> None:
    vectors = unit(300, 40, 7)
    unique = np.arange(300) % 3 > 0
    own = np.where(unique, np.cumsum(unique) - 1, -1)
    whole = novelty(vectors, unique)
    for block in (7, 512):
        parts = [distances(vectors[some], vectors[unique], own[some], block) for some in (slice(0, 10), slice(10, 211), slice(211, 300))]
        assert (np.concatenate(parts) == whole).all()
