"""The pairs of near sets, or the sets that are in one, by what :mod:`divray.diversity.prefixes` indexes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.prefixes import ALL, Mask, Postings, Prefixes, count_elements, grown, postings, prefixes
from divray.diversity.shingles import Shingles
from divray.errors import InputError

_SMALL = 48

MOST_PAIRS = 200_000_000
"""More near pairs than these are an error rather than the end of the memory."""

PASSED, INDEXED, ASKED = np.int8(0), np.int8(1), np.int8(2)
"""What becomes of a key of a set: nothing, found by other sets, or that and finding others."""
EVERY: npt.NDArray[np.int8] = np.zeros(0, np.int8)
"""All keys are asked."""

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def exact_join(shingles: Shingles, threshold: float, most_visits: int | None = None, own: int | None = None) -> Found | None:
    """All pairs with Jaccard similarity >= ``threshold``, as ``(row, row, similarity)`` in no set order.

    Sets from number ``own`` on are not compared with each other.  Returns ``None`` where it would look at more than
    ``most_visits`` pairs.
    """
    found = prefixes(shingles, threshold, count_elements(shingles))
    posted = postings(found)
    if most_visits is not None and posted.visits() > most_visits:
        return None
    return join(shingles, found, posted, threshold, sets=own)


def exact_flags(shingles: Shingles, threshold: float, rows: Mask, near: Mask, most_visits: int | None = None) -> bool:
    """Set ``near[i]`` for each set that has a neighbour of Jaccard similarity >= ``threshold``, without looking for all of them.

    Args:
        rows: bool ``[n]``, the sets that are compared.
        near: bool ``[n]``, changed in place; sets known to have one, such as an equal one outside ``rows``, come set.

    Returns:
        ``False``, and nothing was done, where it would look at more than ``most_visits`` pairs.
    """
    found = prefixes(shingles, threshold, count_elements(shingles, rows=rows), rows)
    posted = postings(found)
    if most_visits is not None and posted.visits() > most_visits:
        return False
    _join(*shingles, by_size(np.diff(shingles.offsets)), *found, *posted, EVERY, len(shingles), near, threshold, MOST_PAIRS)
    return True


def join(
    shingles: Shingles,
    found: Prefixes,
    posted: Postings,
    threshold: float,
    use: npt.NDArray[np.int8] = EVERY,
    sets: int | None = None,
) -> Found:
    """Check the pairs that meet in a key.

    Args:
        use: One an entry of ``found.keys``; only pairs whose *first* shared key is used are found, by the larger set of the
            two (of equally large ones the later) where that asks.  A set's keys may all be passed: it is then in no pair.
        sets: Only pairs of which one is among the first ``sets`` sets.
    """
    order = by_size(np.diff(shingles.offsets))
    first = len(shingles) if sets is None else sets
    left, right, similarity = _join(*shingles, order, *found, *posted, use, first, ALL, threshold, MOST_PAIRS)
    check_pairs(len(left), threshold)
    return left.astype(np.int64), right.astype(np.int64), similarity


def by_size(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Stable order of the sets, smallest first."""
    small = sizes.max(initial=0) < 1 << 16
    return np.argsort(sizes.astype(np.uint16) if small else sizes, kind="stable")


def check_pairs(pairs: int, threshold: float) -> None:
    """Raises InputError where there are :data:`MOST_PAIRS` pairs or more."""
    if pairs >= MOST_PAIRS:
        problem = f"more than {MOST_PAIRS:,} pairs of different texts are near each other at {threshold}"
        raise InputError("texts", "", problem, "Raise the threshold, or take out what most of the texts have in common.")


@njit(cache=True)
def jaccard(values, start_a, end_a, others, start_b, end_b, threshold):  # type: ignore[no-untyped-def]
    """Jaccard similarity of an ascending slice of ``values`` and one of ``others``; -1 as soon as it can't reach ``threshold``."""
    total = (end_a - start_a) + (end_b - start_b)
    shared = np.int64(0)
    if total <= _SMALL:
        # Few enough for all comparisons at once, which are vectors.
        for a in range(start_a, end_a):
            value, hits = values[a], np.int64(0)
            for b in range(start_b, end_b):
                hits += np.int64(others[b] == value)
            shared += hits
    else:
        needed = int(np.ceil(threshold / (1.0 + threshold) * total - 1e-9))
        a, b = start_a, start_b
        while a < end_a and b < end_b:
            if shared + min(end_a - a, end_b - b) < needed:
                return -1.0
            if values[a] == others[b]:
                shared += 1
                a += 1
                b += 1
            elif values[a] < others[b]:
                a += 1
            else:
                b += 1
    similarity = shared / (total - shared)
    return similarity if similarity >= threshold else -1.0


@njit(cache=True)
def _first_shared(keys, a, end_a, b, end_b):  # type: ignore[no-untyped-def]
    """The first key that two ascending slices share; 0, which no key is, where they share none."""
    while a < end_a and b < end_b:
        if keys[a] == keys[b]:
            return keys[a]
        if keys[a] < keys[b]:
            a += 1
        else:
            b += 1
    return np.uint64(0)


@njit(cache=True)
def _join(offsets, values, order, key_offsets, keys, skipped, tokens, starts, use, first, near, threshold, most):  # type: ignore[no-untyped-def]
    """The pairs; none where there is ``near``, which says of each set whether it is in one and is all that is wanted then."""
    left, right, similarity = np.empty(1024, np.int32), np.empty(1024, np.int32), np.empty(1024, np.float64)
    found, share, flags = 0, threshold / (1.0 + threshold), len(near) > 0
    heads, tails = starts.copy(), starts.copy()
    posted, sizes, rests = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
    seen = np.full(len(order), -1, np.int32)
    for i in order:
        size = offsets[i + 1] - offsets[i]
        least = threshold * size - 1e-9
        for k in range(key_offsets[i], key_offsets[i + 1]):
            if len(use) > 0 and use[k] == PASSED:
                continue
            token = tokens[k]
            rest = size - skipped[i] - (k - key_offsets[i])
            asked = len(use) == 0 or use[k] == ASKED
            while heads[token] < tails[token] and sizes[heads[token]] < least:
                heads[token] += 1
            for entry in range(heads[token], tails[token] if asked else heads[token]):
                j = posted[entry]
                if seen[j] == i or (i >= first and j >= first) or (flags and near[i] and near[j]):
                    continue
                seen[j] = i
                # What two sets share lies at and after the first key that they share.
                if min(rest, rests[entry]) < share * (size + sizes[entry]) - 1e-9:
                    continue
                if len(use) > 0 and _first_shared(keys, key_offsets[i], k + 1, key_offsets[j], key_offsets[j + 1]) != keys[k]:
                    continue
                value = jaccard(values, offsets[i], offsets[i + 1], values, offsets[j], offsets[j + 1], threshold)
                if value >= 0 and flags:
                    near[i] = near[j] = True
                elif value >= 0:
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
