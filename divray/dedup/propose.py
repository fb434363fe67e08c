"""Propose pairs of sets that may be near: those that share a key.

*Prefixes* miss no pair (AllPairs, Bayardo et al. 2007; PPJoin, Xiao et al. 2008).  With the elements of every set in one
global order, rarest first, two sets ``x`` and ``y`` with ``J(x, y) >= t`` share an element of their prefixes.  The prefix of ``x`` is its
first ``|x| - ceil(t |x|) + 1`` elements, and likewise for ``y``.  The index holds only prefixes.

Any global order is correct; rarest first is only the fastest.  So approximate counts suffice: a table of 8-bit counters, which
different elements may share.  A counter of 1 proves that an element occurs in no other set.  Such elements are never indexed, and a
set whose whole prefix consists of them has no near neighbour.

*Bands of MinHash values* (Broder 1997; Indyk and Motwani 1998) serve where prefixes propose too many pairs.  Two sets of
similarity ``s`` agree in one minimum with probability ``s``, and in all ``r`` minima of a band with ``s^r``.  The probability
that they agree in at least one of ``b`` bands, ``1 - (1 - s^r)^b``, is the expected recall.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.dedup.hashing import in_order, mix, numbered
from divray.dedup.shingle import Shingles

COUNTED_BITS = 30
"""The table has at most ``2^30`` counters."""

RECALL, PERMUTATIONS = 0.9999, 224
"""Expected recall of a pair exactly at the threshold, and the most permutations that it may cost (bands of one may cost more)."""

_HASH = np.uint64((1 << 48) - 1)
_SEED, _FAR = 0x5EED, 1 << 30


class Keys(NamedTuple):
    """``m`` keys.  Those of a set are the indexed elements of its prefix, ascending, or one for each band that it shares.

    Attributes:
        offsets: int64 ``[n + 1]``, where each set's keys are.
        skipped: int32 ``[n]``, how many elements before a set's keys occur in no other set; 0 for a set without keys.
        tokens: int64 ``[m]``, the number of each among the distinct keys.
        starts: int64 ``[distinct + 1]``, where the slots for the sets that hold each distinct key begin.
    """

    offsets: npt.NDArray[np.int64]
    skipped: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def visits(self) -> int:
        """Upper bound on the pairs that the join looks at."""
        runs = np.diff(self.starts).astype(np.float64)
        return int((runs * (runs - 1) / 2).sum())


def prefix_keys(shingles: Shingles, threshold: float) -> Keys:
    """The elements of each set's prefix that other sets may share.

    The table has 3 to 6 counters per element, but at least ``2^10`` and at most ``2^30`` in all.  An element that occurs once among
    ``m`` has a counter of its own, and so a count of 1, with probability ``exp(-m / counters)``.
    """
    bits = min(COUNTED_BITS, max(10, int(3 * len(shingles.values)).bit_length()))
    counts, shift = np.empty(1 << bits, np.uint8), np.uint64(64 - bits)  # np.empty, as np.zeros does not use huge pages
    counts.fill(0)
    _count(shingles.values, shift, counts)
    offsets, keys, skipped = _prefixes(*shingles, counts, shift, threshold)
    tokens = numbered(keys, keys)[0]
    return Keys(offsets, skipped, tokens, np.append(0, np.cumsum(np.bincount(tokens))))


def choose_bands(threshold: float) -> tuple[int, int]:
    """``(bands, length)``; (34, 4) at 0.7.

    The longest bands, up to 8, give the fewest false proposals.  They must reach :data:`RECALL` at ``threshold`` with at most
    :data:`PERMUTATIONS`.  If no length does, it is 1, with as many bands as :data:`RECALL` takes.
    """
    for length in range(8, 0, -1):
        agreement = threshold**length
        bands = 1 if agreement >= 1 else max(1, math.ceil(math.log1p(-RECALL) / math.log1p(-agreement)))
        if bands * length <= PERMUTATIONS or length == 1:
            break
    return bands, length


def band_keys(shingles: Shingles, threshold: float) -> Keys:
    """Give each set a key for each band in which it agrees with another set.  The key stands for the set's minima in that band.

    A permutation is ``a x + b mod 2^32`` with odd ``a`` on the upper half of each shingle's hash; the constants are the
    same in every process.  ``skipped`` is far below 0, so that :mod:`~divray.dedup.verify` concludes nothing from the place of a key.

    Memory: 8 bytes a set and band, 4 an element, some 40 for each agreement.
    """
    bands, length = choose_bands(threshold)
    random = np.random.Generator(np.random.PCG64(_SEED))
    factors = random.integers(0, 2**32, bands * length, dtype=np.uint32) | np.uint32(1)
    terms = random.integers(0, 2**32, bands * length, dtype=np.uint32)
    upper = (shingles.values >> np.uint64(32)).astype(np.uint32)
    hashes = np.empty((bands, len(shingles)), np.uint32)
    _hash_bands(shingles.offsets, upper, factors, terms, length, hashes)
    del upper
    numbers, distinct = np.empty((len(shingles), bands), np.int32), 0
    for band, own in enumerate(hashes):
        number = numbered(own, own)[0]
        shared = np.bincount(number) > 1
        numbers[:, band] = np.where(shared, distinct + np.cumsum(shared) - 1, -1)[number]
        distinct += int(np.count_nonzero(shared))
    met = numbers >= 0
    tokens = numbers[met].astype(np.int64)
    offsets = np.append(0, np.cumsum(np.count_nonzero(met, axis=1)))
    return Keys(offsets, np.full(len(shingles), -_FAR, np.int32), tokens, np.append(0, np.cumsum(np.bincount(tokens))))


@njit(cache=True)
def grown(array):  # type: ignore[no-untyped-def]
    """A copy of ``array`` with twice the room."""
    return np.append(array, np.empty_like(array))


@njit(cache=True)
def _count(values, shift, counts):  # type: ignore[no-untyped-def]
    for j in range(len(values)):
        slot = values[j] >> shift
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
    shared, ordered = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    ahead, base, end = np.empty(max(longest, 4096), np.uint8), np.int64(0), np.int64(0)
    cursor, last = 0, 0
    for i in range(n):
        if offsets[i + 1] > end:
            # Read the counts of many sets in one plain loop, so that cache misses overlap.
            base = offsets[i]
            while last < n and offsets[last + 1] - base <= len(ahead):
                last += 1
            end = offsets[last]
            for j in range(base, end):
                ahead[j - base] = counts[values[j] >> shift]
        size, held = offsets[i + 1] - offsets[i], np.int64(0)
        length = min(size, size - int(np.ceil(threshold * size - 1e-9)) + 1)
        for j in range(offsets[i], offsets[i + 1]):
            count = ahead[j - base]
            shared[held] = np.uint64(count) << np.uint64(48) | values[j] & _HASH
            held += np.int64(count > 1)
        own = size - held
        wanted = length - own
        if wanted > 0:
            in_order(shared, held, ordered)
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
def _hash_bands(offsets, upper, factors, terms, length, hashes):  # type: ignore[no-untyped-def]
    """``hashes[b, i]`` becomes 32 bits made of the least values of set ``i`` under the permutations of band ``b``."""
    for i in range(len(offsets) - 1):
        for band in range(len(hashes)):
            key = np.uint64(0x9E3779B97F4A7C15)
            for k in range(band * length, (band + 1) * length):
                factor, term = factors[k], terms[k]
                least = np.uint32(0xFFFFFFFF)
                for j in range(offsets[i], offsets[i + 1]):
                    least = min(least, np.uint32(upper[j] * factor + term))
                key = mix(key ^ np.uint64(least))
            hashes[band, i] = np.uint32(key >> np.uint64(32))
