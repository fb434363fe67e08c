"""Near-duplicates among one relation's samples, and how far each sample is from the others.

Neither the order of the rows nor how they were partitioned changes anything.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.decide import decide, in_words, ranks
from divray.dedup.shingle import fold, shingle
from divray.dedup.verify import near_duplicates
from divray.schemas import SCORES
from divray.sections import DiversityConfig
from divray.texts import compared_texts

DECISION = pa.schema([SCORES.field(name) for name in ("cluster", "nearest_id", "similarity", "unique", "reason")])
"""What :func:`deduplicate` adds."""


def with_columns(table: pa.Table, columns: dict[str, Any], schema: pa.Schema | None = None) -> pa.Table:
    """``table`` with ``columns`` added or replaced; with ``schema``, only its columns, in its order and with its types."""
    return pa.table(dict(zip(table.column_names, table.columns, strict=True)) | columns, schema=schema)


def deduplicate(table: pa.Table, config: DiversityConfig, kept: pa.Table | None = None) -> pa.Table:
    """Find the near-duplicates among one relation's samples and say which of them stay.

    Both tables have ``candidate_id`` (distinct), ``text`` and the spans, ``table`` also ``correctness``, which may be null.
    ``kept`` are samples that an earlier call kept.  They always stay, and are compared with ``table`` only, not with each other.

    Returns:
        ``table`` with the columns :data:`DECISION` added or replaced.  ``nearest_id`` of a dropped sample is the kept near-duplicate
        that is most similar, among equals the smallest id; of a kept sample it is ``""``.
    """
    parts = [table] if kept is None else [table, kept]
    texts = [text for part in parts for text in compared_texts(part, config.mask_entities)]
    ids = pa.concat_arrays([part["candidate_id"].combine_chunks() for part in parts])
    n = table.num_rows
    correctness = np.append(table["correctness"].to_numpy(), np.full(len(ids) - n, np.nan))
    sets, first, group = fold(shingle(texts))
    pairs = near_duplicates(sets, config.threshold, own=int(np.searchsorted(first, n)))
    made = decide(ranks(ids), pairs, correctness, np.arange(len(ids)) >= n, group)
    columns = {
        "cluster": ids.take(pa.array(made.cluster[:n])),
        "nearest_id": pc.fill_null(ids.take(pa.array(made.copy_of[:n], mask=made.kept[:n])), ""),
        "similarity": made.copy_similarity[:n],
        "unique": made.kept[:n],
        "reason": in_words(made.why[:n], made.copy_of[:n], made.copy_similarity[:n], ids),
    }
    fields = {field.name: field for field in (*table.schema, *DECISION)}  # a column that is replaced keeps its place
    return with_columns(table, columns, pa.schema(list(fields.values())))


def novelty(embeddings: npt.NDArray[np.floating[Any]], unique: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """1 - the cosine of each row ``[n, d]`` and the nearest other one of the ``unique`` rows; about ``n u d`` operations for ``u`` of them.

    All rows are unit vectors, and ``unique`` is bool ``[n]``.

    Returns:
        float64 ``[n]`` in [0, 2], to six decimals; 1 where no other row is unique.
    """
    from sklearn.neighbors import NearestNeighbors

    out, staying = np.ones(len(embeddings)), np.flatnonzero(unique)
    if not len(staying):
        return out
    search = NearestNeighbors(n_neighbors=min(2, len(staying)), algorithm="brute").fit(embeddings[staying])
    found = staying[search.kneighbors(embeddings, return_distance=False)]
    rows = np.arange(len(embeddings))
    nearest = np.where(found[:, 0] == rows, found[:, -1], found[:, 0])
    others = nearest != rows
    cosines = (embeddings[others].astype(np.float64) * embeddings[nearest[others]].astype(np.float64)).sum(axis=1)
    out[others] = np.clip(1.0 - cosines, 0.0, 2.0)
    return np.round(out, 6)
