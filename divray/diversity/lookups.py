"""Near pairs of new sets and indexed ones, by the postings of a :class:`~divray.diversity.index.TextIndex`.

Of two sets with ``J(x, y) >= t``, ``y`` holds at least ``⌈t |x|⌉`` elements of ``x``, hence one of any ``|x| - ⌈t |x|⌉ + 1``
of them: the prefix filter of :mod:`divray.diversity.prefixes`, from one side.  Those that the fewest indexed sets hold are
looked up, and each set found there is checked as a whole.  So nothing is missed, at any threshold.

Postings are uint64, ascending: the upper half of an element, then the number of a set that holds it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.hashing import sort_unsigned
from divray.diversity.joins import jaccard
from divray.diversity.prefixes import grown
from divray.diversity.shingles import Shingles

_ROW = np.uint64((1 << 32) - 1)
_SHIFT = np.uint64(32)


def postings_of(sets: Shingles) -> npt.NDArray[np.uint64]:
    """uint64, one an element of each set."""
    postings = (sets.values >> _SHIFT << _SHIFT) | np.repeat(np.arange(len(sets), dtype=np.uint64), np.diff(sets.offsets))
    postings.sort()
    return postings


@njit(cache=True)
def _from(postings, at, least):  # type: ignore[no-untyped-def]
    """The first place from ``at`` on whose element is ``least`` or more, in steps that double."""
    low, high, step = at, at, 1
    while high < len(postings) and postings[high] >> _SHIFT < least:
        low = high + 1
        high += step
        step *= 2
    high = min(high, len(postings))
    while low < high:
        middle = (low + high) // 2
        if postings[middle] >> _SHIFT < least:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def runs_of(values, order, postings):  # type: ignore[no-untyped-def]
    """Where each element's postings start, and how many they are; elements are taken in ascending ``order``."""
    starts, counts = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    start = end = 0
    for n in range(len(order)):
        element = values[order[n]] >> _SHIFT
        if n == 0 or element != values[order[n - 1]] >> _SHIFT:
            start = _from(postings, end, element)
            end = _from(postings, start, element + np.uint64(1))
        starts[order[n]], counts[order[n]] = start, end - start
    return starts, counts


@njit(cache=True)
def look_up(offsets, values, starts, counts, postings, held_offsets, held_values, threshold, most_visits, most):  # type: ignore[no-untyped-def]
    """``(True, sets, rows, similarity)`` of the near pairs; ``False`` first where it would look at more than ``most_visits`` postings."""
    left, right, similarity = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.float64)
    seen = np.full(len(held_offsets) - 1, -1, np.int32)
    longest = 0
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    rarest = np.empty(longest, np.uint64)
    found, visits = 0, 0
    for i in range(len(offsets) - 1):
        start, size = offsets[i], offsets[i + 1] - offsets[i]
        for j in range(size):
            rarest[j] = np.uint64(counts[start + j]) << _SHIFT | np.uint64(j)
        sort_unsigned(rarest, 0, size)
        for j in range(size - int(np.ceil(threshold * size - 1e-9)) + 1):
            place = start + np.int64(rarest[j] & _ROW)
            visits += counts[place]
            if visits > most_visits:
                return False, left[:0], right[:0], similarity[:0]
            for entry in range(starts[place], starts[place] + counts[place]):
                row = np.int64(postings[entry] & _ROW)
                if seen[row] == i:
                    continue
                seen[row] = i
                other = held_offsets[row + 1] - held_offsets[row]
                if min(size, other) < threshold * max(size, other) - 1e-9:
                    continue
                value = jaccard(values, start, start + size, held_values, held_offsets[row], held_offsets[row + 1], threshold)
                if value >= 0:
                    if found == len(left):
                        left, right, similarity = grown(left), grown(right), grown(similarity)
                    left[found], right[found], similarity[found] = i, row, value
                    found += 1
                    if found == most:
                        return True, left[:found], right[:found], similarity[:found]
    return True, left[:found], right[:found], similarity[:found]
