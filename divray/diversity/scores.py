"""How diverse a set of sentences is.

Counts and entropies of a set grow or shrink with its size.  Two sets of different sizes are compared
by the ``…_at_k`` scores alone: the mean of the same score over subsets of ``k``.

Nothing here depends on the order of the rows: they are sorted by text first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from divray.diversity.shingles import Shingles, shingle

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Vectors: TypeAlias = "npt.NDArray[np.float64] | csr_array"

SAMPLED_ROWS = 2048
"""From larger sets the scores that need all pairs (n-gram Vendi, mean Jaccard) take this many rows, drawn by a fixed seed."""


def vendi_score(vectors: Vectors) -> float:
    """Vendi score with the cosine kernel: the effective number of different items (Friedman and Dieng 2023, arXiv 2210.02410).

    ``exp(-sum_i w_i ln w_i)`` over the eigenvalues ``w`` of ``K / n``, where ``K = X X^T``.  These are also those
    of ``X^T X / n``, so the smaller of the two matrices is decomposed.

    Args:
        vectors: ``[n, d]``, dense or sparse, rows of unit length.

    Returns:
        From 1 (all equal) to ``n`` (all orthogonal); 0 for no rows.
    """
    n, d = vectors.shape
    if n == 0:
        return 0.0
    gram = vectors @ vectors.T if n <= d else vectors.T @ vectors
    weights = np.linalg.eigvalsh((gram if isinstance(gram, np.ndarray) else gram.toarray()) / n)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def vendi_at(vectors: Vectors, size: int, draws: int = 64, seed: int = 0) -> float | None:
    """Mean :func:`vendi_score` of ``draws`` random subsets of ``size`` rows, without replacement.

    Comparable between sets of any size.  The subsets follow from ``n``, ``size`` and ``seed``.  ``None`` where there are
    fewer rows than ``size``.
    """
    n = vectors.shape[0]
    if n < size:
        return None
    if n == size:
        return vendi_score(vectors)
    return float(np.mean([vendi_score(vectors[_drawn(n, size, seed * draws + draw)]) for draw in range(draws)]))


def ngram_vectors(texts: Sequence[str], sizes: Sequence[int] = (1, 2)) -> csr_array:
    """Vectors whose inner products are the n-gram kernel: the mean over ``sizes`` of the cosine of n-gram counts.

    Words are those of the lower-cased text split at white space.  A text without an n-gram of some size has
    the text itself as its one n-gram.

    Returns:
        float64 ``[n, d]``, sparse, rows of unit length.
    """
    from scipy.sparse import csr_array, diags_array, hstack

    blocks = []
    for size in sizes:
        rows, columns, counts = _counts(texts, size)
        width = int(columns.max(initial=-1)) + 1
        block = csr_array((counts, (rows, columns)), shape=(len(texts), width))
        lengths = np.sqrt(block.power(2).sum(axis=1) * len(sizes))
        blocks.append(diags_array(1 / np.where(lengths > 0, lengths, 1.0)) @ block)
    return hstack(blocks, format="csr")


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words ÷ all n-grams, over the whole set (Li et al. 2016, arXiv 1510.03055); 0 where there are none.

    Falls with the size of the set.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def mean_cosine(vectors: npt.NDArray[np.float64]) -> float | None:
    """Mean cosine over all pairs of different rows: ``(|sum x|^2 - sum |x|^2) / (n (n - 1))``; ``None`` for fewer than two."""
    n = len(vectors)
    if n < 2:
        return None
    total = vectors.sum(axis=0)
    return float((total @ total - (vectors * vectors).sum()) / (n * (n - 1)))


def mean_jaccard(shingles: Shingles) -> float | None:
    """Mean Jaccard similarity over all pairs of different sets; ``None`` for fewer than two.

    Of more than :data:`SAMPLED_ROWS` sets that many are drawn.
    """
    from scipy.sparse import csr_array

    shingles = shingles.take(_drawn(len(shingles), SAMPLED_ROWS))
    n = len(shingles)
    if n < 2:
        return None
    _, columns = np.unique(shingles.values, return_inverse=True)
    sets = csr_array((np.ones(len(columns)), columns, shingles.offsets), shape=(n, int(columns.max()) + 1))
    shared = (sets @ sets.T).toarray()
    sizes = np.diff(shingles.offsets)
    similarity = shared / (sizes[:, None] + sizes[None, :] - shared)
    return float((similarity.sum() - n) / (n * (n - 1)))


def diversity_of(
    texts: Sequence[str], embeddings: npt.NDArray[np.float32] | None = None, sample_size: int = 16
) -> dict[str, float | int | None]:
    """All scores of one set of sentences, to six decimals.

    Args:
        texts: ``n`` sentences, with their entities masked if structure is to be compared.
        embeddings: ``[n, d]`` unit vectors of the same rows, or none.
        sample_size: ``k`` of the scores at a fixed size.

    Returns:
        ``n``; ``vendi_ngram``, ``vendi_embedding`` (1 to n) and the same ``_at_{k}``; ``distinct_1`` to ``distinct_3``;
        ``mean_cosine`` of the embeddings; ``mean_jaccard`` of word 3-grams. ``None`` where a score is undefined: too
        few rows, or no embeddings. ``vendi_ngram`` and ``mean_jaccard`` of more than :data:`SAMPLED_ROWS` rows are
        those of a sample of that many.
    """
    order = sorted(range(len(texts)), key=texts.__getitem__)
    texts = [texts[row] for row in order]
    grams = ngram_vectors(texts)
    at = f"at_{sample_size}"
    scores: dict[str, float | None] = {
        "vendi_ngram": vendi_score(grams[_drawn(len(texts), SAMPLED_ROWS)]),
        f"vendi_ngram_{at}": vendi_at(grams, sample_size),
        "vendi_embedding": None,
        f"vendi_embedding_{at}": None,
        "mean_cosine": None,
        "mean_jaccard": mean_jaccard(shingle(texts)),
    }
    scores |= {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
    if embeddings is not None and len(texts):
        vectors = np.asarray(embeddings, np.float64)[order]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        scores["vendi_embedding"], scores["mean_cosine"] = vendi_score(vectors), mean_cosine(vectors)
        scores[f"vendi_embedding_{at}"] = vendi_at(vectors, sample_size)
    return {"n": len(texts), **{name: None if value is None else round(value, 6) for name, value in scores.items()}}


def _drawn(n: int, size: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """``size`` of ``n`` rows without replacement, ascending; all of them where there are no more."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.argsort(np.random.Generator(np.random.PCG64(seed)).random(n), kind="stable")[:size])


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _counts(texts: Sequence[str], n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    rows: list[int] = []
    columns: list[int] = []
    vocabulary: dict[tuple[str, ...], int] = {}
    for row, text in enumerate(texts):
        for gram in _ngrams(text, n) or [tuple(text.lower().split())]:
            rows.append(row)
            columns.append(vocabulary.setdefault(gram, len(vocabulary)))
    return np.array(rows, np.int64), np.array(columns, np.int64), np.ones(len(rows))
