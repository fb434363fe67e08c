"""How much the sentences of one set repeat each other: their words and n-grams as numbers, self-BLEU and ROUGE-L."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from divray.dedup.shingle import Texts
from divray.texts import strings_of

Numbers = npt.NDArray[np.int64]

SMOOTHING = 0.1
"""Stands for a count of no match (method 1 of Chen and Cherry 2014)."""

ROUGE_WORDS = 512
"""ROUGE-L compares the first words of a text, up to so many."""


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
    """The words of the lower-cased texts, split at white space; InputError where a text is null."""
    split = [text.lower().split() for text in strings_of(texts)]
    offsets = np.zeros(len(split) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, split), np.int64, len(split)), out=offsets[1:])
    return Words(offsets, _numbered(pa.array([word for words in split for word in words], pa.large_string())))


def all_grams(words: Words, longest: int) -> list[Grams]:
    """The n-grams of 1 to ``longest`` words."""
    found = [Grams(np.repeat(np.arange(len(words)), words.lengths), words.ids, np.arange(len(words.ids)))]
    width = int(words.ids.max(initial=-1)) + 1
    for size in range(2, longest + 1):
        shorter = found[-1]
        whole = shorter.starts + size <= words.offsets[shorter.rows + 1]
        rows, starts = shorter.rows[whole], shorter.starts[whole]
        found.append(Grams(rows, _numbered(pa.array(shorter.ids[whole] * width + words.ids[starts + size - 1])), starts))
    return found


def _numbered(values: pa.Array) -> Numbers:
    """Equal numbers for equal values, from 0 by first place."""
    return values.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def counts_of(grams: Grams) -> tuple[Numbers, Numbers, Numbers]:
    """How often each n-gram stands in each text: ``(row, n-gram, count)``, in the order of both."""
    pairs, counts = np.unique(grams.rows * grams.distinct + grams.ids, return_counts=True)
    rows, ids = np.divmod(pairs, max(grams.distinct, 1))
    return rows, ids, counts


def self_bleu(texts: Texts | Words, size: int = 4, grams: list[Grams] | None = None) -> npt.NDArray[np.float64]:
    """BLEU of each sentence against all the others (Zhu et al. 2018, arXiv 1802.01886); high is repetitive.

    BLEU is that of Papineni et al. (2002) with uniform weights over n-grams of 1 to ``size`` words, the closest other
    length as reference length (the shorter of two equally close), and :data:`SMOOTHING` for the numerators that are 0;
    a sentence that shares no word with another has 0.  A match is clipped at the n-gram's largest count in any one
    *other* sentence: its largest count in the set, or the second largest for the sentence that holds the largest alone.
    So the result is exact in time linear in the words (but for sorting).

    ``grams`` are ``all_grams(words, size)`` where known already.  Float64 ``[n]`` in [0, 1], all 0 for fewer than two sentences.
    """
    words = texts if isinstance(texts, Words) else words_of(texts)
    n, lengths = len(words), words.lengths
    if n < 2:
        return np.zeros(n)
    logarithm, sharing = np.zeros(n), np.zeros(n, bool)
    for order, some in enumerate((grams or all_grams(words, size))[:size], start=1):
        matches = np.bincount(*_clipped(some), minlength=n)
        if order == 1:
            sharing = matches > 0
        possible = np.maximum(lengths - order + 1, 1)
        logarithm += np.log(np.where(matches > 0, matches, SMOOTHING) / possible) / size
    closest = _closest_lengths(lengths)
    brevity = np.where(lengths < closest, 1 - closest / np.maximum(lengths, 1), 0.0)
    return np.where(sharing, np.exp(logarithm + brevity), 0.0)


def _clipped(grams: Grams) -> tuple[Numbers, Numbers]:
    """Row and count of each n-gram of each text, or the largest count in another text where that is smaller."""
    rows, ids, counts = counts_of(grams)
    most = counts.max(initial=0) + 1
    ascending = np.sort(ids * most + counts)
    holders = np.bincount(ids, minlength=grams.distinct)
    second = np.where(holders > 1, ascending[np.cumsum(holders) - 2] % most, 0)
    return rows, np.minimum(counts, second[ids])  # the second is the largest itself where two sentences hold it


def _closest_lengths(lengths: Numbers) -> Numbers:
    """For each text the length, of all other texts, that is closest to its own; the shorter of two."""
    distinct, place, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    far = np.iinfo(np.int64).max // 4
    padded = np.concatenate([[-far], distinct, [far]])
    below, above = padded[:-2], padded[2:]
    nearest = np.where(distinct - below <= above - distinct, below, above)
    return np.where(counts > 1, distinct, nearest)[place]


def max_rouge_l(texts: Texts | Words) -> npt.NDArray[np.float64]:
    """The largest ROUGE-L F1 of each sentence with any of the others (Lin 2004; as a filter: Wang et al. 2023, arXiv 2212.10560).

    ``F1 = 2 l / (a + b)`` for two sentences of ``a`` and ``b`` words whose longest common subsequence has ``l``.
    Float64 ``[n]`` in [0, 1], all 0 for fewer than two sentences; the time is quadratic in their number.
    """
    words = texts if isinstance(texts, Words) else words_of(texts)
    return _max_rouge_l(words.offsets, words.ids, ROUGE_WORDS)


@njit(cache=True)
def _max_rouge_l(offsets, ids, limit):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    best = np.zeros(n)
    row = np.zeros(limit + 1, np.int32)
    for i in range(n):
        a = min(offsets[i + 1] - offsets[i], limit)
        for j in range(i):
            b = min(offsets[j + 1] - offsets[j], limit)
            if a == 0 or b == 0:
                continue
            bound = 2.0 * min(a, b) / (a + b)
            if bound <= best[i] and bound <= best[j]:
                continue
            row[: b + 1] = 0
            for p in range(a):
                word = ids[offsets[i] + p]
                diagonal = 0
                for q in range(1, b + 1):
                    above = row[q]
                    if ids[offsets[j] + q - 1] == word:
                        row[q] = diagonal + 1
                    elif row[q - 1] > above:
                        row[q] = row[q - 1]
                    diagonal = above
            f1 = 2.0 * row[b] / (a + b)
            best[i] = max(best[i], f1)
            best[j] = max(best[j], f1)
    return best
