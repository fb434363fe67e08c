"""Sentences near in meaning: exact pairs above a cosine, and the distance to the nearest one.

Products are taken in float32, block by block, and only propose; what is reported is computed anew in float64 from the
two vectors alone.  So the result does not depend on the blocks, and its error is that of the embeddings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from divray.diversity.joins import Found, check_pairs
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
        InputError: The threshold is out of range, the vectors are not of unit length, or there are
            :data:`~divray.diversity.joins.MOST_PAIRS` pairs or more.
    """
    vectors = unit_rows(embeddings, threshold)
    n = len(vectors)
    tops = range(0, n, block)
    blocks = (_near_blocks(vectors, np.arange(top, min(top + block, n)), np.arange(top, n), threshold, block) for top in tops)
    left, right, cosine = gathered(map(once, itertools.chain.from_iterable(blocks)), threshold)
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], cosine[order])


def pairs_between(
    vectors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    threshold: float,
    block: int = BLOCK,
) -> Found:
    """Every ``(row, other)`` at or above ``threshold``, a row and itself too, and their cosines; in no order.

    Raises:
        InputError: There are :data:`~divray.diversity.joins.MOST_PAIRS` or more.
    """
    return gathered(_near_blocks(vectors, rows, others, threshold, block), threshold)


def pairs_among(vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], threshold: float, block: int = BLOCK) -> Found:
    """As :func:`pairs_between` of ``rows`` and themselves, each pair once, the smaller row first."""
    return gathered(map(once, _near_blocks(vectors, rows, rows, threshold, block)), threshold)


def gathered(parts: Iterable[Found], threshold: float) -> Found:
    """All parts as one, counted as they come in."""
    kept, pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))], 0
    for part in parts:
        pairs += len(part[0])
        check_pairs(pairs, threshold)
        kept.append(part)
    left, right, cosine = (np.concatenate(column) for column in zip(*kept, strict=True))
    return left, right, cosine


def once(found: Found) -> Found:
    """The pairs whose smaller row comes first."""
    left, right, cosine = found
    above = left < right
    return left[above], right[above], cosine[above]


def _near_blocks(
    vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], others: npt.NDArray[np.int64], threshold: float, block: int
) -> Iterator[Found]:
    for top in range(0, len(rows), block):
        some = rows[top : top + block]
        own = vectors[some]
        for start in range(0, len(others), block):
            beside = others[start : start + block]
            near = np.argwhere(own @ vectors[beside].T >= threshold - _SLACK)
            left, right = some[near[:, 0]], beside[near[:, 1]]
            cosine = _cosines(vectors, left, vectors, right)
            keep = cosine >= threshold
            yield left[keep], right[keep], cosine[keep]


def novelty(embeddings: npt.NDArray[np.floating[Any]], unique: npt.NDArray[np.bool_], block: int = BLOCK) -> npt.NDArray[np.float64]:
    """Distance of each sample to the nearest other one that stays: 1 - the largest cosine.

    Args:
        embeddings: ``[n, d]`` unit vectors.
        unique: bool ``[n]``, which rows stay; only these count as neighbours.
        block: Rows and columns of a product.

    Returns:
        As of :func:`distances`.
    """
    staying = np.flatnonzero(unique)
    own = np.full(len(unique), -1, np.int64)
    own[staying] = np.arange(len(staying))
    return distances(embeddings, np.asarray(embeddings)[staying], own, block)


def distances(
    embeddings: npt.NDArray[np.floating[Any]],
    staying: npt.NDArray[np.floating[Any]],
    own: npt.NDArray[np.int64],
    block: int = BLOCK,
) -> npt.NDArray[np.float64]:
    """Distance of each row to the nearest of those that stay; about ``n u d`` operations, so that rows may be spread over tasks.

    Args:
        embeddings: ``[n, d]`` unit vectors.
        staying: ``[u, d]`` unit vectors.
        own: int64 ``[n]``, which of ``staying`` is the row itself, and no neighbour; -1 for none.
        block: Rows and columns of a product.

    Returns:
        float64 ``[n]`` in [0, 2], to six decimals; 1 where no other one stays.  Of neighbours that float32
        can't tell apart (1e-7) any may be taken.
    """
    vectors, others = np.ascontiguousarray(embeddings, np.float32), np.ascontiguousarray(staying, np.float32)
    out = np.ones(len(vectors))
    for top in range(0, len(vectors), block):
        rows = np.arange(top, min(top + block, len(vectors)))
        best, nearest = np.full(len(rows), -np.inf, np.float32), np.full(len(rows), -1, np.int64)
        for start in range(0, len(others), block):
            cosines = vectors[rows] @ others[start : start + block].T
            itself = np.flatnonzero((own[rows] >= start) & (own[rows] < start + block))
            cosines[itself, own[rows[itself]] - start] = -np.inf
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(rows)), place]
            better = value > best
            best[better], nearest[better] = value[better], start + place[better]
        found = nearest >= 0
        out[rows[found]] = np.clip(1.0 - _cosines(vectors, rows[found], others, nearest[found]), 0.0, 2.0)
    return np.round(out, 6)


def _cosines(
    vectors: npt.NDArray[np.float32], left: npt.NDArray[np.int64], others: npt.NDArray[np.float32], right: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Of row ``left[i]`` of ``vectors`` and row ``right[i]`` of ``others``."""
    out = np.empty(len(left))
    for start in range(0, len(left), BLOCK):
        some = slice(start, start + BLOCK)
        out[some] = (vectors[left[some]].astype(np.float64) * others[right[some]]).sum(axis=1)
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
