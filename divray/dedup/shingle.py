"""Texts as sets of hashed shingles (Broder 1997): word or character n-grams.

A collection of sets is two flat arrays (compressed sparse rows), 8 bytes a shingle.  Hashes are 64-bit, made from the UTF-8 bytes
alone: the same on every machine, in every process.  Among ``m`` distinct shingles some two share a hash with probability of about
``m^2 / 2^65`` (3e-6 at ten million); up to that chance similarities are exact.

Equal sets are folded as they come in (:class:`Distinct`): of each only the first is held.
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

# Hashes are FNV-1a and splitmix64.
_STEP, _PRIME, _START = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)
_MIX_1, _MIX_2, _FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0xD1342543DE82EF95)
FEW = 24
"""Up to so many values :func:`rank_into` is the fastest way to put them in order."""

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
"""A letter of a script without blanks between words."""
_SPACE = r"[\s\v\x{1c}-\x{1f}\x{85}\p{Z}]"


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
        taken = pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.values)).take(pa.array(rows))
        return Shingles(taken.offsets.to_numpy(), taken.values.to_numpy())


def shingle(
    texts: Texts, kind: Literal["word", "char"] = "word", size: int = 3, lower: bool = True, strip_punctuation: bool = False
) -> Shingles:
    """Each text's set of n-grams.

    Words are what ``str.lower().split()`` gives; a letter of a script that puts no blanks between words (Chinese, Japanese, Thai, …) is a
    word of its own.  Characters are code points of the lower-cased text
    with every run of white space as one blank and none at the ends.  A text of fewer than ``size``
    words (characters) is one shingle; so is an empty text, which thus equals every other empty text.

    Args:
        texts: Strings without nulls.
        kind, size: n-grams of words or of characters; n, at least 1.
        lower: Lower-case first.
        strip_punctuation: Take punctuation (Unicode category P) off both ends of each word; words of nothing else vanish.

    Raises:
        InputError: a text is null, or ``size`` is below 1.
    """
    if size < 1:
        raise InputError("shingles", "size", f"{size} is below 1", "Give 1 or more.")
    array = _flat(texts)
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise InputError("texts", f"row {row}", "null instead of a text", "Drop the row or put an empty text.")
    offsets, characters = _buffers(_normalised(array, lower, strip_punctuation, kind == "word"))
    return Shingles(*_hash_shingles(offsets, characters, size, kind == "word"))


def _normalised(array: pa.Array, lower: bool, strip_punctuation: bool, words: bool) -> pa.Array:
    """Lower-cased as ``str.lower`` does, with the blanks beyond ASCII as plain ones; ``large_string`` in and out.

    Bytes that are no UTF-8 (files hold them, Arrow does not look) count as U+FFFD, each faulty sequence as one.
    """
    if len(array) and (array.offset or np.frombuffer(array.buffers()[1], np.int64, 1)[0]):
        array = array.take(pa.array(np.arange(len(array))))  # ascii_lower misreads data that don't start at 0 (pyarrow 26.0)
    plain = pc.string_is_ascii(array)
    foreign = None if pc.all(plain, min_count=0).as_py() else pc.invert(plain)
    strange = [] if foreign is None else decoded(array.filter(foreign))
    if lower:
        array, strange = pc.ascii_lower(array), [text.lower() for text in strange]
    if foreign is not None:
        array = pc.replace_with_mask(array, foreign, pa.array(strange, pa.large_string()))
        array = pc.replace_substring_regex(array, r"[\x{85}\p{Z}]", " ")
        if words:
            array = pc.replace_substring_regex(array, _UNSPACED, r" \0 ")
    if strip_punctuation:
        array = pc.replace_substring_regex(array, rf"(^|{_SPACE})\p{{P}}+", r"\1")
        array = pc.replace_substring_regex(array, rf"\p{{P}}+({_SPACE}|$)", r"\1")
    return array


def spaced(texts: Sequence[str]) -> list[str]:
    """Texts in which the letters of scripts without blanks between words stand apart, as words do."""
    found: list[str] = pc.replace_substring_regex(pa.array(texts, pa.large_string()), _UNSPACED, r" \0 ").to_pylist()
    return found


def text_hashes(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """One hash a text, of its bytes as they are; uint64 ``[n]``."""
    return _hash_texts(*_buffers(texts.cast(pa.large_string())))


class Distinct:
    """Collects sets batch by batch and numbers the distinct ones in order of their first appearance.

    Two sets count as equal when 128 bits made of all their elements are.  Memory: 8 bytes an element and about 40 a set of the
    distinct ones.  ``rows`` is how many rows will come, if known: room for them is then made once, from the first batches.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows, self.seen, self.count = rows, 0, 0
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
        keys = _set_keys(*shingles)
        number, self.count = _take_in(*shingles, keys, self._keys, self._table, self.count, self._offsets, self._values)
        return number

    def close(self) -> Shingles:
        """The distinct sets; lets go of what only :meth:`add` needs."""
        self._keys, self._table = self._keys[:0], self._table[:0]
        offsets = self._offsets[: self.count + 1]
        return Shingles(offsets, self._values[: offsets[-1]])

    def _share(self) -> float:
        """By how much the rows to come exceed those seen."""
        return 1.5 if self.rows is None or self.seen > self.rows else 1.02 * self.rows / max(self.seen, 1)


def fold(shingles: Shingles) -> tuple[Shingles, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``(sets, first, group)``: the distinct sets in order of their first rows, int64 ``first[g]`` the first row of group ``g``
    (ascending), int64 ``group[i]`` the group of row ``i``."""
    distinct = Distinct(len(shingles))
    group = distinct.add(shingles)
    return distinct.close(), np.unique(group, return_index=True)[1], group.astype(np.int64)


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
        texts = texts.cast(pa.large_string()).combine_chunks()
    return texts.cast(pa.large_string()) if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())


def _with_room(array: Any, used: int, wanted: int, share: float) -> Any:
    """``array`` or a longer copy; pages of the new one that nothing is written to cost no memory."""
    if wanted <= len(array):
        return array
    longer = np.empty((int(wanted * share) + 1024, *array.shape[1:]), array.dtype)
    longer[:used] = array[:used]
    return longer


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
def _hash_texts(offsets, characters):  # type: ignore[no-untyped-def]
    """One hash a text, ``characters[offsets[i]:offsets[i + 1]]``; uint64 ``[n]``."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        state = np.uint64(offsets[i + 1] - offsets[i])
        for position in range(offsets[i], offsets[i + 1]):
            state = (state ^ np.uint64(characters[position])) * _PRIME
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
def rank_into(source, start, end, target):  # type: ignore[no-untyped-def]
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
    while count > FEW and count >> bits > 8:
        bits += 1
    if bits == 0:
        rank_into(made, 0, count, spare)
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
                rank_into(spare, start, heads[b], made)
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
    """The sets of n-grams, of words or else of code points, as offsets and values (:class:`~divray.dedup.shingle.Shingles`)."""
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
            out = np.append(out, np.empty(grams + len(out) // 2, np.uint64))
        for j in range(grams):
            state = np.uint64(width)
            for k in range(width):
                state = state * _FACTOR + units[j + k]
            made[j] = max(mix(state), np.uint64(1))
        cursor += _sorted_set(made, grams, spare, heads, out, cursor)
        out_offsets[i + 1] = cursor
    return out_offsets, out[:cursor]


@njit(cache=True)
def _set_keys(offsets, values):  # type: ignore[no-untyped-def]
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
