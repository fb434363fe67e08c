"""Sets that are equal, found as they come in, so that of each only the first is held."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.hashing import mix
from divray.diversity.shingles import Shingles

_STEP, _PRIME, _START = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)


class Distinct:
    """Collects sets batch by batch and numbers the distinct ones in order of their first appearance.

    Two sets count as equal when 128 bits made of all their elements are.  Memory: 8 bytes an element and
    about 40 a set of the distinct ones.

    Args:
        rows: How many rows will come, if known: room for them is then made once, from the first batches.  Should more come,
            room grows by half as it does for an unknown number.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows
        self.seen = 0
        self.count = 0
        self._keys = np.empty((1024, 2), np.uint64)
        self._table = np.full(4096, -1, np.int32)
        self._offsets = np.zeros(1025, np.int64)
        self._values = np.empty(1 << 14, np.uint64)

    def add(self, shingles: Shingles) -> npt.NDArray[np.int32]:
        """Take in a batch; int32 ``[n]``, the number of each of its sets."""
        n = len(shingles)
        self.seen += n
        held = self._offsets[self.count]
        self._keys = _with_room(self._keys, self.count, self.count + n, self._share())
        self._offsets = _with_room(self._offsets, self.count + 1, self.count + n + 1, self._share())
        self._values = _with_room(self._values, held, held + len(shingles.values), self._share())
        if 2 * (self.count + n) > len(self._table):
            size = 1 << int(4 * max(self.count + n, int((self.count + n) * self._share()) // 2)).bit_length() - 1
            self._table = np.full(size, -1, np.int32)
            _fill(self._keys, self.count, self._table)
        keys = set_keys(*shingles)
        number, self.count = _take_in(*shingles, keys, self._keys, self._table, self.count, self._offsets, self._values)
        return number

    def sets(self) -> Shingles:
        """The distinct sets."""
        offsets = self._offsets[: self.count + 1]
        return Shingles(offsets, self._values[: offsets[-1]])

    def close(self) -> Shingles:
        """:meth:`sets`, letting go of what only :meth:`add` needs."""
        self._keys, self._table = self._keys[:0], self._table[:0]
        return self.sets()

    def _share(self) -> float:
        """By how much the rows to come exceed those seen."""
        return 1.5 if self.rows is None or self.seen > self.rows else 1.02 * self.rows / max(self.seen, 1)


def collapse(shingles: Shingles) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Group the rows whose sets are equal.

    Returns:
        ``(first, group)``: ``first[g]`` is the smallest row of group ``g`` (ascending), ``group[i]`` the group of row ``i``.
    """
    keys, n = set_keys(*shingles), len(shingles)
    known, table = np.empty((n, 2), np.uint64), np.full(1 << max(2, (2 * n).bit_length()), -1, np.int32)
    first, group = _number(keys, known, table)
    return first, group


def _with_room(array: Any, used: int, wanted: int, share: float) -> Any:
    """``array`` or a longer copy; pages of the new one that nothing is written to cost no memory."""
    if wanted <= len(array):
        return array
    longer = np.empty((int(wanted * share) + 1024, *array.shape[1:]), array.dtype)
    longer[:used] = array[:used]
    return longer


@njit(cache=True)
def set_keys(offsets, values):  # type: ignore[no-untyped-def]
    """uint64 ``[n, 2]``: 128 bits a set, from two independent chains over its ordered elements."""
    n = len(offsets) - 1
    keys = np.empty((n, 2), np.uint64)
    for i in range(n):
        one, two = _STEP, _START
        for j in range(offsets[i], offsets[i + 1]):
            one = (one ^ values[j]) * _STEP
            one ^= one >> np.uint64(32)
            two = two * _PRIME + values[j]
        keys[i, 0], keys[i, 1] = mix(one), mix(two)
    return keys


@njit(cache=True)
def _slot(known, table, one, two):  # type: ignore[no-untyped-def]
    """Where the key stands in the table, or the free slot that it would take."""
    mask = np.uint64(len(table) - 1)
    slot = one & mask
    while table[slot] >= 0 and (known[table[slot], 0] != one or known[table[slot], 1] != two):
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True)
def _fill(known, count, table):  # type: ignore[no-untyped-def]
    for g in range(count):
        table[_slot(known, table, known[g, 0], known[g, 1])] = g


@njit(cache=True)
def _take_in(offsets, values, keys, known, table, count, out_offsets, out):  # type: ignore[no-untyped-def]
    number = np.empty(len(keys), np.int32)
    for i in range(len(keys)):
        slot = _slot(known, table, keys[i, 0], keys[i, 1])
        if table[slot] < 0:
            table[slot] = count
            known[count, 0], known[count, 1] = keys[i, 0], keys[i, 1]
            at = out_offsets[count] - offsets[i]
            for j in range(offsets[i], offsets[i + 1]):
                out[at + j] = values[j]
            count += 1
            out_offsets[count] = at + offsets[i + 1]
        number[i] = table[slot]
    return number, count


@njit(cache=True)
def _number(keys, known, table):  # type: ignore[no-untyped-def]
    n, count = len(keys), 0
    first, group = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        slot = _slot(known, table, keys[i, 0], keys[i, 1])
        if table[slot] < 0:
            table[slot] = count
            known[count, 0], known[count, 1] = keys[i, 0], keys[i, 1]
            first[count] = i
            count += 1
        group[i] = table[slot]
    return first[:count].copy(), group
