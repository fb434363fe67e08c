"""Texts as sequences of word numbers, and their n-grams as numbers too: the ground of the diversity scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
        ids: int64 ``[m]``, equal for equal n-grams, from 0 without gaps.
        starts: int64 ``[m]``, the place of its first word in ``Words.ids``.
    """

    rows: Numbers
    ids: Numbers
    starts: Numbers

    @property
    def distinct(self) -> int:
        return int(self.ids.max(initial=-1)) + 1


def words_of(texts: Sequence[str]) -> Words:
    """The words of the lower-cased texts, split at white space."""
    split = [text.lower().split() for text in texts]
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
    ids = np.unique(shorter.ids[whole] * width + words.ids[starts + size - 1], return_inverse=True)[1]
    return Grams(rows, ids.astype(np.int64), starts)


def all_grams(words: Words, longest: int) -> list[Grams]:
    """The n-grams of 1 to ``longest`` words."""
    found = [grams_of(words, 1)]
    for size in range(2, longest + 1):
        found.append(grams_of(words, size, found[-1]))
    return found


def counts_of(grams: Grams) -> tuple[Numbers, Numbers, Numbers]:
    """How often each n-gram stands in each text: ``(row, n-gram, count)``, sorted."""
    keys, counts = np.unique(grams.rows * max(grams.distinct, 1) + grams.ids, return_counts=True)
    rows, ids = np.divmod(keys, max(grams.distinct, 1))
    return rows, ids, counts
