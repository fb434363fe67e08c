"""The objective of a selection, and the greedy choice that maximises it.

For a set ``S`` of ``k`` samples with correctness ``c`` and unit embeddings whose cosines form ``C_S``::

    F(S) = (1 - w) * mean(c_i for i in S) + w * log det(I + a C_S) / (k log(1 + a))

with ``w = selection.diversity_weight`` and ``a =`` :data:`SHARPNESS`.  The second term is the
log-determinant diversity of a determinantal point process (Kulesza and Taskar 2012, arXiv 1207.6083) with a
ridge: 1 where all samples are orthogonal, ``log(1 + a k) / (k log(1 + a))`` where all are the same.  For a
given ``k`` both terms are monotone and the second is submodular, so the greedy choice reaches at least
``1 - 1/e`` of the best value (Nemhauser et al. 1978).  It runs in ``O(n k (k + d))`` by growing a Cholesky
factor (Chen et al. 2018, arXiv 1709.05135).
"""

from __future__ import annotations

import numpy as np

SHARPNESS = 10.0
"""Weight of the cosines against the ridge: the gain of an exact copy is 0.27 of that of an orthogonal sample."""

_DIGITS = 9


def greedy_selection(correctness: np.ndarray, embeddings: np.ndarray, k: int, weight: float) -> np.ndarray:
    """Row numbers of the chosen samples in the order of choice, int64 ``[min(k, n)]``; ties go to the first row.

    Args:
        correctness: float64 ``[n]`` in [0, 1].
        embeddings: float32 ``[n, d]``, unit length.
        k: How many.
        weight: Of diversity, in [0, 1].
    """
    count = len(correctness)
    k = min(k, count)
    left = np.full(count, 1.0 + SHARPNESS)
    factor = np.zeros((k, count))
    chosen = np.zeros(k, dtype=np.int64)
    free = np.ones(count, dtype=bool)
    for step in range(k):
        gain = (1 - weight) * correctness + weight * np.log(left) / np.log1p(SHARPNESS)
        row = int(np.argmax(np.where(free, np.round(gain, _DIGITS), -np.inf)))
        chosen[step], free[row] = row, False
        kernel = SHARPNESS * (embeddings @ embeddings[row]).astype(np.float64)
        kernel[row] += 1.0
        factor[step] = (kernel - factor[:step, row] @ factor[:step]) / np.sqrt(left[row])
        # Subtracting can't take away what the ridge gives, except by rounding.
        left = np.maximum(left - factor[step] ** 2, 1.0)
    return chosen


def objective(correctness: np.ndarray, embeddings: np.ndarray, weight: float) -> float:
    """``F`` of a whole set, to six decimals; 0 for none.

    Args:
        correctness: float64 ``[k]``.
        embeddings: float32 ``[k, d]``, unit length.
        weight: Of diversity, in [0, 1].
    """
    count = len(correctness)
    if not count:
        return 0.0
    vectors = np.asarray(embeddings, dtype=np.float64)
    _, determinant = np.linalg.slogdet(np.eye(count) + SHARPNESS * vectors @ vectors.T)
    return round(float((1 - weight) * np.mean(correctness) + weight * determinant / (count * np.log1p(SHARPNESS))), 6)
