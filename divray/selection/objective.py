"""The objective of a selection, and the greedy choice that maximises it.

For a set ``S`` of ``k`` samples with correctness ``c`` and unit embeddings whose cosines form ``C_S``::

    F(S) = (1 - w) * mean(c_i for i in S) + w * log det(I + a C_S) / (k log(1 + a))

with ``w = selection.diversity_weight`` and ``a =`` :data:`SHARPNESS`.  The second term is the
log-determinant diversity of a determinantal point process (Kulesza and Taskar 2012, arXiv 1207.6083) with a
ridge: 1 where all samples are orthogonal, ``log(1 + a k) / (k log(1 + a))`` where all are the same.  For a
given ``k`` both terms are monotone and the second is submodular, so the greedy choice reaches at least
``1 - 1/e`` of the best value (Nemhauser et al. 1978).  Gains come from a growing Cholesky factor (Chen et al. 2018,
arXiv 1709.05135); they only ever fall, so a sample is looked at again only when its last known gain is the largest (Minoux 1978).
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

SHARPNESS = 10.0
"""Weight of the cosines against the ridge: the gain of an exact copy is 0.27 of that of an orthogonal sample."""

_SCALE = 1e9


def greedy_selection(correctness: npt.NDArray[np.float64], embeddings: npt.NDArray[Any], k: int, weight: float) -> npt.NDArray[np.int64]:
    """Row numbers of the chosen samples in the order of choice, int64 ``[min(k, n)]``; ties (to nine digits) go to the first row.

    Args:
        correctness: float64 ``[n]`` in [0, 1].
        embeddings: float32 ``[n, d]``, unit length.
        k: How many.
        weight: Of diversity, in [0, 1].
    """
    vectors = np.ascontiguousarray(embeddings, np.float32)
    return _greedy(np.asarray(correctness, np.float64), vectors, min(k, len(vectors)), float(weight), SHARPNESS)


@njit(cache=True)
def _gain(correctness, left, weight, sharpness):  # type: ignore[no-untyped-def]
    return round(((1.0 - weight) * correctness + weight * np.log(left) / np.log1p(sharpness)) * _SCALE) / _SCALE


@njit(cache=True, fastmath={"reassoc", "contract"})
def _dot(one, other, length):  # type: ignore[no-untyped-def]
    """Inner product of the first ``length`` components in float64; the sum may be taken in any order, the same each time."""
    total = 0.0
    for place in range(length):
        total += np.float64(one[place]) * np.float64(other[place])
    return total


@njit(cache=True)
def _greedy(correctness, vectors, k, weight, sharpness):  # type: ignore[no-untyped-def]
    """``factor[i]`` is the row of the Cholesky factor of sample ``i`` as far as the first ``known[i]`` choices."""
    count, width = vectors.shape
    left = np.full(count, 1.0 + sharpness)
    known = np.zeros(count, np.int64)
    factor = np.zeros((count, k))
    chosen = np.zeros(k, np.int64)
    heap = [(-_gain(correctness[row], left[row], weight, sharpness), row) for row in range(count)]
    heapq.heapify(heap)
    for step in range(k):
        while known[heap[0][1]] < step:
            row = heap[0][1]
            for place in range(known[row], step):
                other = chosen[place]
                cosine, shared = _dot(vectors[row], vectors[other], width), _dot(factor[row], factor[other], place)
                factor[row, place] = (sharpness * cosine - shared) / np.sqrt(left[other])
                # Subtracting can't take away what the ridge gives, except by rounding.
                left[row] = max(left[row] - factor[row, place] ** 2, 1.0)
            known[row] = step
            heapq.heapreplace(heap, (-_gain(correctness[row], left[row], weight, sharpness), row))
        chosen[step] = heapq.heappop(heap)[1]
    return chosen


def objective(correctness: npt.NDArray[np.float64], embeddings: npt.NDArray[np.floating[Any]], weight: float) -> float:
    """``F`` of a whole set, as :func:`greedy_selection` takes it, to six decimals; 0 for none."""
    count = len(correctness)
    if not count:
        return 0.0
    vectors = np.asarray(embeddings, dtype=np.float64)
    _, determinant = np.linalg.slogdet(np.eye(count) + SHARPNESS * vectors @ vectors.T)
    return round(float((1 - weight) * np.mean(correctness) + weight * determinant / (count * np.log1p(SHARPNESS))), 6)
