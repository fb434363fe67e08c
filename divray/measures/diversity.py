"""How diverse a set of sentences is.

Counts and entropies of a set grow or shrink with its size: compare sets of one size.

Nothing here depends on the order of the rows: they are sorted by text first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from divray.dedup import Texts
from divray.measures.overlap import Grams, Words, all_grams, max_rouge_l, self_bleu, words_of
from divray.texts import strings_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Vectors: TypeAlias = "npt.NDArray[Any] | csr_array"

EXACT_PRODUCTS = 8192
"""Larger sets of float32 vectors are multiplied in float32."""

_BLOCK = 4096

SAMPLED_ROWS = 1024
"""From larger sets the scores that need all pairs (n-gram Vendi, ROUGE-L) take this many rows, drawn by a fixed seed."""


def vendi_score(vectors: Vectors) -> float:
    """Vendi score with the cosine kernel: the effective number of different items (Friedman and Dieng 2023, arXiv 2210.02410).

    ``exp(-sum_i w_i ln w_i)`` over the eigenvalues ``w`` of ``K / n``, where ``K = X X^T``.  These are also those
    of ``X^T X / n``, so the smaller of the two matrices is decomposed.

    Args:
        vectors: ``[n, d]``, dense or sparse, rows of unit length. From :data:`EXACT_PRODUCTS` rows of float32 on, the products are
            float32, added up in float64 by blocks of rows: the score is then right to about six digits.

    Returns:
        From 1 (all equal) to ``n`` (all orthogonal); 0 for no rows.
    """
    n, d = vectors.shape
    if n == 0:
        return 0.0
    if not isinstance(vectors, np.ndarray):
        gram = (vectors @ vectors.T if n <= d else vectors.T @ vectors).toarray()
    elif n > d and n > EXACT_PRODUCTS and vectors.dtype == np.float32:
        gram = _blocked_gram(vectors)
    else:
        exact = vectors.astype(np.float64, copy=False)
        gram = exact @ exact.T if n <= d else exact.T @ exact
    weights = np.linalg.eigvalsh(gram / n)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def _blocked_gram(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """``X^T X``; numpy computes half of a product with one's own transpose."""
    gram = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        gram += block.T @ block
    return gram


def ngram_vectors(texts: Texts | Words, grams: Sequence[Grams] | None = None) -> csr_array:
    """Vectors whose inner products are the n-gram kernel: the mean cosine of the counts of words and of pairs of words.

    Words are those of the lower-cased text split at white space.  A text without an n-gram of some size has
    the text itself as its one n-gram.

    Args:
        texts: ``n`` sentences.
        grams: ``all_grams(words, 2)`` where known already.

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
    """Shannon entropy of the frequencies of equal values, in nats: 0 for one value, ``ln n`` for ``n`` different ones, 0 for none.

    Grows with the size of the set.
    """
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
    texts: Texts,
    embeddings: npt.NDArray[np.float32] | None = None,
    patterns: Texts | None = None,
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
    vectors = ngram_vectors(words, grams)
    scores: dict[str, float | None] = {
        "vendi_ngram": vendi_score(vectors[_drawn(len(texts), SAMPLED_ROWS)]),
        "vendi_embedding": None,
        "mean_cosine": None,
        "self_bleu": float(self_bleu(words, grams=grams).mean()) if len(texts) > 1 else None,
        "rouge_l": None,
        "pattern_entropy": entropy(patterns) if patterns is not None and len(patterns) else None,
    }
    if len(texts) > 1:
        drawn = words_of([texts[row] for row in _drawn(len(texts), SAMPLED_ROWS)])
        scores["rouge_l"] = float(max_rouge_l(drawn).mean())
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
