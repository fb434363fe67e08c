"""Texts as sets of hashed shingles (Broder 1997): word or character n-grams.

A collection of sets is two flat arrays (compressed sparse rows), so that millions of them cost
8 bytes a shingle and every later step is a scan over memory.

Hashes are 64-bit, made from the UTF-8 bytes alone: the same on every machine, in every process.
Two different shingles share a hash with probability 2^-64; among ``m`` distinct shingles some pair
does with probability about ``m^2 / 2^65`` (3e-6 at ten million).  Similarities are exact on the
hashed sets, hence on the shingles themselves up to that chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from divray.errors import InputError

Texts: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray"

_SPACE = r"[\s\v\x{1c}-\x{1f}\x{85}\p{Z}]"
_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Shingles(NamedTuple):
    """``n`` sets: set ``i`` is ``values[offsets[i]:offsets[i + 1]]``, ascending and without repeats.

    Attributes:
        offsets: int64 ``[n + 1]``.
        values: uint64 ``[offsets[n]]``.
    """

    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> npt.NDArray[np.uint64]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: npt.NDArray[np.int64]) -> Shingles:
        """The sets ``rows``, in that order."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        where = np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Shingles(offsets, self.values[where])


def shingle(
    texts: Texts, kind: Literal["word", "char"] = "word", size: int = 3, lower: bool = True, strip_punctuation: bool = False
) -> Shingles:
    """Each text's set of n-grams.

    Words are what ``str.lower().split()`` gives.  Characters are code points of the lower-cased text
    with every run of white space as one blank and none at the ends.  A text of fewer than ``size``
    words (characters) is one shingle; so is an empty text, which thus equals every other empty text.

    Args:
        texts: Strings without nulls.
        kind: n-grams of words or of characters.
        size: n, at least 1.
        lower: Lower-case first.
        strip_punctuation: Take punctuation (Unicode category P) off both ends of each word; words of
            nothing else vanish.

    Raises:
        InputError: a text is null, or ``size`` is below 1.
    """
    if size < 1:
        raise InputError("shingles", "size", f"{size} is below 1", "Give 1 or more.")
    array = _flat(texts)
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise InputError("texts", f"row {row}", "null instead of a text", "Drop the row or put an empty text.")
    array = normalise(array, lower, strip_punctuation)
    _, offset_buffer, data = array.buffers()
    offsets, characters = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    if len(array):
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if data is not None and data.size:
        characters = np.frombuffer(data, dtype=np.uint8)
    return Shingles(*_hash_shingles(offsets, characters, size, kind == "word"))


def normalise(array: pa.Array, lower: bool = True, strip_punctuation: bool = False) -> pa.Array:
    """Lower-case as ``str.lower`` does, and turn the blanks beyond ASCII into plain ones; a ``large_string`` array."""
    array = array.cast(pa.large_string())
    if len(array) and (array.offset or np.frombuffer(array.buffers()[1], np.int64, 1)[0]):
        array = array.take(pa.array(np.arange(len(array))))  # ascii_lower misreads data that don't start at 0 (pyarrow 26.0)
    plain = pc.string_is_ascii(array)
    foreign = None if pc.all(plain, min_count=0).as_py() else pc.invert(plain)
    if lower:
        lowered = pc.ascii_lower(array)
        if foreign is not None:
            exact = pa.array([text.lower() for text in array.filter(foreign).to_pylist()], pa.large_string())
            lowered = pc.replace_with_mask(lowered, foreign, exact)
        array = lowered
    if foreign is not None:
        array = pc.replace_substring_regex(array, r"[\x{85}\p{Z}]", " ")
    if strip_punctuation:
        array = pc.replace_substring_regex(array, rf"(^|{_SPACE})\p{{P}}+", r"\1")
        array = pc.replace_substring_regex(array, rf"\p{{P}}+({_SPACE}|$)", r"\1")
    return array


def collapse(shingles: Shingles) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Group the rows whose sets are equal.

    Returns:
        ``(first, group)``: ``first[g]`` is the smallest row of group ``g`` (ascending), ``group[i]`` the group of row ``i``.
    """
    n = len(shingles)
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys = _set_keys(shingles.offsets, shingles.values)
    order = np.lexsort((np.arange(n), keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    new = np.ones(n, bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    smallest = order[new]
    rank = np.empty(len(smallest), np.int64)
    by_row = np.argsort(smallest)
    rank[by_row] = np.arange(len(smallest))
    group = np.empty(n, np.int64)
    group[order] = rank[np.cumsum(new) - 1]
    return smallest[by_row].astype(np.int64), group


def _flat(texts: Any) -> pa.Array:
    if isinstance(texts, pa.ChunkedArray):
        return texts.cast(pa.large_string()).combine_chunks()
    return texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())


@njit(cache=True)
def _mix(value: np.uint64) -> np.uint64:
    # The finaliser of splitmix64 (Steele et al. 2014).
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31


@njit(cache=True)
def sort_unsigned(values, start, end):  # type: ignore[no-untyped-def]
    """Shell sort of ``values[start:end]``, in place, gaps growing by 9/4 (1, 3, 7, 16, 37, …).

    Sets are short; numba's own sort costs a second to compile and is hardly faster on them.
    """
    size = end - start
    gap = 1
    while gap < size:
        gap = gap * 9 // 4 + 1
    while gap > 0:
        for i in range(start + gap, end):
            value = values[i]
            j = i
            while j >= start + gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap = gap * 4 // 9
    return values


@njit(cache=True)
def _hash_words(characters, start, end, units):  # type: ignore[no-untyped-def]
    """Hash each word of one text into ``units``; returns how many there are."""
    count, inside, state = 0, False, _FNV_OFFSET
    for position in range(start, end):
        byte = characters[position]
        if not _is_space(byte):
            state, inside = (state ^ np.uint64(byte)) * _FNV_PRIME, True
        elif inside:
            units[count] = _mix(state)
            count, inside, state = count + 1, False, _FNV_OFFSET
    if inside:
        units[count] = _mix(state)
        count += 1
    return count


@njit(cache=True)
def _hash_characters(characters, start, end, units):  # type: ignore[no-untyped-def]
    """Hash each code point of one text into ``units``, a run of blanks as one; returns how many there are."""
    count, blank, position = 0, False, start
    while position < end:
        if _is_space(characters[position]):
            blank = count > 0
            position += 1
            continue
        if blank:
            units[count] = _mix(np.uint64(32))
            count, blank = count + 1, False
        state = (_FNV_OFFSET ^ np.uint64(characters[position])) * _FNV_PRIME
        position += 1
        while position < end and characters[position] & 0xC0 == 0x80:
            state = (state ^ np.uint64(characters[position])) * _FNV_PRIME
            position += 1
        units[count] = _mix(state)
        count += 1
    return count


@njit(cache=True)
def _hash_shingles(offsets, characters, size, words):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    out_offsets = np.zeros(n + 1, np.int64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    units = np.empty(longest + 2, np.uint64)
    out = np.empty(max(16, (offsets[n] - offsets[0]) // (5 if words else 1) + n), np.uint64)
    cursor = 0
    for i in range(n):
        if words:
            count = _hash_words(characters, offsets[i], offsets[i + 1], units)
        else:
            count = _hash_characters(characters, offsets[i], offsets[i + 1], units)
        width = min(size, count)
        made = count - width + 1
        if cursor + made > len(out):
            larger = np.empty(cursor + made + len(out) // 2, np.uint64)
            for j in range(cursor):
                larger[j] = out[j]
            out = larger
        for j in range(made):
            state = _STEP
            for k in range(width):
                state = _mix((state ^ units[j + k]) * _FNV_PRIME + _STEP)
            out[cursor + j] = state
        sort_unsigned(out, cursor, cursor + made)
        first = cursor
        cursor += 1
        for j in range(first + 1, first + made):
            if out[j] != out[cursor - 1]:
                out[cursor] = out[j]
                cursor += 1
        out_offsets[i + 1] = cursor
    return out_offsets, out[:cursor]


@njit(cache=True)
def _set_keys(offsets, values):  # type: ignore[no-untyped-def]
    """128 bits a set, from two independent chains over its ordered shingles."""
    n = len(offsets) - 1
    keys = np.empty((n, 2), np.uint64)
    for i in range(n):
        one, two = _STEP, _FNV_OFFSET
        for j in range(offsets[i], offsets[i + 1]):
            one = _mix(one ^ values[j])
            two = _mix(two * _FNV_PRIME + values[j])
        keys[i, 0], keys[i, 1] = one, two
    return keys
