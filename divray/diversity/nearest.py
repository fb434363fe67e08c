"""Each set's most similar other one, by counting shared elements through a full index."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.hashing import sort_unsigned
from divray.diversity.shingles import Shingles


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


def nearest_cost(sets: RankedSets) -> int:
    """Index entries that :func:`nearest_sets` visits."""
    counts = sets.counts.astype(np.float64)
    return int((counts * counts).sum())


def nearest_sets(
    sets: RankedSets, preference: npt.NDArray[np.int64], floor: float, own: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For every set the most similar other one, by counting shared elements through a full index.

    Args:
        sets: ``n`` sets.
        preference: int64 ``[n]`` by original row; among equally similar sets the lowest is named.
        floor: Similarities below it don't count.
        own: Original rows from this number on are neighbours only, and have none themselves.

    Returns:
        ``(nearest, similarity)`` by original row: int64 ``[n]`` (-1 where there is none), float64 ``[n]`` (then 0).
    """
    n = len(sets.rows)
    starts = np.concatenate([[0], np.cumsum(sets.counts)]).astype(np.int64)
    by_rank = np.argsort(sets.ranks, kind="stable")
    posted = np.repeat(np.arange(n, dtype=np.int32), np.diff(sets.offsets))[by_rank]
    found, values = np.full(n, -1, np.int64), np.zeros(n)
    asked = np.flatnonzero(sets.rows < (n if own is None else own))
    shared, touched = np.zeros(n, np.int32), np.empty(n, np.int32)
    _nearest(sets.offsets, sets.ranks, starts, posted, shared, touched, preference[sets.rows], floor, asked, found, values)
    nearest, similarity = np.full(n, -1, np.int64), np.zeros(n)
    nearest[sets.rows] = np.where(found >= 0, sets.rows[found], -1)
    similarity[sets.rows] = values
    return nearest, similarity


@njit(cache=True)
def _sort_rows(offsets, values):  # type: ignore[no-untyped-def]
    for i in range(len(offsets) - 1):
        sort_unsigned(values, offsets[i], offsets[i + 1])


@njit(cache=True)
def _nearest(offsets, ranks, starts, posted, shared, touched, preference, floor, asked, nearest, similarity):  # type: ignore[no-untyped-def]
    for i in asked:
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
