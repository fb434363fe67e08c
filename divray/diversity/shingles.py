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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from divray.diversity.hashing import hash_shingles, hash_texts
from divray.errors import InputError

if TYPE_CHECKING:
    from divray.sections import DiversityConfig

Texts: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray"

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
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.diff(self.offsets)[rows], out=offsets[1:])
        values = np.empty(offsets[-1], self.values.dtype)  # numpy has only these on huge pages
        _copy(self.offsets, self.values, rows, offsets, values)
        return Shingles(offsets, values)


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
    return Shingles(*hash_shingles(offsets, characters, size, kind == "word"))


def configured_shingles(texts: Texts, config: DiversityConfig) -> Shingles:
    """:func:`shingle` as a run's settings ask for it."""
    return shingle(texts, config.shingle_kind, config.shingle_size, strip_punctuation=config.strip_punctuation)


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
    return hash_texts(*_buffers(texts.cast(pa.large_string())))


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
def _copy(offsets, values, rows, out_offsets, out):  # type: ignore[no-untyped-def]
    for place in range(len(rows)):
        at = out_offsets[place] - offsets[rows[place]]
        for j in range(offsets[rows[place]], offsets[rows[place] + 1]):
            out[at + j] = values[j]
