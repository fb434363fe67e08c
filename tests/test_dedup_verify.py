from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.dedup import verify
from divray.dedup.propose import band_keys, choose_bands
from divray.dedup.shingle import Shingles
from divray.dedup.verify import Pairs, near_duplicates
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
    ordered = np.sort(np.stack([pairs.left, pairs.right], axis=1), axis=1).tolist()
    return sorted((left, right, value) for (left, right), value in zip(ordered, pairs.similarity.tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(SETS, THRESHOLDS)
def test_exact_join_is_brute_force(sets: list[frozenset[int]], threshold: float) -> None:
    assert listed(near_duplicates(shingles_of(sets), threshold)) == brute(sets, threshold)


@settings(max_examples=100, deadline=None)
@given(SETS, st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_minhash_reports_nothing_wrong_and_is_repeatable(sets: list[frozenset[int]], threshold: float) -> None:
    found = listed(near_duplicates(shingles_of(sets), threshold, method="minhash"))
    assert set(found) <= set(brute(sets, threshold))
    assert found == listed(near_duplicates(shingles_of(sets), threshold, method="minhash"))


@settings(max_examples=100, deadline=None)
@given(SETS, THRESHOLDS, st.integers(0, 25), st.sampled_from(["exact", "minhash"]))
def test_sets_of_others_are_not_compared_with_each_other(sets: list[frozenset[int]], threshold: float, own: int, method: Any) -> None:
    found = listed(near_duplicates(shingles_of(sets), threshold, method, own))
    assert found == [pair for pair in listed(near_duplicates(shingles_of(sets), threshold, method)) if pair[0] < own]


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_minhash_finds_nearly_all_pairs_at_the_threshold(threshold: float) -> None:
    """4,000 pairs of similarity just at the threshold, unlike all other sets."""
    random = np.random.default_rng(7)
    size, n = 24, 4000
    shared = round(2 * size * threshold / (1 + threshold))
    hashes = random.integers(0, 2**64, (n, 2 * size - shared), dtype=np.uint64)
    sets = np.stack([hashes[:, :size], hashes[:, size - shared :]], axis=1).reshape(2 * n, size)
    sets = np.sort(sets, axis=1)
    shingles = Shingles(np.arange(2 * n + 1, dtype=np.int64) * size, sets.reshape(-1))
    similarity = shared / (2 * size - shared)
    exact = near_duplicates(shingles, similarity, "exact")
    assert len(exact.left) == n and (np.abs(exact.right - exact.left) == 1).all()
    assert len(near_duplicates(shingles, similarity, "minhash").left) >= 0.999 * n


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_chosen_bands_keep_the_recall(threshold: float) -> None:
    bands, length = choose_bands(threshold)
    assert 1 - (1 - threshold**length) ** bands >= 0.9999
    assert bands * length <= 224 or length == 1


def test_sets_that_meet_too_often_are_compared_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    shingles = shingles_of([frozenset(range(10)), frozenset(range(9)), frozenset(range(5)), frozenset({40})])
    exact = near_duplicates(shingles, 0.8)
    by_bands: list[float] = []
    monkeypatch.setattr(verify, "band_keys", lambda sets, threshold: by_bands.append(threshold) or band_keys(sets, threshold))
    assert listed(near_duplicates(shingles, 0.8)) == listed(exact) and not by_bands
    for name in ("EXACT_VISITS", "EXACT_VISITS_PER_SET"):
        monkeypatch.setattr(verify, name, 0)
    assert listed(near_duplicates(shingles, 0.8, "exact")) == [(0, 1, 0.9)] and not by_bands
    assert listed(near_duplicates(shingles, 0.8)) == listed(exact) and by_bands == [0.8]


@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_too_many_pairs_are_an_error(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    shingles = shingles_of([frozenset({*range(20), 100 + i}) for i in range(8)])
    assert len(near_duplicates(shingles, 0.8, "exact").left) == 28
    monkeypatch.setattr(verify, "MOST_PAIRS", 10)
    with pytest.raises(InputError, match="near each other"):
        near_duplicates(shingles, 0.8, method)
