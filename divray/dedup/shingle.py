"""Texts as sets of hashed shingles (Broder 1997): word or character n-grams.

A collection of sets is two flat arrays (compressed sparse rows), 8 bytes a shingle.  Hashes are 64-bit, made from the UTF-8 bytes
alone: the same on every machine, in every process.  Some two of ``m`` distinct shingles share a hash with a probability of about
``m^2 / 2^65`` (3e-6 at ten million); otherwise similarities are exact.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.hashing import hash_shingles, numbered, set_keys

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
"""A letter of a script without blanks between words."""


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


def shingle(texts: Sequence[str] | pa.Array | pa.ChunkedArray, kind: Literal["word", "char"] = "word", size: int = 3) -> Shingles:
    """Each text's set of n-grams.

    Words are what ``str.lower().split()`` gives; a letter of a script that puts no blanks between words (Chinese, Japanese, Thai, …) is a
    word of its own.  Characters are code points of the lower-cased text with every run of white space as one blank and none at the ends.
    A text of fewer than ``size`` words (characters) is one shingle; so is an empty text, which thus equals every other empty text.

    Args:
        texts: Strings without nulls.
        kind: Whether n-grams are of words or of characters.
        size: n, at least 1.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.cast(pa.large_string()).combine_chunks()
    array = texts.cast(pa.large_string()) if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
    offsets, characters = _buffers(_normalised(array, kind == "word"))
    return Shingles(*hash_shingles(offsets, characters, size, kind == "word"))


def _normalised(array: pa.Array, words: bool) -> pa.Array:
    """Texts in lower case, as from ``str.lower``, with non-ASCII blanks as plain ones; ``large_string`` in and out.

    Bytes that are not UTF-8 (Arrow does not check files for them) count as U+FFFD, one for each faulty sequence.
    """
    if len(array) and (array.offset or np.frombuffer(array.buffers()[1], np.int64, 1)[0]):
        array = array.take(pa.array(np.arange(len(array))))  # ascii_lower misreads data that don't start at 0 (pyarrow 26.0)
    plain, lowered = pc.string_is_ascii(array), pc.ascii_lower(array)
    if not pc.all(plain, min_count=0).as_py():
        foreign = pc.invert(plain)
        strange = [text.decode("utf-8", "replace").lower() for text in array.filter(foreign).cast(pa.large_binary()).to_pylist()]
        lowered = pc.replace_with_mask(lowered, foreign, pa.array(strange, pa.large_string()))
        lowered = pc.replace_substring_regex(lowered, r"[\x{85}\p{Z}]", " ")
        if words:
            lowered = pc.replace_substring_regex(lowered, _UNSPACED, r" \0 ")
    return lowered


def spaced(texts: Sequence[str]) -> list[str]:
    """Texts in which the letters of scripts without blanks between words stand apart, as words do."""
    return pc.replace_substring_regex(pa.array(texts, pa.large_string()), _UNSPACED, r" \0 ").to_pylist()


def joined(parts: Sequence[Shingles]) -> Shingles:
    """The sets of all parts, one after the other."""
    sizes = [np.diff(part.offsets) for part in parts]
    values = [part.values for part in parts]
    return Shingles(np.cumsum(np.concatenate([[0], *sizes])), np.concatenate([np.zeros(0, np.uint64), *values]))


def fold(shingles: Shingles) -> tuple[Shingles, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``(sets, first, group)``: the distinct sets in order of their first rows, ``first[g]`` the first row of group ``g``
    (ascending), ``group[i]`` the group of row ``i``.

    Two sets count as equal when the 128-bit hashes of their elements are equal.  Memory: about 40 bytes a set.
    """
    group, first = numbered(*set_keys(*shingles))
    if len(first) == len(group):
        return shingles, first, group
    distinct, sizes = np.zeros(len(group), bool), np.diff(shingles.offsets)
    distinct[first] = True
    return Shingles(np.append(0, np.cumsum(sizes[first])), shingles.values[np.repeat(distinct, sizes)]), first, group


def _buffers(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets ``[n + 1]`` and bytes of a ``large_string`` array."""
    _, offset_buffer, data = array.buffers()
    offsets, characters = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    if len(array):
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if data is not None and data.size:
        characters = np.frombuffer(data, dtype=np.uint8)
    return offsets, characters
