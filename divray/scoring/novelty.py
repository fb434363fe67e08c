"""Novelty of a round's samples: the distance of each to the nearest other one that stays.

It is measured within pools, the rows of one relation that are compared with each other.  The vectors that stay of each pool are held
once, and rows are measured by batches as they lie: a pool with most of the rows is measured by all workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from divray.dedup.storage import open_uri
from divray.embeddings import embedding_matrix

BLOCK = 2048
"""Rows and columns of a product."""

Staying = tuple[pa.Array, npt.NDArray[np.float32]]
"""Ids, sorted, and vectors ``[u, d]`` of a pool's rows that stay."""


def staying_vectors(uri: str, embedded: list[str], decided: list[str], pool: str) -> Staying:
    """What stays of one pool; ``embedded`` are Parquet files with ``candidate_id``, ``pool`` and ``embedding``."""
    fs, _ = open_uri(uri)
    own = pads.field("pool") == pool
    ids = pads.dataset(decided, filesystem=fs).to_table(["candidate_id"], filter=own & pads.field("unique"))["candidate_id"]
    wanted = own & pads.field("candidate_id").isin(ids.combine_chunks())
    rows = pads.dataset(embedded, filesystem=fs).to_table(["candidate_id", "embedding"], filter=wanted)
    order = pc.sort_indices(rows["candidate_id"])
    # Chunk by chunk, since the offsets of one list array end at 2^31 numbers.
    vectors = np.concatenate([embedding_matrix(chunk) for chunk in rows["embedding"].chunks if len(chunk)])
    return rows["candidate_id"].take(order).combine_chunks(), vectors[order.to_numpy()]


def novelties(batch: pa.Table, staying: dict[str, Any]) -> npt.NDArray[np.float64]:
    """:func:`distances` of each row to what stays of its pool, float64 ``[n]``; 1 where none does.

    ``batch`` has ``candidate_id``, ``pool`` and ``embedding``; ``staying`` are references to :data:`Staying` by pool.
    """
    import ray

    out = np.ones(batch.num_rows)
    for pool in batch["pool"].unique().to_pylist():
        if pool not in staying:
            continue
        ids, vectors = ray.get(staying[pool])
        mine = pc.equal(batch["pool"], pool)
        rows = batch.filter(mine)
        own = pc.fill_null(pc.index_in(rows["candidate_id"], value_set=ids), -1).to_numpy().astype(np.int64)
        out[mine.to_numpy()] = distances(embedding_matrix(rows["embedding"]), vectors, own)
    return out


def distances(
    embeddings: npt.NDArray[np.floating[Any]],
    staying: npt.NDArray[np.floating[Any]],
    own: npt.NDArray[np.int64],
    block: int = BLOCK,
) -> npt.NDArray[np.float64]:
    """1 - the cosine of each row to the nearest of those that stay; about ``n u d`` operations.

    Products in float32 only choose the nearest; its cosine is computed anew in float64.  So the result does not depend on the blocks.

    Args:
        embeddings, staying: Unit vectors ``[n, d]`` and ``[u, d]``.
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
            found = vectors[rows] @ others[start : start + block].T
            itself = np.flatnonzero((own[rows] >= start) & (own[rows] < start + block))
            found[itself, own[rows[itself]] - start] = -np.inf
            place = found.argmax(axis=1)
            value = found[np.arange(len(rows)), place]
            better = value > best
            best[better], nearest[better] = value[better], start + place[better]
        some = nearest >= 0
        cosines = (vectors[rows[some]].astype(np.float64) * others[nearest[some]].astype(np.float64)).sum(axis=1)
        out[rows[some]] = np.clip(1.0 - cosines, 0.0, 2.0)
    return np.round(out, 6)
