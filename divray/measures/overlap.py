"""How much the sentences of one set repeat each other: self-BLEU and ROUGE-L."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.dedup import Texts
from divray.measures.ngrams import Grams, Numbers, Words, all_grams, counts_of, words_of

SMOOTHING = 0.1
"""Stands for a count of no match (method 1 of Chen and Cherry 2014)."""

ROUGE_WORDS = 512
"""ROUGE-L compares the first words of a text, up to so many."""


def self_bleu(texts: Texts | Words, size: int = 4, grams: list[Grams] | None = None) -> npt.NDArray[np.float64]:
    """BLEU of each sentence against all the others (Zhu et al. 2018, arXiv 1802.01886); high is repetitive.

    BLEU is that of Papineni et al. (2002) with uniform weights over n-grams of 1 to ``size`` words, the closest other
    length as reference length (the shorter of two equally close), and :data:`SMOOTHING` for the numerators that are 0;
    a sentence that shares no word with another has 0.  A match is clipped at the n-gram's largest count in any one
    *other* sentence.  That is its largest count in the set, or the second largest for the sentence that holds the
    largest alone, so two numbers an n-gram make the whole index and the result is exact in time linear in the words
    (but for sorting).

    Args:
        texts: ``n`` sentences, in a sequence or an Arrow column; none of them null.
        size: Longest n-gram.
        grams: ``all_grams(words, size)`` where known already.

    Returns:
        float64 ``[n]`` in [0, 1]; all 0 for fewer than two sentences.
    """
    words = texts if isinstance(texts, Words) else words_of(texts)
    n, lengths = len(words), words.lengths
    if n < 2:
        return np.zeros(n)
    logarithm = np.zeros(n)
    sharing = np.zeros(n, bool)
    for order, some in enumerate((grams or all_grams(words, size))[:size], start=1):
        matches = np.bincount(*_clipped(some), minlength=n)
        if order == 1:
            sharing = matches > 0
        possible = np.maximum(lengths - order + 1, 1)
        logarithm += np.log(np.where(matches > 0, matches, SMOOTHING) / possible) / size
    closest = _closest_lengths(lengths)
    brevity = np.where(lengths < closest, 1 - closest / np.maximum(lengths, 1), 0.0)
    return np.where(sharing, np.exp(logarithm + brevity), 0.0)


def _clipped(grams: Grams) -> tuple[Numbers, npt.NDArray[np.float64]]:
    """Row and clipped count of each n-gram of each text."""
    rows, ids, counts = counts_of(grams)
    return rows, _clip(ids, counts, grams.distinct)


@njit(cache=True)
def _clip(ids, counts, distinct):  # type: ignore[no-untyped-def]
    """Each count, or the largest of the others of its n-gram where that is smaller."""
    largest, second = np.zeros(distinct, np.int64), np.zeros(distinct, np.int64)
    for i in range(len(ids)):
        if counts[i] >= largest[ids[i]]:
            second[ids[i]], largest[ids[i]] = largest[ids[i]], counts[i]
        elif counts[i] > second[ids[i]]:
            second[ids[i]] = counts[i]
    out = np.empty(len(ids))
    for i in range(len(ids)):
        out[i] = min(counts[i], second[ids[i]])  # the second is the largest itself where two sentences hold it
    return out


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
    The time is quadratic in the number of sentences.

    Returns:
        float64 ``[n]`` in [0, 1]; all 0 for fewer than two sentences.
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
