"""Near-duplicates among one relation's samples, and how far each sample is from the others.

Neither the order of the rows nor how they were partitioned changes anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.decide import decide, in_words, nearest_items, ranks
from divray.dedup.shingle import fold
from divray.dedup.verify import near_duplicates
from divray.schemas import SCORES
from divray.sections import DiversityConfig
from divray.texts import compared_texts, configured_shingles

NEIGHBOUR_FLOOR = 0.3
"""Least Jaccard similarity of a nearest neighbour that is reported, near-duplicate or not."""

MOST_VISITS = 100_000_000
"""If more pairs of sets share a shingle, neighbours below the threshold are not reported."""

DECISION = pa.schema([SCORES.field(name) for name in ("cluster", "nearest_id", "similarity", "unique", "reason")])
"""What :func:`deduplicate` adds."""

Vectors = npt.NDArray[np.floating[Any]]


def with_columns(table: pa.Table, columns: dict[str, Any], schema: pa.Schema | None = None) -> pa.Table:
    """``table`` with ``columns`` added or replaced; with ``schema``, only its columns, in its order and with its types."""
    return pa.table(dict(zip(table.column_names, table.columns, strict=True)) | columns, schema=schema)


def deduplicate(table: pa.Table, config: DiversityConfig, kept: pa.Table | None = None) -> pa.Table:
    """Find the near-duplicates among one relation's samples and say which of them stay.

    Both tables have ``candidate_id`` (distinct), ``text`` and the spans, ``table`` also ``correctness``, which may be null.
    ``kept`` are samples that an earlier call kept.  They always stay, and are compared with ``table`` only, not with each other.

    Returns:
        ``table`` with the columns :data:`DECISION` added or replaced.  ``nearest_id`` is the most similar other item with a Jaccard
        similarity of at least :data:`NEIGHBOUR_FLOOR`, else ``""``; of equally similar ones, a kept one first, then the smallest id.
    """
    parts = [table] if kept is None else [table, kept]
    texts = [text for part in parts for text in compared_texts(part, config.mask_entities)]
    ids = pa.concat_arrays([part["candidate_id"].combine_chunks() for part in parts])
    n, by_id = table.num_rows, ranks(ids)
    correctness = np.append(table["correctness"].to_numpy(), np.full(len(ids) - n, np.nan))
    sets, first, group = fold(configured_shingles(texts, config))
    shared = np.unique(sets.values, return_counts=True)[1].astype(np.float64)
    few = (shared**2).sum() <= MOST_VISITS
    floor = min(NEIGHBOUR_FLOOR, config.threshold) if few else config.threshold
    near = near_duplicates(sets, floor, own=int(np.searchsorted(first, n)))
    pairs = near.take(near.similarity >= config.threshold)
    decisions = decide(by_id, pairs, correctness, np.arange(len(ids)) >= n, group)

    preference = by_id + np.where(decisions.kept, 0, len(ids))
    nearest, similarity = nearest_items(group, preference, near)

    names = ids.take(pa.array(nearest[:n], mask=nearest[:n] < 0))
    reasons = in_words(decisions.why[:n], decisions.copy_of[:n], decisions.copy_similarity[:n], ids)
    columns = {
        "cluster": ids.take(pa.array(decisions.cluster[:n])),
        "nearest_id": pc.fill_null(names, ""),
        "similarity": similarity[:n],
        "unique": decisions.kept[:n],
        "reason": reasons,
    }
    fields = {field.name: field for field in (*table.schema, *DECISION)}  # a column that is replaced keeps its place
    return with_columns(table, columns, pa.schema(list(fields.values())))


def distances(embeddings: Vectors, staying: Vectors, own: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """1 - the cosine of each row ``[n, d]`` and the nearest row of ``staying`` ``[u, d]``; about ``n u d`` operations.

    All rows are unit vectors.  ``own``, int64 ``[n]``, is each row's own index in ``staying``, -1 for none; a row is not its own neighbour.

    Returns:
        float64 ``[n]`` in [0, 2], to six decimals; 1 where no other one stays.
    """
    from sklearn.neighbors import NearestNeighbors

    out = np.ones(len(embeddings))
    if not len(embeddings) or not len(staying):
        return out
    search = NearestNeighbors(n_neighbors=min(2, len(staying)), algorithm="brute").fit(staying)
    found = search.kneighbors(embeddings, return_distance=False)
    nearest = np.where(found[:, 0] == own, found[:, -1], found[:, 0])
    others = nearest != own
    cosines = (embeddings[others].astype(np.float64) * staying[nearest[others]].astype(np.float64)).sum(axis=1)
    out[others] = np.clip(1.0 - cosines, 0.0, 2.0)
    return np.round(out, 6)
