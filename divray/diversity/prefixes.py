"""Exact similarity join of sets by prefix and length filters (AllPairs, Bayardo et al. 2007; PPJoin, Xiao et al. 2008).

With the elements of every set put in one global order, rarest first, two sets ``x`` and ``y`` with
``J(x, y) >= t`` share an element within the first ``|x| - ceil(t |x|) + 1`` of ``x`` and the same of
``y``.  Only those prefixes are indexed, and each pair that meets there is checked on the whole sets:
nothing is missed, nothing is guessed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.shingles import Shingles, sort_unsigned

_SLACK = 1e-9


class RankedSets(NamedTuple):
    """The sets ordered by size, their elements replaced by frequency ranks.

    Attributes:
        rows: int64 ``[n]``, the original row at each place; sizes ascend.
        offsets: int64 ``[n + 1]``.
        ranks: uint32 ``[m]``, ascending within a set; rank 0 is the rarest element of all.
        counts: int64 ``[distinct]``, in how many sets the element of each rank occurs.
    """

    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]


def rank(shingles: Shingles) -> RankedSets:
    """Order elements by ``(number of sets, value)`` and sets by ``(size, row)``."""
    rows = np.argsort(np.diff(shingles.offsets), kind="stable")
    ordered = shingles.take(rows)
    _, inverse, counts = np.unique(ordered.values, return_inverse=True, return_counts=True)
    by_count = np.argsort(counts, kind="stable")
    ranks = np.empty(len(counts), np.uint32)
    ranks[by_count] = np.arange(len(counts), dtype=np.uint32)
    flat = ranks[inverse]
    _sort_rows(ordered.offsets, flat)
    return RankedSets(rows, ordered.offsets, flat, counts[by_count])


def prefix_lengths(offsets: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.int64]:
    """How many leading elements of each set are probed and indexed."""
    sizes = np.diff(offsets)
    return np.minimum(sizes, sizes - np.ceil(threshold * sizes - _SLACK).astype(np.int64) + 1)


def join_cost(sets: RankedSets, threshold: float) -> int:
    """Upper bound on the index entries that :func:`exact_join` will visit."""
    posted = _posting_sizes(sets, prefix_lengths(sets.offsets, threshold)).astype(np.float64)
    return int((posted * (posted - 1) / 2).sum())


def exact_join(sets: RankedSets, threshold: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """All pairs with Jaccard similarity >= ``threshold``, as ``(row, row, similarity)`` in no set order."""
    prefixes = prefix_lengths(sets.offsets, threshold)
    starts = np.concatenate([[0], np.cumsum(_posting_sizes(sets, prefixes))]).astype(np.int64)
    posted, seen = np.empty(starts[-1], np.int32), np.full(len(sets.rows), -1, np.int32)
    left, right, similarity = _exact_join(
        sets.offsets, sets.ranks, prefixes, starts[:-1].copy(), starts[:-1].copy(), posted, seen, threshold
    )
    return sets.rows[left], sets.rows[right], similarity


def nearest_cost(sets: RankedSets) -> int:
    """Index entries that :func:`nearest_sets` visits."""
    counts = sets.counts.astype(np.float64)
    return int((counts * counts).sum())


def nearest_sets(
    sets: RankedSets, preference: npt.NDArray[np.int64], floor: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For every set the most similar other one, by counting shared elements through a full index.

    Args:
        sets: ``n`` sets.
        preference: int64 ``[n]`` by original row; among equally similar sets the lowest is named.
        floor: Similarities below it don't count.

    Returns:
        ``(nearest, similarity)`` by original row: int64 ``[n]`` (-1 where there is none), float64 ``[n]`` (then 0).
    """
    n = len(sets.rows)
    starts = np.concatenate([[0], np.cumsum(sets.counts)]).astype(np.int64)
    by_rank = np.argsort(sets.ranks, kind="stable")
    posted = np.repeat(np.arange(n, dtype=np.int32), np.diff(sets.offsets))[by_rank]
    found, values = np.full(n, -1, np.int64), np.zeros(n)
    _nearest(
        sets.offsets, sets.ranks, starts, posted, np.zeros(n, np.int32), np.empty(n, np.int32), preference[sets.rows], floor, found, values
    )
    nearest, similarity = np.full(n, -1, np.int64), np.zeros(n)
    nearest[sets.rows] = np.where(found >= 0, sets.rows[found], -1)
    similarity[sets.rows] = values
    return nearest, similarity


def _posting_sizes(sets: RankedSets, prefixes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many sets hold the element of each rank in their prefix."""
    skipped = sets.offsets[:-1] - (np.cumsum(prefixes) - prefixes)
    at = np.repeat(skipped, prefixes) + np.arange(prefixes.sum())
    return np.bincount(sets.ranks[at], minlength=len(sets.counts))


@njit(cache=True)
def _sort_rows(offsets, values):  # type: ignore[no-untyped-def]
    for i in range(len(offsets) - 1):
        sort_unsigned(values, offsets[i], offsets[i + 1])


@njit(cache=True)
def jaccard(values, start_a, end_a, start_b, end_b, threshold):  # type: ignore[no-untyped-def]
    """Jaccard similarity of two ascending slices of ``values``; -1 as soon as it can't reach ``threshold``."""
    total = (end_a - start_a) + (end_b - start_b)
    needed = int(np.ceil(threshold / (1.0 + threshold) * total - 1e-9))
    shared = 0
    a, b = start_a, start_b
    while a < end_a and b < end_b:
        if shared + min(end_a - a, end_b - b) < needed:
            return -1.0
        if values[a] == values[b]:
            shared += 1
            a += 1
            b += 1
        elif values[a] < values[b]:
            a += 1
        else:
            b += 1
    similarity = shared / (total - shared)
    return similarity if similarity >= threshold else -1.0


@njit(cache=True)
def grown(array):  # type: ignore[no-untyped-def]
    """A copy of ``array`` with twice the room."""
    larger = np.empty(2 * len(array), array.dtype)
    for i in range(len(array)):
        larger[i] = array[i]
    return larger


@njit(cache=True)
def _exact_join(offsets, ranks, prefixes, heads, tails, posted, seen, threshold):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    left, right, similarity = np.empty(1024, np.int32), np.empty(1024, np.int32), np.empty(1024, np.float64)
    found = 0
    for i in range(n):
        least = threshold * (offsets[i + 1] - offsets[i]) - 1e-9
        for j in range(offsets[i], offsets[i] + prefixes[i]):
            token = ranks[j]
            while heads[token] < tails[token] and offsets[posted[heads[token]] + 1] - offsets[posted[heads[token]]] < least:
                heads[token] += 1
            for entry in range(heads[token], tails[token]):
                other = posted[entry]
                if seen[other] == i:
                    continue
                seen[other] = i
                value = jaccard(ranks, offsets[i], offsets[i + 1], offsets[other], offsets[other + 1], threshold)
                if value >= 0:
                    if found == len(left):
                        left, right, similarity = grown(left), grown(right), grown(similarity)
                    left[found], right[found], similarity[found] = other, i, value
                    found += 1
            posted[tails[token]] = i
            tails[token] += 1
    return left[:found], right[:found], similarity[:found]


@njit(cache=True)
def _nearest(offsets, ranks, starts, posted, shared, touched, preference, floor, nearest, similarity):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    for i in range(n):
        count = 0
        for j in range(offsets[i], offsets[i + 1]):
            for entry in range(starts[ranks[j]], starts[ranks[j] + 1]):
                other = posted[entry]
                if shared[other] == 0:
                    touched[count] = other
                    count += 1
                shared[other] += 1
        for place in range(count):
            other = touched[place]
            overlap = shared[other]
            shared[other] = 0
            if other == i:
                continue
            value = overlap / (offsets[i + 1] - offsets[i] + offsets[other + 1] - offsets[other] - overlap)
            if value < floor or value < similarity[i]:
                continue
            if value > similarity[i] or nearest[i] < 0 or preference[other] < preference[nearest[i]]:
                nearest[i], similarity[i] = other, value
