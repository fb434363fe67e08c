"""Compiled kernels of :mod:`divray.dedup.shingle`: hash texts' bytes, put hashes in order, number equal sets.

Arrays are flat: text or set ``i`` lies between ``offsets[i]`` and ``offsets[i + 1]``.
"""

import numpy as np
from numba import njit

# Constants of FNV-1a (_PRIME, _START) and splitmix64 (_STEP, _MIX_1, _MIX_2); _FACTOR is an LCG's multiplier (Steele and Vigna).
_STEP, _PRIME, _START = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)
_MIX_1, _MIX_2, _FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0xD1342543DE82EF95)
FEW = 160
"""For up to this many values, counting the smaller ones is the fastest way to sort."""


@njit(cache=True)
def mix(value: np.uint64) -> np.uint64:
    # The finaliser of splitmix64 (Steele et al. 2014).
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31


@njit(cache=True)
def _hash_words(characters, start, end, units):  # type: ignore[no-untyped-def]
    """Hash each word of one text into ``units``; returns how many there are."""
    count, length = 0, np.uint64(0)
    state, eight = _START, np.uint64(0)
    for position in range(start, end):
        byte = characters[position]
        if byte > 32 or not _is_space(byte):
            eight = eight << np.uint64(8) | np.uint64(byte)
            length += np.uint64(1)
            if length & np.uint64(7) == 0:
                state, eight = mix(state ^ eight), np.uint64(0)
        elif length:
            units[count] = mix((state ^ eight) + length * _STEP)
            count, length = count + 1, np.uint64(0)
            state, eight = _START, np.uint64(0)
    if length:
        units[count] = mix((state ^ eight) + length * _STEP)
        count += 1
    return count


@njit(cache=True)
def _hash_characters(characters, start, end, units):  # type: ignore[no-untyped-def]
    """Hash each code point of one text into ``units``, a run of blanks as one; returns how many there are."""
    count, blank, position = 0, False, start
    while position < end:
        byte = characters[position]
        if byte <= 32 and _is_space(byte):
            blank = count > 0
            position += 1
            continue
        if blank:
            units[count] = mix(np.uint64(32))
            count, blank = count + 1, False
        point = np.uint64(byte)
        position += 1
        while position < end and characters[position] & 0xC0 == 0x80:
            point = point << np.uint64(8) | np.uint64(characters[position])
            position += 1
        units[count] = mix(point)
        count += 1
    return count


@njit(cache=True)
def in_order(values, count, ordered):  # type: ignore[no-untyped-def]
    """Sort ``values[:count]``, none of them 0, into ``ordered[:count]``.  Of a repeated value's slots, one holds it; the others hold 0.

    With few values, the place of each is the number of smaller ones: no branch to mispredict, and the inner loop vectorises.
    """
    if count > FEW:
        ordered[:count] = np.sort(values[:count])
        for i in range(count - 1, 0, -1):
            if ordered[i] == ordered[i - 1]:
                ordered[i] = 0
        return
    ordered[:count] = 0
    for i in range(count):
        value, smaller = values[i], np.int64(0)
        for j in range(count):
            smaller += np.int64(values[j] < value)
        ordered[smaller] = value


@njit(cache=True)
def hash_shingles(offsets, characters, size, words):  # type: ignore[no-untyped-def]
    """The sets of n-grams, of words or else of code points, as offsets and values (:class:`~divray.dedup.shingle.Shingles`)."""
    n = len(offsets) - 1
    out_offsets = np.zeros(n + 1, np.int64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    units, made, ordered = np.empty(longest + 2, np.uint64), np.empty(longest + 2, np.uint64), np.empty(longest + 2, np.uint64)
    out = np.empty(max(16, (offsets[n] - offsets[0]) // (5 if words else 1) + n), np.uint64)
    cursor = 0
    for i in range(n):
        if words:
            count = _hash_words(characters, offsets[i], offsets[i + 1], units)
        else:
            count = _hash_characters(characters, offsets[i], offsets[i + 1], units)
        width = min(size, count)
        grams = count - width + 1
        if cursor + grams > len(out):
            out = np.append(out, np.empty(grams + len(out) // 2, np.uint64))
        for j in range(grams):
            state = np.uint64(width)
            for k in range(width):
                state = state * _FACTOR + units[j + k]
            made[j] = max(mix(state), np.uint64(1))
        in_order(made, grams, ordered)
        for j in range(grams):
            if ordered[j] != 0:
                out[cursor] = ordered[j]
                cursor += 1
        out_offsets[i + 1] = cursor
    return out_offsets, out[:cursor]


@njit(cache=True)
def set_keys(offsets, values):  # type: ignore[no-untyped-def]
    """Two arrays uint64 ``[n]``: 128 bits a set, from two independent chains over its ordered elements."""
    n = len(offsets) - 1
    keys, others = np.empty(n, np.uint64), np.empty(n, np.uint64)
    for i in range(n):
        one, two = _STEP, _START
        for j in range(offsets[i], offsets[i + 1]):
            one = (one ^ values[j]) * _STEP
            one ^= one >> np.uint64(32)
            two = two * _PRIME + values[j]
        keys[i], others[i] = mix(one), mix(two)
    return keys, others


@njit(cache=True)
def numbered(one, two):  # type: ignore[no-untyped-def]
    """Number the distinct keys (``one[i]``, ``two[i]``) by first place; return each ``i``'s number, and the first places."""
    room = 16
    while room < 1.5 * len(one):
        room *= 2
    table, mask = np.full(room, -1, np.int32), np.uint64(room - 1)
    number, first, count = np.empty(len(one), np.int64), np.empty(len(one), np.int64), 0
    for i in range(len(one)):
        slot = one[i] & mask
        while table[slot] >= 0 and (one[table[slot]] != one[i] or two[table[slot]] != two[i]):
            slot = (slot + np.uint64(1)) & mask
        if table[slot] < 0:
            table[slot], number[i], first[count] = i, count, i
            count += 1
        number[i] = number[table[slot]]
    return number, first[:count].copy()
