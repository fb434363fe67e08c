"""How diverse a set of sentences is.  Works on any texts and embeddings, without a run.

Scores grow or shrink with the size of a set: compare sets of the same size.  The order of the rows changes no score: they are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divray.dedup.shingle import spaced

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SAMPLED_ROWS = 1024
"""The n-gram Vendi score compares all pairs: of a larger set it takes this many rows, drawn with a fixed seed."""


def diversity_of(texts: Sequence[str], embeddings: npt.NDArray[np.float32] | None = None) -> dict[str, float | int | None]:
    """All scores of ``n`` sentences and of their embeddings ``[n, d]``, rounded to six decimals.

    Returns:
        ``n``; ``vendi_ngram``, ``vendi_embedding`` (1 to n); ``distinct_2`` (different pairs of words ÷ all, Li et al. 2016,
        arXiv 1510.03055; 0 where there are none).  ``vendi_embedding`` is ``None`` without embeddings or sentences.
    """
    n, ties = len(texts), [b""] * len(texts) if embeddings is None else embeddings
    order = sorted(range(n), key=lambda row: (texts[row], bytes(ties[row])))
    texts = spaced([texts[row] for row in order])
    drawn = np.sort(np.random.default_rng(0).permutation(n)[:SAMPLED_ROWS])
    pairs = [pair for text in texts for pair in pairwise(text.lower().split())]
    by_ngrams = vendi_score(ngram_vectors([texts[row] for row in drawn])) if n else 0.0
    by_embedding = None
    if embeddings is not None and n:
        found = np.asarray(embeddings)[order].astype(np.float64)
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        by_embedding = vendi_score(found)
    distinct = len(set(pairs)) / max(len(pairs), 1)
    scores = {"vendi_ngram": by_ngrams, "vendi_embedding": by_embedding, "distinct_2": distinct}
    return {"n": n, **{name: None if value is None else round(value, 6) for name, value in scores.items()}}


def vendi_score(vectors: npt.NDArray[Any] | csr_array) -> float:
    """Vendi score with the cosine kernel: the effective number of different items (Friedman and Dieng 2023, arXiv 2210.02410).

    ``exp(-sum_i w_i ln w_i)`` over the eigenvalues ``w`` of ``X X^T / n``, which are also those of ``X^T X / n``.  ``vectors`` ``[n, d]``
    are dense or sparse, at least one row, each of unit length.  From 1 (all equal) to ``n`` (all orthogonal).
    """
    n, d = vectors.shape
    gram = vectors @ vectors.T if n <= d else vectors.T @ vectors
    dense = gram if isinstance(gram, np.ndarray) else gram.toarray()
    weights = np.linalg.eigvalsh(dense.astype(np.float64) / n)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def ngram_vectors(texts: Sequence[str]) -> csr_array:
    """Vectors whose inner products are the n-gram kernel: the mean cosine of the counts of words and of pairs of words.

    In a text of one word, that word counts as the one pair.  Float64 ``[n, d]``, sparse, rows of unit length; at least one row.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    counts = [TfidfVectorizer(analyzer=partial(_grams, size=size), use_idf=False) for size in (1, 2)]
    return hstack([count.fit_transform(spaced(texts)) / np.sqrt(2) for count in counts], format="csr")


def _grams(text: str, size: int) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[place : place + size]) for place in range(len(words) - size + 1)] or [" ".join(words)]
