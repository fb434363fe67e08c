"""Pairs near in meaning where a partition is too large for all products: approximate, with a stated recall.

An inverted file as of Sivic & Zisserman (2003): k-means cuts the sphere into cells, each row stands in the cells of
its nearest centres, and rows are compared within a cell, exactly.  What is found is right (precision 1); what is
missed are pairs without a common cell.  Their share is estimated from the exact neighbours of sampled rows, and rows
stand in as many cells as the wanted recall takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from divray.diversity.joins import check_pairs
from divray.diversity.neighbours import Pairs
from divray.diversity.semantic import BLOCK, pairs_among, pairs_between, semantic_pairs, unit_rows

EXACT_ROWS = 20_000
"""Rows up to which all products are taken."""
MOST_CELLS_A_ROW = 32
_TRAINING_ROWS_A_CELL = 50
_COMPACTED = 1 << 20


class ApproximatePairs(NamedTuple):
    """What was found, and how much of what there is that is.

    Attributes:
        pairs: Pairs of rows with their exact cosine, at or above the threshold.
        recall: Estimated share of all such pairs, in [0, 1]; 1.0 where all products were taken.
        sampled_pairs: Pairs that the estimate rests on; 0: none was met, and the estimate says nothing.
        cells_a_row: In how many cells a row stands.
    """

    pairs: Pairs
    recall: float
    sampled_pairs: int
    cells_a_row: int


def approximate_semantic_pairs(
    embeddings: npt.NDArray[np.floating[Any]],
    threshold: float,
    recall: float = 0.99,
    *,
    cells: int | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> ApproximatePairs:
    """Most pairs of rows whose cosine is at least ``threshold``, and the share of them that was found.

    The time is about ``n^2 d m^2 / cells`` operations with ``m`` cells a row, where :func:`~.semantic.semantic_pairs`
    takes ``n^2 d``.

    Args:
        embeddings: ``[n, d]``, rows of unit length.
        threshold: In (-1, 1].
        recall: Wanted share of the pairs; a row then stands in 1, 2, 4, … cells, at most ``MOST_CELLS_A_ROW``.
        cells: How many cells; default: the root of ``n``.  Given, all sizes of ``n`` are cut.
        sample: Rows whose exact neighbours are taken to estimate the recall.
        seed: Of the sample and of k-means.

    Raises:
        InputError: As of :func:`~.semantic.semantic_pairs`.
    """
    n = len(embeddings)
    if n < 2 or (cells is None and n <= EXACT_ROWS):
        return ApproximatePairs(semantic_pairs(embeddings, threshold), 1.0, 0, 1)
    vectors = unit_rows(embeddings, threshold)
    rng = np.random.default_rng(seed)
    places = _nearest_cells(vectors, cells or max(1, int(n**0.5)), rng)
    chosen = np.sort(rng.choice(n, min(sample, n), replace=False))
    left, right, _ = pairs_between(vectors, chosen, np.arange(n), threshold)
    left, right = left[left != right], right[left != right]
    most, found = places.shape[1], 1.0
    width = 1
    while True:
        if len(left):
            found = float(_share_a_cell(places, left, right, width).mean())
        if found >= recall or width == most:
            break
        width = min(2 * width, most)
    return ApproximatePairs(_within_cells(vectors, places[:, :width], threshold), found, len(left), width)


def _nearest_cells(vectors: npt.NDArray[np.float32], cells: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """``[n, m]``: the cells of each row's nearest centres, nearest first."""
    from sklearn.cluster import MiniBatchKMeans

    rows = rng.choice(len(vectors), min(len(vectors), _TRAINING_ROWS_A_CELL * cells), replace=False)
    means = MiniBatchKMeans(min(cells, len(rows)), n_init=1, batch_size=4096, random_state=int(rng.integers(2**31)))
    centres = means.fit(vectors[rows]).cluster_centers_
    centres = (centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    most = min(MOST_CELLS_A_ROW, len(centres))
    out = np.empty((len(vectors), most), np.int32)
    for top in range(0, len(vectors), BLOCK):
        cosines = vectors[top : top + BLOCK] @ centres.T
        nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(cosines, nearest, axis=1), axis=1, kind="stable")
        out[top : top + BLOCK] = np.take_along_axis(nearest, order, axis=1)
    return out


def _share_a_cell(
    places: npt.NDArray[np.int32], left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], width: int
) -> npt.NDArray[np.bool_]:
    out = np.zeros(len(left), bool)
    for one in range(width):
        for other in range(width):
            out |= places[left, one] == places[right, other]
    return out


def _within_cells(vectors: npt.NDArray[np.float32], places: npt.NDArray[np.int32], threshold: float) -> Pairs:
    n, width = places.shape
    order = np.argsort(places, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(places.ravel()))
    pairs, cosines = np.zeros(0, np.int64), np.zeros(0)
    keys, values, waiting = [pairs], [cosines], 0
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        left, right, cosine = pairs_among(vectors, np.sort(order[start:end] // width), threshold)
        keys.append(left * n + right)
        values.append(cosine)
        waiting += len(left)
        if waiting > max(len(pairs), _COMPACTED) or end == ends[-1]:
            # A pair stands in up to ``width`` cells; held and counted it is once.
            pairs, first = np.unique(np.concatenate(keys), return_index=True)
            cosines = np.concatenate(values)[first]
            check_pairs(len(pairs), threshold)
            keys, values, waiting = [pairs], [cosines], 0
    return Pairs(pairs // n, pairs % n, cosines)
