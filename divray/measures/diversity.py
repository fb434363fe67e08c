"""How diverse a set of sentences is, and which of them are near in meaning.

Counts and entropies of a set grow or shrink with its size: compare sets of one size.  No score depends on the order of the rows: they
are sorted by text first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from divray.dedup.shingle import Texts
from divray.dedup.verify import Pairs, check_pairs
from divray.errors import InputError
from divray.measures.overlap import Grams, Words, all_grams, max_rouge_l, self_bleu, words_of
from divray.texts import strings_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Vectors: TypeAlias = "npt.NDArray[Any] | csr_array"

EXACT_PRODUCTS = 8192
"""Larger sets of float32 vectors are multiplied in float32."""

SAMPLED_ROWS = 1024
"""From larger sets the scores that need all pairs (n-gram Vendi, ROUGE-L) take this many rows, drawn by a fixed seed."""

BLOCK = 2048
"""Rows and columns of a product, unless told otherwise."""

_SLACK = 1e-5
"""Above the error of a float32 product of unit vectors of some thousand components."""


def vendi_score(vectors: Vectors) -> float:
    """Vendi score with the cosine kernel: the effective number of different items (Friedman and Dieng 2023, arXiv 2210.02410).

    ``exp(-sum_i w_i ln w_i)`` over the eigenvalues ``w`` of ``X X^T / n``, which are also those of ``X^T X / n``: the smaller of the
    two is decomposed.

    Args:
        vectors: ``[n, d]``, dense or sparse, rows of unit length. More than :data:`EXACT_PRODUCTS` rows of float32 are multiplied in
            float32, added up in float64 by blocks of rows: the score is then right to about six digits.

    Returns:
        From 1 (all equal) to ``n`` (all orthogonal); 0 for no rows.
    """
    n, d = vectors.shape
    if n == 0:
        return 0.0
    if not isinstance(vectors, np.ndarray):
        gram = (vectors @ vectors.T if n <= d else vectors.T @ vectors).toarray()
    else:
        exact = vectors.astype(np.float64, copy=False) if n <= max(d, EXACT_PRODUCTS) else vectors
        blocks = (exact[start : start + 2 * BLOCK] for start in range(0, n, 2 * BLOCK))
        gram = exact @ exact.T if n <= d else sum((block.T @ block for block in blocks), np.zeros((d, d)))
    weights = np.linalg.eigvalsh(gram / n)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def ngram_vectors(texts: Texts | Words, grams: Sequence[Grams] | None = None) -> csr_array:
    """Vectors whose inner products are the n-gram kernel: the mean cosine of the counts of words and of pairs of words.

    A text without an n-gram of some size has the text itself as its one n-gram.  ``grams`` are ``all_grams(words, 2)`` where known.

    Returns:
        float64 ``[n, d]``, sparse, rows of unit length.
    """
    from scipy.sparse import csr_array, diags_array, hstack

    words = texts if isinstance(texts, Words) else words_of(texts)
    blocks = []
    for size, some in enumerate((grams or all_grams(words, 2))[:2], start=1):
        rows, columns, width = some.rows, some.ids, some.distinct
        if len(short := np.flatnonzero(words.lengths < size)):
            whole = [words.ids[words.offsets[row] : words.offsets[row + 1]].tobytes() for row in short]
            _, own = np.unique(np.array(whole, object), return_inverse=True)
            rows, columns, width = np.append(rows, short), np.append(columns, width + own), width + int(own.max()) + 1
        block = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(words), width))
        lengths = np.sqrt(block.power(2).sum(axis=1) * 2)
        blocks.append(diags_array(1 / np.where(lengths > 0, lengths, 1.0)) @ block)
    return hstack(blocks, format="csr")


def entropy(values: Texts) -> float:
    """Shannon entropy of the frequencies of equal values, in nats: 0 for one value, ``ln n`` for ``n`` different ones, 0 for none."""
    counts = np.array(sorted(Counter(strings_of(values)).values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0


def mean_cosine(vectors: npt.NDArray[Any]) -> float | None:
    """Mean cosine over all pairs of different rows: ``(|sum x|^2 - sum |x|^2) / (n (n - 1))``; ``None`` for fewer than two."""
    n = len(vectors)
    if n < 2:
        return None
    total = vectors.sum(axis=0, dtype=np.float64)
    squares = np.einsum("ij,ij->i", vectors, vectors).sum(dtype=np.float64)
    return float((total @ total - squares) / (n * (n - 1)))


def diversity_of(
    texts: Texts, embeddings: npt.NDArray[np.float32] | None = None, patterns: Texts | None = None
) -> dict[str, float | int | None]:
    """All scores of one set of sentences, to six decimals.

    Args:
        texts: ``n`` sentences, in a sequence or an Arrow column, with their entities masked if structure is to be compared.
        embeddings: ``[n, d]`` unit vectors of the same rows, or none.
        patterns: Connective patterns of the same rows (:func:`~divray.texts.connective_patterns`), or none.

    Returns:
        ``n``; ``vendi_ngram``, ``vendi_embedding`` (1 to n); ``distinct_1`` to ``distinct_3`` (different n-grams ÷ all, Li et al.
        2016, arXiv 1510.03055; 0 where there are none, falling with the size of the set); ``self_bleu`` (mean BLEU-4
        against all the others); ``rouge_l`` (mean of each one's largest ROUGE-L F1); ``mean_cosine`` of the embeddings;
        ``pattern_entropy`` in nats. ``None`` where a score is undefined: too few rows, no embeddings, no patterns.
        ``vendi_ngram`` and ``rouge_l`` of more than :data:`SAMPLED_ROWS` rows are those of a sample of that many.

    Raises:
        InputError: a text or a pattern is null.
    """
    texts = strings_of(texts)
    ties = [b""] * len(texts) if embeddings is None else embeddings
    order = sorted(range(len(texts)), key=lambda row: (texts[row], bytes(ties[row])))
    texts = [texts[row] for row in order]
    grams = all_grams(words := words_of(texts), 4)
    drawn = _drawn(len(texts), SAMPLED_ROWS)
    scores: dict[str, float | None] = {
        "vendi_ngram": vendi_score(ngram_vectors(words, grams)[drawn]),
        "vendi_embedding": None,
        "mean_cosine": None,
        "self_bleu": None,
        "rouge_l": None,
        "pattern_entropy": entropy(patterns) if patterns is not None and len(patterns) else None,
    }
    if len(texts) > 1:
        scores["self_bleu"] = float(self_bleu(words, grams=grams).mean())
        scores["rouge_l"] = float(max_rouge_l([texts[row] for row in drawn]).mean())
    scores |= {f"distinct_{n}": some.distinct / max(len(some.ids), 1) for n, some in enumerate(grams[:3], start=1)}
    if embeddings is not None and len(texts):
        found: npt.NDArray[Any] = np.asarray(embeddings, np.float32 if len(texts) > EXACT_PRODUCTS else np.float64)[order]
        found /= np.maximum(np.sqrt(np.einsum("ij,ij->i", found, found)), 1e-12)[:, None]
        scores["vendi_embedding"], scores["mean_cosine"] = vendi_score(found), mean_cosine(found)
    return {"n": len(texts), **{name: None if value is None else round(value, 6) for name, value in scores.items()}}


def _drawn(n: int, size: int) -> npt.NDArray[np.int64]:
    """``size`` of ``n`` rows without replacement, ascending; all of them where there are no more."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.argsort(np.random.Generator(np.random.PCG64(0)).random(n), kind="stable")[:size])


def semantic_pairs(embeddings: npt.NDArray[np.floating[Any]], threshold: float, block: int = BLOCK) -> Pairs:
    """All pairs ``left < right`` of rows whose cosine is at least ``threshold``; exact (recall and precision 1).

    The time is about ``n^2 d`` operations, a minute a core for 100,000 rows of 384; memory beyond the result is ``block^2`` floats.
    Products in float32 only propose; what is reported is computed anew in float64.

    Args:
        embeddings: ``[n, d]``, rows of unit length.
        threshold: In (-1, 1].
        block: Rows and columns of a product.

    Raises:
        InputError: The threshold is out of range, the vectors are not of unit length, or there are
            :data:`~divray.dedup.verify.MOST_PAIRS` pairs or more.
    """
    if not -1 < threshold <= 1:
        raise InputError("semantic", "threshold", f"{threshold} is not in (-1, 1]", "Give e.g. 0.9.")
    vectors = np.ascontiguousarray(embeddings, np.float32)
    if not np.allclose(np.einsum("ij,ij->i", vectors, vectors), 1, atol=1e-3):
        raise InputError("semantic", "embeddings", "a row is not of unit length", "Divide each row by its length.")
    parts, pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))], 0
    for top in range(0, len(vectors), block):
        for start in range(top, len(vectors), block):
            left, right = np.nonzero(vectors[top : top + block] @ vectors[start : start + block].T >= threshold - _SLACK)
            above = left + top < right + start
            left, right = left[above] + top, right[above] + start
            cosine = cosines(vectors, left, vectors, right)
            near = cosine >= threshold
            pairs += int(near.sum())
            check_pairs(pairs, threshold)
            parts.append((left[near], right[near], cosine[near]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def cosines(
    vectors: npt.NDArray[np.float32], left: npt.NDArray[np.int64], others: npt.NDArray[np.float32], right: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Of row ``left[i]`` of ``vectors`` and row ``right[i]`` of ``others``, in float64."""
    out = np.empty(len(left))
    for start in range(0, len(left), BLOCK):
        some = slice(start, start + BLOCK)
        out[some] = (vectors[left[some]].astype(np.float64) * others[right[some]]).sum(axis=1)
    return out
