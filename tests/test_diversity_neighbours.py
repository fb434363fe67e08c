from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.diversity.minhash import choose_bands, expected_recall
from divray.diversity.neighbours import Pairs, near_duplicate_flags, near_duplicates, nearest_neighbours
from divray.diversity.shingles import Shingles
from divray.errors import InputError

SETS = st.lists(st.frozensets(st.integers(0, 12), min_size=1, max_size=10), max_size=25)
THRESHOLDS = st.sampled_from([0.1, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])


def shingles_of(sets: list[frozenset[int]], seed: int = 0) -> Shingles:
    """Element -> a random 64-bit hash, as real shingles have."""
    hashes = np.random.default_rng(seed).integers(0, 2**64, 4096, dtype=np.uint64)
    rows = [np.sort(hashes[sorted(set_)]) for set_ in sets]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Shingles(offsets, np.concatenate([*rows, np.zeros(0, np.uint64)]))


def brute(sets: list[frozenset[int]], threshold: float) -> list[tuple[int, int, float]]:
    found = []
    for i in range(len(sets)):
        for j in range(i + 1, len(sets)):
            similarity = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            if similarity >= threshold:
                found.append((i, j, similarity))
    return found


def listed(pairs: Pairs) -> list[tuple[int, int, float]]:
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.similarity.tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(SETS, THRESHOLDS)
def test_exact_join_is_brute_force(sets: list[frozenset[int]], threshold: float) -> None:
    assert listed(near_duplicates(*shingles_of(sets), threshold)) == brute(sets, threshold)


@settings(max_examples=150, deadline=None)
@given(SETS, THRESHOLDS)
def test_flags_say_who_is_in_a_pair(sets: list[frozenset[int]], threshold: float) -> None:
    near = {row for one, two, _ in brute(sets, threshold) for row in (one, two)}
    assert near_duplicate_flags(shingles_of(sets), threshold).tolist() == [row in near for row in range(len(sets))]


@settings(max_examples=100, deadline=None)
@given(SETS, st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_minhash_reports_nothing_wrong_and_is_repeatable(sets: list[frozenset[int]], threshold: float) -> None:
    found = listed(near_duplicates(*shingles_of(sets), threshold, method="minhash"))
    assert set(found) <= set(brute(sets, threshold))
    assert found == sorted(found) == listed(near_duplicates(*shingles_of(sets), threshold, method="minhash"))


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_minhash_recall_at_the_threshold_is_what_the_formula_says(threshold: float) -> None:
    """4,000 pairs of similarity just at the threshold, unlike all other sets: with few bands as predicted, by default nearly all."""
    random = np.random.default_rng(7)
    size, n = 24, 4000
    shared = round(2 * size * threshold / (1 + threshold))
    hashes = random.integers(0, 2**64, (n, 2 * size - shared), dtype=np.uint64)
    sets = np.stack([hashes[:, :size], hashes[:, size - shared :]], axis=1).reshape(2 * n, size)
    sets = np.sort(sets, axis=1)
    shingles = Shingles(np.arange(2 * n + 1, dtype=np.int64) * size, sets.reshape(-1))
    similarity = shared / (2 * size - shared)
    exact = near_duplicates(*shingles, similarity, method="exact")
    assert len(exact) == n and (exact.right == exact.left + 1).all()
    few = near_duplicates(*shingles, similarity, permutations=32, bands=8, method="minhash")
    assert len(few) / n == pytest.approx(expected_recall(similarity, 32, 8), abs=0.03)
    assert len(near_duplicates(*shingles, similarity, method="minhash")) >= 0.999 * n


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_chosen_bands_keep_the_recall(threshold: float) -> None:
    permutations, bands = choose_bands(threshold)
    assert permutations % bands == 0
    assert expected_recall(threshold, permutations, bands) >= 0.9999


@settings(max_examples=200, deadline=None)
@given(SETS, st.sampled_from([0.2, 0.5, 0.8]), st.randoms(use_true_random=False))
def test_nearest_is_brute_force_with_ties_by_preference(sets: list[frozenset[int]], floor: float, random: Any) -> None:
    preference = np.array(random.sample(range(len(sets)), len(sets)), np.int64)
    shingles = shingles_of(sets)
    empty = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    nearest, similarity = nearest_neighbours(shingles, preference, floor, empty)
    for i, set_ in enumerate(sets):
        options = [(-len(set_ & o) / len(set_ | o), preference[j], j) for j, o in enumerate(sets) if j != i]
        best = min((option for option in options if -option[0] >= floor), default=(0.0, 0, -1))
        assert (nearest[i], similarity[i]) == (best[2], -best[0])


def test_large_inputs_fall_back_on_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    from divray.diversity import neighbours

    sets = [frozenset(range(10)), frozenset(range(9)), frozenset(range(5)), frozenset({40})]
    shingles = shingles_of(sets)
    exact = near_duplicates(*shingles, 0.8)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1)
    for name in ("EXACT_VISITS", "EXACT_VISITS_PER_SET", "NEAREST_VISITS"):
        monkeypatch.setattr(neighbours, name, 0)
    assert listed(near_duplicates(*shingles, 0.8)) == listed(exact) == [(0, 1, 0.9)]
    nearest, similarity = nearest_neighbours(shingles, np.arange(4), 0.3, exact)
    assert nearest.tolist() == [1, 0, -1, -1] and similarity.tolist() == [0.9, 0.9, 0.0, 0.0]


def test_bad_arguments() -> None:
    shingles = shingles_of([frozenset({1}), frozenset({2})])
    for threshold in (0.0, 1.1, -1.0):
        with pytest.raises(InputError, match="threshold"):
            near_duplicates(*shingles, threshold)
    with pytest.raises(InputError, match="bands"):
        near_duplicates(*shingles, 0.7, permutations=10, bands=3, method="minhash")


@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_too_many_pairs_are_an_error(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    from divray.diversity import joins

    shingles = shingles_of([frozenset({*range(20), 100 + i}) for i in range(8)])
    assert len(near_duplicates(*shingles, 0.8, method="exact")) == 28
    monkeypatch.setattr(joins, "MOST_PAIRS", 10)
    with pytest.raises(InputError, match="near each other"):
        near_duplicates(*shingles, 0.8, method=method)
