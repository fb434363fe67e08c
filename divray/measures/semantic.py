"""Sentences near in meaning: all pairs at or above a cosine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divray.dedup import Pairs
from divray.dedup.verify import check_pairs
from divray.errors import InputError

BLOCK = 2048
_SLACK = 1e-5
"""Above the error of a float32 product of unit vectors of some thousand components."""


def semantic_pairs(embeddings: npt.NDArray[np.floating[Any]], threshold: float, block: int = BLOCK) -> Pairs:
    """All pairs ``left < right`` of rows whose cosine is at least ``threshold``; exact (recall and precision 1).

    The time is quadratic: about ``n^2 d`` operations, a minute a core for 100,000 rows of 384. Memory beyond the result is
    ``block^2`` floats.  Products in float32 only propose; what is reported is computed anew in float64.

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
