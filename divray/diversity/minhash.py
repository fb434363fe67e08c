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

from divray.diversity import joins
from divray.diversity.hashing import mix
from divray.diversity.joins import Found, jaccard
from divray.diversity.prefixes import grown
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


def minhash_join(shingles: Shingles, threshold: float, permutations: int, bands: int, own: int | None = None) -> Found:
    """Pairs with Jaccard similarity >= ``threshold`` that agree in a band, as ``(row, row, similarity)`` in no set order.

    A permutation is ``a x + b mod 2^32`` with odd ``a`` on the upper half of each shingle's hash; the constants are the
    same in every process.  Memory: 4 bytes a set and band, and 4 an element.  A pair is checked in the first band in
    which it agrees, once.  Sets from number ``own`` on are not compared with each other.

    Raises:
        InputError: ``bands`` doesn't divide ``permutations``.
    """
    keys = band_keys(shingles, permutations, bands)
    slots = 1 << max(4, len(shingles).bit_length())
    parts, found = [], 0
    for band in range(bands):
        parts.append(_check_band(*shingles, keys, band, slots, threshold, len(shingles) if own is None else own, joins.MOST_PAIRS))
        found += len(parts[-1][0])
        joins.check_pairs(found, threshold)
    left, right, similarity = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return left.astype(np.int64), right.astype(np.int64), similarity


def band_keys(shingles: Shingles, permutations: int, bands: int) -> npt.NDArray[np.uint32]:
    """uint32 ``[n, bands]``, made of the least values of each set under the permutations of each band."""
    if bands < 1 or permutations % bands:
        raise InputError("diversity", "bands", f"{bands} does not divide {permutations} permutations", "Choose a divisor.")
    random = np.random.Generator(np.random.PCG64(_SEED))
    factors = random.integers(0, 2**32, permutations, dtype=np.uint32) | np.uint32(1)
    terms = random.integers(0, 2**32, permutations, dtype=np.uint32)
    upper = (shingles.values >> np.uint64(32)).astype(np.uint32)
    keys = np.empty((len(shingles), bands), np.uint32)
    _band_keys(shingles.offsets, upper, factors, terms, permutations // bands, keys)
    return keys


def band_sets(shingles: Shingles, permutations: int, bands: int) -> Shingles:
    """The bands of each set as a set of hashes, which two sets share where they agree in a band."""
    keys = band_keys(shingles, permutations, bands)
    numbered = keys.astype(np.uint64) << np.uint64(16) | np.arange(bands, dtype=np.uint64)
    return Shingles(np.arange(len(keys) + 1) * bands, np.sort(_mixed(numbered), axis=1).ravel())


@njit(cache=True)
def _mixed(keys):  # type: ignore[no-untyped-def]
    for i in range(keys.shape[0]):
        for j in range(keys.shape[1]):
            keys[i, j] = mix(keys[i, j])
    return keys


@njit(cache=True)
def _band_keys(offsets, upper, factors, terms, length, keys):  # type: ignore[no-untyped-def]
    """``keys[i, b]`` becomes 32 bits made of the least values of set ``i`` under the permutations of band ``b``."""
    for i in range(len(offsets) - 1):
        for band in range(keys.shape[1]):
            key = np.uint64(0x9E3779B97F4A7C15)
            for k in range(band * length, (band + 1) * length):
                factor, term = factors[k], terms[k]
                least = np.uint32(0xFFFFFFFF)
                for j in range(offsets[i], offsets[i + 1]):
                    least = min(least, np.uint32(upper[j] * factor + term))
                key = mix(key ^ np.uint64(least))
            keys[i, band] = np.uint32(key >> np.uint64(32))


@njit(cache=True)
def _check_band(offsets, values, keys, band, slots, threshold, foreign, most):  # type: ignore[no-untyped-def]
    """Compare the pairs that agree in ``band`` and in none before it."""
    n, mask = len(keys), np.uint32(slots - 1)
    heads = np.zeros(slots + 1, np.int64)
    for i in range(n):
        heads[np.int64(keys[i, band] & mask) + 1] += 1
    for slot in range(slots):
        heads[slot + 1] += heads[slot]
    ends, members = heads[:-1].copy(), np.empty(n, np.int32)
    for i in range(n):
        own = np.int64(keys[i, band] & mask)
        members[ends[own]] = i
        ends[own] += 1
    left, right, similarity = np.empty(1024, np.int32), np.empty(1024, np.int32), np.empty(1024, np.float64)
    found = 0
    for slot in range(slots):
        for one in range(heads[slot], ends[slot]):
            i = members[one]
            size_i = offsets[i + 1] - offsets[i]
            for two in range(one + 1, ends[slot]):
                j = members[two]
                if i >= foreign and j >= foreign:
                    continue
                size_j = offsets[j + 1] - offsets[j]
                if keys[i, band] != keys[j, band] or min(size_i, size_j) < threshold * max(size_i, size_j) - 1e-9:
                    continue
                before = 0
                while before < band and keys[i, before] != keys[j, before]:
                    before += 1
                if before < band:
                    continue
                value = jaccard(values, offsets[i], offsets[i + 1], values, offsets[j], offsets[j + 1], threshold)
                if value >= 0:
                    if found == len(left):
                        left, right, similarity = grown(left), grown(right), grown(similarity)
                    left[found], right[found], similarity[found] = i, j, value
                    found += 1
                    if found == most:
                        return left[:found], right[:found], similarity[:found]
    return left[:found], right[:found], similarity[:found]
