"""Novelty of a round's samples in parts: the vectors that stay of each pool once, and any batch of rows against them.

A pool is a set of rows of one relation that are compared with each other.  Distances are quadratic in it, so that the
rows are measured by batches as they lie, and a pool with most of them is measured by all workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.diversity.embeddings import embedding_matrix
from divray.diversity.semantic import distances
from divray.runs import open_uri

Staying = tuple[pa.Array, npt.NDArray[np.float32]]
"""Ids, sorted, and vectors ``[u, d]`` of a pool's rows that stay."""


def pools_of(uri: str, decided: list[str]) -> list[str]:
    """The pools of which some row stays.

    Args:
        uri: Of the run, on whose file system the files lie.
        decided: Parquet files with ``candidate_id``, ``pool`` and ``unique``.
    """
    import pyarrow.dataset as pads

    batches = pads.dataset(decided, filesystem=open_uri(uri)[0]).to_batches(columns=["pool"], filter=pads.field("unique"))
    return sorted({name for batch in batches for name in batch["pool"].unique().to_pylist()})


def staying_vectors(uri: str, embedded: list[str], decided: list[str], pool: str) -> Staying:
    """What stays of one pool; ``embedded`` are Parquet files with ``candidate_id``, ``pool`` and ``embedding``."""
    import pyarrow.dataset as pads

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
    """:func:`~divray.diversity.semantic.distances` of each row to what stays of its pool, float64 ``[n]``; 1 where none does.

    Args:
        batch: Columns ``candidate_id``, ``pool`` and ``embedding``.
        staying: References to :data:`Staying` in Ray's object store, by pool.
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
