"""MinHash signatures in bands (Broder 1997; Indyk and Motwani 1998) propose; exact Jaccard disposes.

Two sets of similarity ``s`` agree in one minimum with probability ``s``, in all ``r`` of a band with
``s^r``, hence in at least one of ``b`` bands with ``1 - (1 - s^r)^b``: the recall of the proposal.
Every proposed pair is then compared on its whole sets, so no pair is ever reported wrongly.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.prefixes import grown, jaccard
from divray.diversity.shingles import Shingles
from divray.errors import InputError

_SEED = 0x5EED


def expected_recall(similarity: float, permutations: int, bands: int) -> float:
    """``1 - (1 - s^r)^b`` with ``r = permutations / bands``: the chance that a pair is proposed."""
    return 1.0 - (1.0 - similarity ** (permutations // bands)) ** bands


def choose_bands(threshold: float, recall: float = 0.9999, most: int = 224) -> tuple[int, int]:
    """The banding with the longest bands (fewest false proposals) that keeps ``recall`` at ``threshold``.

    Args:
        threshold: Jaccard similarity of the hardest pairs that must be found, in (0, 1].
        recall: Least :func:`expected_recall` there.
        most: Most permutations to spend; bands of one are taken however many they need.

    Returns:
        ``(permutations, bands)``; (136, 34) at 0.7.
    """
    for length in range(8, 1, -1):
        bands = _bands_needed(threshold**length, recall)
        if bands * length <= most:
            return bands * length, bands
    bands = _bands_needed(threshold, recall)
    return bands, bands


def _bands_needed(agreement: float, recall: float) -> int:
    return 1 if agreement >= 1.0 else max(1, math.ceil(math.log1p(-recall) / math.log1p(-agreement)))


def minhash_join(
    shingles: Shingles, threshold: float, permutations: int, bands: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs with Jaccard similarity >= ``threshold`` that agree in a band, as ``(row, row, similarity)``.

    A band at a time, so that memory stays at one key a set.  A permutation is ``a x + b mod 2^32`` with odd
    ``a`` on the upper half of each shingle's hash; the constants are the same in every process.

    Raises:
        InputError: ``bands`` doesn't divide ``permutations``.
    """
    if bands < 1 or permutations % bands:
        raise InputError("diversity", "bands", f"{bands} does not divide {permutations} permutations", "Choose a divisor.")
    length = permutations // bands
    random = np.random.Generator(np.random.PCG64(_SEED))
    factors = random.integers(0, 2**32, permutations, dtype=np.uint32) | np.uint32(1)
    terms = random.integers(0, 2**32, permutations, dtype=np.uint32)
    upper = (shingles.values >> np.uint64(32)).astype(np.uint32)
    keys = np.empty(len(shingles), np.uint64)
    packed, similarities = np.zeros(0, np.uint64), np.zeros(0)
    for band in range(bands):
        part = slice(band * length, (band + 1) * length)
        _band_keys(shingles.offsets, upper, factors[part], terms[part], keys)
        order = np.argsort(keys, kind="stable").astype(np.int64)
        pairs, values = _check_runs(keys, order, shingles.offsets, shingles.values, threshold)
        packed, at = np.unique(np.concatenate([packed, pairs]), return_index=True)
        similarities = np.concatenate([similarities, values])[at]
    return (packed >> np.uint64(32)).astype(np.int64), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64), similarities


@njit(cache=True)
def _band_keys(offsets, upper, factors, terms, keys):  # type: ignore[no-untyped-def]
    for i in range(len(offsets) - 1):
        key = np.uint64(0x9E3779B97F4A7C15)
        for k in range(len(factors)):
            factor, term = factors[k], terms[k]
            least = np.uint32(0xFFFFFFFF)
            for j in range(offsets[i], offsets[i + 1]):
                least = min(least, np.uint32(upper[j] * factor + term))
            key = (key ^ np.uint64(least)) * np.uint64(0xBF58476D1CE4E5B9)
            key ^= key >> np.uint64(29)
        keys[i] = key


@njit(cache=True)
def _check_runs(keys, order, offsets, values, threshold):  # type: ignore[no-untyped-def]
    """Compare all pairs within each run of equal keys; pairs come back as ``smaller row << 32 | larger row``."""
    n = len(order)
    pairs, similarity = np.empty(1024, np.uint64), np.empty(1024, np.float64)
    found, start = 0, 0
    while start < n:
        end = start + 1
        while end < n and keys[order[end]] == keys[order[start]]:
            end += 1
        for one in range(start, end):
            for two in range(one + 1, end):
                i, j = order[one], order[two]
                size_i, size_j = offsets[i + 1] - offsets[i], offsets[j + 1] - offsets[j]
                if min(size_i, size_j) < threshold * max(size_i, size_j) - 1e-9:
                    continue
                value = jaccard(values, offsets[i], offsets[i + 1], offsets[j], offsets[j + 1], threshold)
                if value >= 0:
                    if found == len(pairs):
                        pairs, similarity = grown(pairs), grown(similarity)
                    pairs[found] = np.uint64(i) << np.uint64(32) | np.uint64(j)
                    similarity[found] = value
                    found += 1
        start = end
    return pairs[:found], similarity[:found]
