"""Exact similarity join of sets by prefix, length and position filters (AllPairs, Bayardo et al. 2007; PPJoin, Xiao et al. 2008).

With the elements of every set put in one global order, rarest first, two sets ``x`` and ``y`` with
``J(x, y) >= t`` share an element within the first ``|x| - ceil(t |x|) + 1`` of ``x`` and the same of
``y``.  Only those prefixes are indexed, and each pair that meets there is checked on the whole sets:
nothing is missed, nothing is guessed.

Any global order is a right one; rarest first is merely fast.  So elements are not sorted by their exact
frequencies: the order is that of a table of 8-bit counters that hashes share (hence "count, then hash").
A counter of 1 proves an element to occur nowhere else, so that such elements are never indexed; a set
whose whole prefix is made of them has no near neighbour.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.hashing import sort_unsigned
from divray.diversity.shingles import Shingles
from divray.errors import InputError

_HASH = np.uint64((1 << 48) - 1)
_SMALL = 48
COUNTED_BITS = 30
"""The table of counters has at most ``2^30`` of them."""

MOST_PAIRS = 200_000_000
"""More near pairs than these are an error rather than the end of the memory."""

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


class Prefixes(NamedTuple):
    """The indexed part of each set's prefix.

    Attributes:
        offsets: int64 ``[n + 1]``.
        keys: uint64 ``[offsets[n]]``, ascending within a set: the element's count in the upper 16 bits, 48 bits of its hash.
        skipped: int32 ``[n]``, how many elements stand before them, being the set's own.
    """

    offsets: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    skipped: npt.NDArray[np.int32]


class Postings(NamedTuple):
    """Room for the sets that hold each distinct key.

    Attributes:
        tokens: uint32, the number of each entry of ``Prefixes.keys`` among the distinct keys.
        starts: int64 ``[distinct + 1]``.
    """

    tokens: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]

    def visits(self) -> int:
        """Upper bound on the pairs that the join looks at."""
        runs = np.diff(self.starts).astype(np.float64)
        return int((runs * (runs - 1) / 2).sum())


def count_elements(
    values: npt.NDArray[np.uint64], bits: int | None = None, counts: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """How many times each slot of a table of ``2^bits`` is hit, 255 for more; an element's slot are its leading bits.

    An element that occurs once has a slot of its own, and so a count of 1, with probability ``exp(-m / 2^bits)``.
    Where ``counts`` is given, it is added to.
    """
    if counts is None:
        counts = np.empty(1 << (table_bits(len(values)) if bits is None else bits), np.uint8)  # numpy has only these on huge pages
        counts.fill(0)
    _count(values, counts)
    return counts


def table_bits(elements: int) -> int:
    """For ``m`` elements between ``3 m`` and ``6 m`` counters."""
    return min(COUNTED_BITS, max(10, int(3 * elements).bit_length()))


def prefixes(shingles: Shingles, threshold: float, counts: npt.NDArray[np.uint8]) -> Prefixes:
    """The elements by which each set must be found."""
    return Prefixes(*_prefixes(shingles.offsets, shingles.values, counts, np.uint64(65 - len(counts).bit_length()), threshold))


def postings(found: Prefixes) -> Postings:
    """Number the distinct keys and count their sets."""
    return Postings(*_postings(found.keys, 1 << max(4, int(len(found.keys) * 1.5).bit_length())))


def by_size(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Stable order of the sets, smallest first."""
    small = sizes.max(initial=0) < 1 << 16
    return np.argsort(sizes.astype(np.uint16) if small else sizes, kind="stable")


def exact_join(shingles: Shingles, threshold: float, most_visits: int | None = None, own: int | None = None) -> Found | None:
    """All pairs with Jaccard similarity >= ``threshold``, as ``(row, row, similarity)`` in no set order.

    Sets from number ``own`` on are not compared with each other.  Returns ``None`` where it would look at more than
    ``most_visits`` pairs.
    """
    found = prefixes(shingles, threshold, count_elements(shingles.values))
    posted = postings(found)
    if most_visits is not None and posted.visits() > most_visits:
        return None
    return join(shingles, found, posted, threshold, sets=own)


def join(
    shingles: Shingles,
    found: Prefixes,
    posted: Postings,
    threshold: float,
    keys: npt.NDArray[np.bool_] | None = None,
    sets: int | None = None,
) -> Found:
    """Check the pairs that meet in a key.

    Args:
        keys: bool, one an entry of ``found.keys``: only pairs whose *first* shared key is one of these.
        sets: Only pairs of which one is among the first ``sets`` sets.
    """
    order = by_size(np.diff(shingles.offsets))
    mine = np.zeros(0, np.bool_) if keys is None else keys
    first = len(shingles) if sets is None else sets
    left, right, similarity = _join(*shingles, order, *found, *posted, mine, first, threshold, MOST_PAIRS)
    check_pairs(len(left), threshold)
    return left.astype(np.int64), right.astype(np.int64), similarity


def check_pairs(pairs: int, threshold: float) -> None:
    """Raises InputError where there are :data:`MOST_PAIRS` pairs or more."""
    if pairs >= MOST_PAIRS:
        problem = f"more than {MOST_PAIRS:,} pairs of different texts are near each other at {threshold}"
        raise InputError("texts", "", problem, "Raise the threshold, or take out what most of the texts have in common.")


@njit(cache=True)
def grown(array):  # type: ignore[no-untyped-def]
    """A copy of ``array`` with twice the room."""
    larger = np.empty(2 * len(array), array.dtype)
    for i in range(len(array)):
        larger[i] = array[i]
    return larger


@njit(cache=True)
def jaccard(values, start_a, end_a, start_b, end_b, threshold):  # type: ignore[no-untyped-def]
    """Jaccard similarity of two ascending slices of ``values``; -1 as soon as it can't reach ``threshold``."""
    total = (end_a - start_a) + (end_b - start_b)
    shared = np.int64(0)
    if total <= _SMALL:
        # Few enough for all comparisons at once, which are vectors.
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
def _count(values, counts):  # type: ignore[no-untyped-def]
    shift = np.uint64(0)
    while np.uint64(len(counts)) << shift != 0:
        shift += np.uint64(1)
    for i in range(len(values)):
        slot = values[i] >> shift
        held = counts[slot]
        counts[slot] = held + np.uint8(held < 255)


@njit(cache=True)
def _prefixes(offsets, values, counts, shift, threshold):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    out_offsets, skipped = np.zeros(n + 1, np.int64), np.zeros(n, np.int32)
    keys = np.empty(max(1024, n), np.uint64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    shared = np.empty(longest, np.uint64)
    cursor = 0
    for i in range(n):
        size, held = offsets[i + 1] - offsets[i], np.int64(0)
        length = min(size, size - int(np.ceil(threshold * size - 1e-9)) + 1)
        for j in range(offsets[i], offsets[i + 1]):
            count = counts[values[j] >> shift]
            shared[held] = np.uint64(count) << np.uint64(48) | values[j] & _HASH
            held += np.int64(count > 1)
        own = size - held
        wanted = length - own
        if wanted > 0:
            sort_unsigned(shared, 0, held)
            while wanted < held and shared[wanted] == shared[wanted - 1]:  # equal keys have no order among them
                wanted += 1
            while cursor + wanted > len(keys):
                keys = grown(keys)
            for j in range(wanted):
                keys[cursor + j] = shared[j]
            cursor += wanted
            skipped[i] = own
        out_offsets[i + 1] = cursor
    return out_offsets, keys[:cursor].copy(), skipped


@njit(cache=True)
def _postings(keys, slots):  # type: ignore[no-untyped-def]
    mask = np.uint64(slots - 1)
    held, number = np.zeros(slots, np.uint64), np.empty(slots, np.uint32)
    tokens, counts = np.empty(len(keys), np.uint32), np.zeros(len(keys) + 1, np.int64)
    distinct = 0
    for j in range(len(keys)):
        slot = keys[j] & mask
        while held[slot] != 0 and held[slot] != keys[j]:
            slot = (slot + np.uint64(1)) & mask
        if held[slot] == 0:
            held[slot], number[slot] = keys[j], distinct
            distinct += 1
        tokens[j] = number[slot]
        counts[number[slot] + 1] += 1
    for t in range(distinct):
        counts[t + 1] += counts[t]
    return tokens, counts[: distinct + 1].copy()


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
def _join(offsets, values, order, key_offsets, keys, skipped, tokens, starts, own, first, threshold, most):  # type: ignore[no-untyped-def]
    left, right, similarity = np.empty(1024, np.int32), np.empty(1024, np.int32), np.empty(1024, np.float64)
    found, share = 0, threshold / (1.0 + threshold)
    heads, tails = starts.copy(), starts.copy()
    posted, sizes, rests = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
    seen = np.full(len(order), -1, np.int32)
    for i in order:
        size = offsets[i + 1] - offsets[i]
        least = threshold * size - 1e-9
        for k in range(key_offsets[i], key_offsets[i + 1]):
            if len(own) > 0 and not own[k]:
                continue
            token = tokens[k]
            rest = size - skipped[i] - (k - key_offsets[i])
            while heads[token] < tails[token] and sizes[heads[token]] < least:
                heads[token] += 1
            for entry in range(heads[token], tails[token]):
                j = posted[entry]
                if seen[j] == i or (i >= first and j >= first):
                    continue
                seen[j] = i
                # What two sets share lies at and after the first key that they share.
                if min(rest, rests[entry]) < share * (size + sizes[entry]) - 1e-9:
                    continue
                if len(own) > 0 and _first_shared(keys, key_offsets[i], k + 1, key_offsets[j], key_offsets[j + 1]) != keys[k]:
                    continue
                value = jaccard(values, offsets[i], offsets[i + 1], offsets[j], offsets[j + 1], threshold)
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
