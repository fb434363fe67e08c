"""Near-duplicate pairs among sets.  It compares the whole sets of every proposed pair, so every pair that it returns is near."""

from typing import Literal, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.dedup.propose import band_keys, grown, prefix_keys
from divray.dedup.shingle import Shingles
from divray.errors import InputError

Method: TypeAlias = Literal["auto", "exact", "minhash"]

EXACT_VISITS, EXACT_VISITS_PER_SET = 100_000_000, 1_000
"""The join is exact if it compares at most this many pairs in all, or this many for each set (20 µs a set)."""

MOST_PAIRS = 200_000_000
"""This many near pairs raise an error, before they fill the memory."""

_SMALL = 48


class Pairs(NamedTuple):
    """Pairs of row numbers, each once and in no set order, with their exact similarity.

    Attributes:
        left, right: int64 ``[k]``.
        similarity: float64 ``[k]``.
    """

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]

    def take(self, some: npt.NDArray[np.generic]) -> Self:
        """Some of the pairs, by a mask or by their numbers."""
        return type(self)(self.left[some], self.right[some], self.similarity[some])


def near_duplicates(sets: Shingles, threshold: float, method: Method = "auto", own: int | None = None) -> Pairs:
    """All pairs of sets whose Jaccard similarity is at least ``threshold``; precision is always 1.

    ``exact`` is a prefix-filter join with recall 1; ``minhash`` compares sets that agree in a band and has an expected recall of 0.9999
    at the threshold, and more above it.  ``auto`` is ``exact`` if an upper bound on its comparisons is low
    (:data:`EXACT_VISITS`), else ``minhash``.  The bound depends on the sets and the threshold alone.

    Args:
        sets: ``n`` sets; an empty one is near none.  Fold equal ones first (:func:`divray.dedup.shingle.fold`): ``k`` of them are
            ``k (k - 1) / 2`` pairs.
        threshold: In (0, 1].
        method: How.
        own: Sets from this number on are not compared with each other.

    Raises:
        InputError: There are :data:`MOST_PAIRS` pairs or more.
    """
    keys = band_keys(sets, threshold) if method == "minhash" else prefix_keys(sets, threshold)
    if method == "auto" and keys.visits() > max(EXACT_VISITS, EXACT_VISITS_PER_SET * len(sets)):
        keys = band_keys(sets, threshold)
    sizes = np.diff(sets.offsets)
    order = np.argsort(sizes.astype(np.uint16) if sizes.max(initial=0) < 1 << 16 else sizes, kind="stable")
    left, right, similarity = _join(*sets, order, *keys, len(sets) if own is None else own, threshold, MOST_PAIRS)
    if len(left) >= MOST_PAIRS:
        problem = f"at least {MOST_PAIRS:,} pairs of different texts are near each other at threshold {threshold}"
        raise InputError("texts", "", problem, "Raise the threshold, or remove what most of the texts have in common.")
    return Pairs(left.astype(np.int64), right.astype(np.int64), similarity)


@njit(cache=True)
def _jaccard(values, start_a, end_a, start_b, end_b, threshold):  # type: ignore[no-untyped-def]
    """Jaccard similarity of two ascending slices of ``values``; -1 as soon as it can't reach ``threshold``."""
    total = (end_a - start_a) + (end_b - start_b)
    shared = np.int64(0)
    if total <= _SMALL:
        # Few elements: comparing all with all uses vector instructions.
        for a in range(start_a, end_a):
            value, hits = values[a], np.int64(0)
            for b in range(start_b, end_b):
                hits += np.int64(values[b] == value)
            shared += hits
    else:
        needed = int(np.ceil(threshold / (1.0 + threshold) * total - 1e-9))
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
def _join(offsets, values, order, key_offsets, skipped, tokens, starts, own, threshold, most):  # type: ignore[no-untyped-def]
    """Compare the pairs of sets that share a key; ``order`` sorts the sets by size."""
    left, right, similarity = np.empty(1024, np.int32), np.empty(1024, np.int32), np.empty(1024, np.float64)
    found, share = 0, threshold / (1.0 + threshold)
    heads, tails = starts.copy(), starts.copy()
    posted, sizes, rests = np.empty(len(tokens), np.int32), np.empty(len(tokens), np.int32), np.empty(len(tokens), np.int32)
    seen = np.full(len(order), -1, np.int32)
    for i in order:
        size = offsets[i + 1] - offsets[i]
        least = threshold * size - 1e-9
        for k in range(key_offsets[i], key_offsets[i + 1]):
            token = tokens[k]
            rest = size - skipped[i] - (k - key_offsets[i])
            while heads[token] < tails[token] and sizes[heads[token]] < least:
                heads[token] += 1
            for entry in range(heads[token], tails[token]):
                j = posted[entry]
                if seen[j] == i or (i >= own and j >= own):
                    continue
                seen[j] = i
                # What two sets share lies at and after the first key that they share.
                if min(rest, rests[entry]) < share * (size + sizes[entry]) - 1e-9:
                    continue
                value = _jaccard(values, offsets[i], offsets[i + 1], offsets[j], offsets[j + 1], threshold)
                if value >= 0:
                    if found == len(left):
                        left, right, similarity = grown(left), grown(right), grown(similarity)
                    left[found], right[found], similarity[found] = j, i, value
                    found += 1
                    if found == most:
                        return left[:found], right[:found], similarity[:found]
            end = tails[token]
            posted[end], sizes[end], rests[end] = i, size, rest
            tails[token] = end + 1
    return left[:found], right[:found], similarity[:found]
