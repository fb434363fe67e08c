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

from divray.diversity.hashing import FEW, rank_into, sort_unsigned
from divray.diversity.shingles import Shingles

_HASH = np.uint64((1 << 48) - 1)

Mask = npt.NDArray[np.bool_]
ALL: Mask = np.zeros(0, np.bool_)
"""The empty mask: everything."""

COUNTED_BITS = 30
"""The table of counters has at most ``2^30`` of them."""


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

    def visits(self, held: Mask = ALL, asked: Mask = ALL) -> int:
        """Upper bound on the pairs that the join looks at where, of the entries of ``Prefixes.keys``, only ``held`` are found and
        only ``asked``, some of these, find others; if they are not all of a key's, about their share of its bound."""
        keys = len(self.starts) - 1
        runs = (np.bincount(self.tokens[held], minlength=keys) if len(held) else np.diff(self.starts)).astype(np.float64)
        asks = np.bincount(self.tokens[asked], minlength=keys) if len(asked) else runs
        return int((asks * (runs - 1) / 2).sum())


def count_elements(
    shingles: Shingles, bits: int | None = None, counts: npt.NDArray[np.uint8] | None = None, rows: Mask | None = None
) -> npt.NDArray[np.uint8]:
    """How many times each slot of a table of ``2^bits`` is hit, 255 for more; an element's slot are its leading bits.

    An element that occurs once has a slot of its own, and so a count of 1, with probability ``exp(-m / 2^bits)``.

    Args:
        counts: A table to add to.
        rows: bool ``[n]``, the sets that count; default: all.
    """
    if counts is None:
        size = 1 << (table_bits(len(shingles.values)) if bits is None else bits)
        counts = np.empty(size, np.uint8)  # numpy has only these on huge pages
        counts.fill(0)
    _count(*shingles, ALL if rows is None else rows, counts)
    return counts


def table_bits(elements: int) -> int:
    """For ``m`` elements between ``3 m`` and ``6 m`` counters."""
    return min(COUNTED_BITS, max(10, int(3 * elements).bit_length()))


def prefixes(shingles: Shingles, threshold: float, counts: npt.NDArray[np.uint8], rows: Mask | None = None) -> Prefixes:
    """The elements by which each set must be found; none for sets that are not in the mask ``rows``."""
    shift = np.uint64(65 - len(counts).bit_length())
    return Prefixes(*_prefixes(*shingles, ALL if rows is None else rows, counts, shift, threshold))


def postings(found: Prefixes) -> Postings:
    """Number the distinct keys and count their sets."""
    return Postings(*_postings(found.keys, 1 << max(4, int(len(found.keys) * 1.5).bit_length())))


@njit(cache=True)
def grown(array):  # type: ignore[no-untyped-def]
    """A copy of ``array`` with twice the room."""
    larger = np.empty(2 * len(array), array.dtype)
    for i in range(len(array)):
        larger[i] = array[i]
    return larger


@njit(cache=True)
def _count(offsets, values, rows, counts):  # type: ignore[no-untyped-def]
    n, shift = len(offsets) - 1, np.uint64(0)
    while np.uint64(len(counts)) << shift != 0:
        shift += np.uint64(1)
    start = 0
    while start < n:
        stop = start + 1 if len(rows) else n
        while stop < n and rows[start] and rows[stop]:
            stop += 1
        if len(rows) == 0 or rows[start]:
            for j in range(offsets[start], offsets[stop]):
                slot = values[j] >> shift
                held = counts[slot]
                counts[slot] = held + np.uint8(held < 255)
        start = stop


@njit(cache=True)
def _prefixes(offsets, values, rows, counts, shift, threshold):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    out_offsets, skipped = np.zeros(n + 1, np.int64), np.zeros(n, np.int32)
    keys = np.empty(max(1024, n), np.uint64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    shared, ordered = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    ahead, base, end = np.empty(max(longest, 4096), np.uint8), np.int64(0), np.int64(0)
    cursor, last = 0, 0
    for i in range(n):
        if offsets[i + 1] > end:
            # Counts of many sets in one plain loop: the misses of the cache then overlap.
            base = offsets[i]
            while last < n and offsets[last + 1] - base <= len(ahead):
                last += 1
            end = offsets[last]
            for j in range(base, end):
                ahead[j - base] = counts[values[j] >> shift]
        if len(rows) == 0 or rows[i]:
            size, held = offsets[i + 1] - offsets[i], np.int64(0)
            length = min(size, size - int(np.ceil(threshold * size - 1e-9)) + 1)
            for j in range(offsets[i], offsets[i + 1]):
                count = ahead[j - base]
                shared[held] = np.uint64(count) << np.uint64(48) | values[j] & _HASH
                held += np.int64(count > 1)
            own = size - held
            wanted = length - own
            if wanted > 0:
                _in_order(shared, held, ordered)
                while cursor + wanted > len(keys):
                    keys = grown(keys)
                for j in range(wanted):
                    if ordered[j] != 0:
                        keys[cursor] = ordered[j]
                        cursor += 1
                skipped[i] = own
        out_offsets[i + 1] = cursor
    return out_offsets, keys[:cursor].copy(), skipped


@njit(cache=True)
def _in_order(keys, count, ordered):  # type: ignore[no-untyped-def]
    """Put ``keys[:count]`` into ``ordered``, ascending; equal ones, which no order tells apart, as one and zeros after it."""
    if count <= FEW:
        rank_into(keys, 0, count, ordered)
        return
    sort_unsigned(keys, 0, count)
    for j in range(count):
        ordered[j] = np.uint64(0) if j > 0 and keys[j] == keys[j - 1] else keys[j]


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
