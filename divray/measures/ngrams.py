"""Texts as sequences of word numbers, and their n-grams as numbers too: the ground of the diversity scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from divray.dedup import Texts
from divray.texts import strings_of

Numbers = npt.NDArray[np.int64]


class Words(NamedTuple):
    """``n`` texts as words: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        offsets: int64 ``[n + 1]``.
        ids: int64 ``[offsets[n]]``, equal for equal words, from 0 without gaps.
    """

    offsets: Numbers
    ids: Numbers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Numbers:
        return np.diff(self.offsets)


class Grams(NamedTuple):
    """All n-grams of some size, in the order of texts and places.

    Attributes:
        rows: int64 ``[m]``, the text of each.
        ids: int64 ``[m]``, equal for equal n-grams, from 0 without gaps, by first place.
        starts: int64 ``[m]``, the place of its first word in ``Words.ids``.
    """

    rows: Numbers
    ids: Numbers
    starts: Numbers

    @property
    def distinct(self) -> int:
        return int(self.ids.max(initial=-1)) + 1


def words_of(texts: Texts) -> Words:
    """The words of the lower-cased texts, split at white space.

    Raises:
        InputError: a text is null.
    """
    split = [text.lower().split() for text in strings_of(texts)]
    offsets = np.zeros(len(split) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, split), np.int64, len(split)), out=offsets[1:])
    flat = pa.array([word for words in split for word in words], pa.large_string())
    return Words(offsets, flat.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64))


def grams_of(words: Words, size: int, shorter: Grams | None = None) -> Grams:
    """The n-grams of ``size`` words.

    Args:
        shorter: Those of ``size - 1`` words, if they are known already.
    """
    if size == 1:
        return Grams(np.repeat(np.arange(len(words)), words.lengths), words.ids, np.arange(len(words.ids)))
    shorter = grams_of(words, size - 1) if shorter is None else shorter
    whole = shorter.starts + size <= words.offsets[shorter.rows + 1]
    rows, starts = shorter.rows[whole], shorter.starts[whole]
    width = int(words.ids.max(initial=-1)) + 1
    return Grams(rows, _numbered(shorter.ids[whole] * width + words.ids[starts + size - 1]), starts)


def all_grams(words: Words, longest: int) -> list[Grams]:
    """The n-grams of 1 to ``longest`` words."""
    found = [grams_of(words, 1)]
    for size in range(2, longest + 1):
        found.append(grams_of(words, size, found[-1]))
    return found


def counts_of(grams: Grams) -> tuple[Numbers, Numbers, Numbers]:
    """How often each n-gram stands in each text: ``(row, n-gram, count)``, by row and first place."""
    return _counts(grams.rows, grams.ids, grams.distinct)


@njit(cache=True)
def _numbered(keys):  # type: ignore[no-untyped-def]
    """Equal numbers for equal keys (at least 0), from 0 by first place; by open addressing."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots = np.full(size, -1, np.int64)
    numbers = np.empty(size, np.int64)
    out = np.empty(len(keys), np.int64)
    count = 0
    for i in range(len(keys)):
        mixed = np.uint64(keys[i]) * np.uint64(0x9E3779B97F4A7C15)
        slot = np.int64((mixed ^ (mixed >> np.uint64(29))) & np.uint64(size - 1))
        while slots[slot] >= 0 and slots[slot] != keys[i]:
            slot = (slot + 1) & (size - 1)
        if slots[slot] < 0:
            slots[slot], numbers[slot] = keys[i], count
            count += 1
        out[i] = numbers[slot]
    return out


@njit(cache=True)
def _counts(rows, ids, distinct):  # type: ignore[no-untyped-def]
    of_row, of_gram, counted = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    pending = np.zeros(distinct, np.int64)
    made, start = 0, 0
    while start < len(rows):
        end = start
        while end < len(rows) and rows[end] == rows[start]:
            pending[ids[end]] += 1
            end += 1
        for i in range(start, end):
            if pending[ids[i]]:
                of_row[made], of_gram[made], counted[made] = rows[i], ids[i], pending[ids[i]]
                pending[ids[i]] = 0
                made += 1
        start = end
    return of_row[:made], of_gram[:made], counted[:made]
