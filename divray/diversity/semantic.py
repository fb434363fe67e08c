"""Sentences near in meaning: exact pairs above a cosine, and the distance to the nearest one.

Products are taken in float32, block by block, and only propose; what is reported is computed anew in float64 from the
two vectors alone.  So the result does not depend on the blocks, and its error is that of the embeddings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divray.diversity.neighbours import Pairs
from divray.errors import InputError

BLOCK = 2048
_SLACK = 1e-5
"""Above the error of a float32 product of unit vectors of some thousand components."""


def semantic_pairs(embeddings: npt.NDArray[np.floating[Any]], threshold: float, block: int = BLOCK) -> Pairs:
    """All pairs of rows whose cosine is at least ``threshold``; exact (recall and precision 1).

    The time is quadratic: about ``n^2 d`` operations, a minute a core for 100,000 rows of 384. Memory beyond the result is
    ``block^2`` floats. One partition (a relation) at a time; for larger ones see :mod:`divray.diversity.cells`.

    Args:
        embeddings: ``[n, d]``, rows of unit length.
        threshold: In (-1, 1].
        block: Rows and columns of a product.

    Raises:
        InputError: The threshold is out of range, or the vectors are not of unit length.
    """
    vectors = unit_rows(embeddings, threshold)
    n = len(vectors)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for top in range(0, n, block):
        left, right, cosine = pairs_between(vectors, np.arange(top, min(top + block, n)), np.arange(top, n), threshold, block)
        above = left < right
        found.append((left[above], right[above], cosine[above]))
    left, right, cosine = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], cosine[order])


def pairs_between(
    vectors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    threshold: float,
    block: int = BLOCK,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Every ``(row, other)`` at or above ``threshold``, a row and itself too, and their cosines; in no order."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for top in range(0, len(rows), block):
        some = rows[top : top + block]
        own = vectors[some]
        for start in range(0, len(others), block):
            beside = others[start : start + block]
            near = np.argwhere(own @ vectors[beside].T >= threshold - _SLACK)
            left, right = some[near[:, 0]], beside[near[:, 1]]
            cosine = _cosines(vectors, left, right)
            keep = cosine >= threshold
            found.append((left[keep], right[keep], cosine[keep]))
    left, right, cosine = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right, cosine


def novelty(embeddings: npt.NDArray[np.floating[Any]], unique: npt.NDArray[np.bool_], block: int = BLOCK) -> npt.NDArray[np.float64]:
    """Distance of each sample to the nearest other one that stays: 1 - the largest cosine.

    Args:
        embeddings: ``[n, d]`` unit vectors.
        unique: bool ``[n]``, which rows stay; only these count as neighbours.
        block: Rows and columns of a product.

    Returns:
        float64 ``[n]`` in [0, 2], to six decimals; 1 where no other unique sample exists.  Of neighbours that float32
        can't tell apart (1e-7) any may be taken.
    """
    vectors = np.ascontiguousarray(embeddings, np.float32)
    staying = np.flatnonzero(unique)
    out = np.ones(len(vectors))
    for top in range(0, len(vectors), block):
        rows = np.arange(top, min(top + block, len(vectors)))
        best, nearest = np.full(len(rows), -np.inf, np.float32), np.full(len(rows), -1, np.int64)
        for start in range(0, len(staying), block):
            columns = staying[start : start + block]
            cosines = vectors[rows] @ vectors[columns].T
            cosines[rows[:, None] == columns[None, :]] = -np.inf
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(rows)), place]
            better = value > best
            best[better], nearest[better] = value[better], columns[place[better]]
        found = nearest >= 0
        out[rows[found]] = np.clip(1.0 - _cosines(vectors, rows[found], nearest[found]), 0.0, 2.0)
    return np.round(out, 6)


def _cosines(vectors: npt.NDArray[np.float32], left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    out = np.empty(len(left))
    for start in range(0, len(left), BLOCK):
        some = slice(start, start + BLOCK)
        out[some] = (vectors[left[some]].astype(np.float64) * vectors[right[some]]).sum(axis=1)
    return out


def unit_rows(embeddings: npt.NDArray[np.floating[Any]], threshold: float) -> npt.NDArray[np.float32]:
    """The embeddings as float32, checked.

    Raises:
        InputError: The threshold is out of range, or the vectors are not of unit length.
    """
    if not -1 < threshold <= 1:
        raise InputError("semantic", "threshold", f"{threshold} is not in (-1, 1]", "Give e.g. 0.9.")
    vectors = np.ascontiguousarray(embeddings, np.float32)
    lengths = np.einsum("ij,ij->i", vectors, vectors) if len(vectors) else np.ones(1)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise InputError("semantic", "embeddings", "a row is not of unit length", "Divide each row by its length.")
    return vectors
