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

from divray.dedup.hashing import fill, hash_shingles, set_keys, take_in
from divray.errors import InputError

Texts: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray"

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
    return Shingles(*hash_shingles(offsets, characters, size, kind == "word"))


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
            fill(self._keys, self.count, self._table)
        keys = set_keys(*shingles)
        number, self.count = take_in(*shingles, keys, self._keys, self._table, self.count, self._offsets, self._values)
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
