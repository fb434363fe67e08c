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
_FACTOR = np.uint64(0xD1342543DE82EF95)


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
    offsets, characters = _buffers(normalise(array, lower, strip_punctuation))
    return Shingles(*_hash_shingles(offsets, characters, size, kind == "word"))


def normalise(array: pa.Array, lower: bool = True, strip_punctuation: bool = False) -> pa.Array:
    """Lower-case as ``str.lower`` does, and turn the blanks beyond ASCII into plain ones; a ``large_string`` array.

    Bytes that are no UTF-8 (files hold them, Arrow does not look) count as U+FFFD, each faulty sequence as one.
    """
    array = array.cast(pa.large_string())
    if len(array) and (array.offset or np.frombuffer(array.buffers()[1], np.int64, 1)[0]):
        array = array.take(pa.array(np.arange(len(array))))  # ascii_lower misreads data that don't start at 0 (pyarrow 26.0)
    plain = pc.string_is_ascii(array)
    foreign = None if pc.all(plain, min_count=0).as_py() else pc.invert(plain)
    if lower:
        lowered = pc.ascii_lower(array)
        if foreign is not None:
            exact = pa.array([text.lower() for text in decoded(array.filter(foreign))], pa.large_string())
            lowered = pc.replace_with_mask(lowered, foreign, exact)
        array = lowered
    elif foreign is not None:
        array = pc.replace_with_mask(array, foreign, pa.array(decoded(array.filter(foreign)), pa.large_string()))
    if foreign is not None:
        array = pc.replace_substring_regex(array, r"[\x{85}\p{Z}]", " ")
    if strip_punctuation:
        array = pc.replace_substring_regex(array, rf"(^|{_SPACE})\p{{P}}+", r"\1")
        array = pc.replace_substring_regex(array, rf"\p{{P}}+({_SPACE}|$)", r"\1")
    return array


def text_hashes(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """One hash a text, of its bytes as they are; uint64 ``[n]``."""
    return _hash_texts(*_buffers(texts.cast(pa.large_string())))


def _buffers(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets ``[n + 1]`` and bytes of a ``large_string`` array."""
    _, offset_buffer, data = array.buffers()
    offsets, characters = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    if len(array):
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if data is not None and data.size:
        characters = np.frombuffer(data, dtype=np.uint8)
    return offsets, characters


def decoded(texts: pa.Array) -> list[str]:
    """Python strings, with U+FFFD for bytes that are no UTF-8."""
    return [data.decode("utf-8", "replace") for data in texts.cast(pa.large_binary()).to_pylist()]


def _flat(texts: Any) -> pa.Array:
    if isinstance(texts, pa.ChunkedArray):
        return texts.cast(pa.large_string()).combine_chunks()
    return texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())


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
    count, length = 0, np.uint64(0)
    state, eight = _FNV_OFFSET, np.uint64(0)
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
            state, eight = _FNV_OFFSET, np.uint64(0)
    if length:
        units[count] = mix((state ^ eight) + length * _STEP)
        count += 1
    return count


@njit(cache=True)
def _hash_texts(offsets, characters):  # type: ignore[no-untyped-def]
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        state = np.uint64(offsets[i + 1] - offsets[i])
        for position in range(offsets[i], offsets[i + 1]):
            state = (state ^ np.uint64(characters[position])) * _FNV_PRIME
        hashes[i] = mix(state)
    return hashes


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
def _rank_into(source, start, end, target):  # type: ignore[no-untyped-def]
    """Put ``source[start:end]`` into the same slots of ``target`` in order; of a repeated value's slots all but the first are 0.

    Each value's place is the number of smaller ones: no branch to mispredict, and the inner loop is one of vectors.
    """
    for i in range(start, end):
        target[i] = 0
    for i in range(start, end):
        value, smaller = source[i], np.int64(0)
        for j in range(start, end):
            smaller += np.int64(source[j] < value)
        target[start + smaller] = value


@njit(cache=True)
def _sorted_set(made, count, spare, heads, out, at):  # type: ignore[no-untyped-def]
    """Write ``made[:count]`` to ``out[at:]``, ascending and without repeats; returns how many are left.

    The values are hashes, none of them 0: their leading bits spread them evenly over buckets of about eight.
    ``spare`` is as long as ``made``; ``heads`` holds ``count / 4 + 2`` numbers.
    """
    bits = 0
    while count > 24 and count >> bits > 8:
        bits += 1
    if bits == 0:
        _rank_into(made, 0, count, spare)
    else:
        shift = np.uint64(64 - bits)
        for b in range((1 << bits) + 1):
            heads[b] = 0
        for i in range(count):
            heads[(made[i] >> shift) + np.uint64(1)] += 1
        for b in range(1 << bits):
            heads[b + 1] += heads[b]
        for i in range(count):
            b = made[i] >> shift
            spare[heads[b]] = made[i]
            heads[b] += 1
        start = 0
        for b in range(1 << bits):
            if heads[b] - start > 64:  # one value many times over
                sort_unsigned(spare, start, heads[b])
                for i in range(start, heads[b]):
                    made[i] = spare[i]
            else:
                _rank_into(spare, start, heads[b], made)
            start = heads[b]
        spare = made
    last = at
    out[at] = spare[0]
    for i in range(1, count):
        if spare[i] != 0 and spare[i] != out[last]:
            last += 1
            out[last] = spare[i]
    return last + 1 - at


@njit(cache=True)
def _hash_shingles(offsets, characters, size, words):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    out_offsets = np.zeros(n + 1, np.int64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    units, made, spare = np.empty(longest + 2, np.uint64), np.empty(longest + 2, np.uint64), np.empty(longest + 2, np.uint64)
    heads = np.empty(longest // 4 + 4, np.int64)
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
            larger = np.empty(cursor + grams + len(out) // 2, np.uint64)
            for j in range(cursor):
                larger[j] = out[j]
            out = larger
        for j in range(grams):
            state = np.uint64(width)
            for k in range(width):
                state = state * _FACTOR + units[j + k]
            made[j] = max(mix(state), np.uint64(1))
        cursor += _sorted_set(made, grams, spare, heads, out, cursor)
        out_offsets[i + 1] = cursor
    return out_offsets, out[:cursor]
