"""Sentences that come near a reference, such as a test set: a guard against leaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from divray.dedup import best_of, fold, near_duplicates, ranks
from divray.sections import DiversityConfig
from divray.texts import SPANS, checked, compared_texts, configured_shingles

Rows = npt.NDArray[np.int64]


def near_reference(
    table: pa.Table,
    reference: pa.Table,
    config: DiversityConfig,
    identity: str = "candidate_id",
    reference_identity: str = "example_id",
) -> pa.Table:
    """The rows of ``table`` that are near-duplicates of a row of ``reference``, under whatever label.

    A guard errs on the safe side: near are rows whose texts are, and, with ``config.mask_entities`` and spans in
    both tables, also those whose texts are once head and tail are masked.

    Returns:
        Columns ``identity``, ``near`` (``reference_identity`` of the most similar row, then of the smallest) and
        ``similarity`` (the larger of the two); sorted, near rows only.

    Raises:
        InputError: A column is missing or of a wrong kind, a text or id is null, or the threshold is out of range.
    """
    n, m = table.num_rows, reference.num_rows
    marked = config.mask_entities and set(SPANS) <= set(table.column_names) & set(reference.column_names)
    table = checked(table, "table", identity, spans=marked)
    reference = checked(reference, "reference", reference_identity, spans=marked)
    preference = ranks(reference[reference_identity])
    rows, others, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for mask in (False, True) if marked else (False,):
        # Only pairs across the two tables count, so that rows of the larger one are not compared with each other.
        small, large = (table, reference) if n < m else (reference, table)
        sets, first, group = fold(configured_shingles(compared_texts(small, mask) + compared_texts(large, mask), config))
        pairs = near_duplicates(sets, config.threshold, own=int(np.searchsorted(first, min(n, m))))
        mine, theirs = (group[:n], group[n:]) if n < m else (group[m:], group[:m])
        # One reference row, the preferred one, stands for all with the same set.
        keeper = np.full(len(first), -1, np.int64)
        by_preference = np.argsort(-preference)
        keeper[theirs[by_preference]] = by_preference
        own_groups = np.arange(len(first))
        sides = (np.concatenate([own_groups, pairs.left, pairs.right]), np.concatenate([own_groups, pairs.right, pairs.left]))
        similarity = np.concatenate([np.ones(len(first)), np.tile(pairs.similarity, 2)])
        useful = keeper[sides[1]] >= 0
        nearest, best = _best_reference(len(first), sides[0][useful], keeper[sides[1][useful]], similarity[useful], preference)
        near = np.flatnonzero(nearest[mine] >= 0)
        rows.append(near)
        others.append(nearest[mine[near]])
        values.append(best[mine[near]])
    nearest, best = _best_reference(n, np.concatenate(rows), np.concatenate(others), np.concatenate(values), preference)
    near = np.flatnonzero(nearest >= 0)
    made = {
        identity: table[identity].take(pa.array(near)),
        "near": reference[reference_identity].take(pa.array(nearest[near])),
        "similarity": pa.array(best[near], pa.float64()),
    }
    return pa.table(made).combine_chunks().sort_by(identity)


def _best_reference(
    n: int, rows: Rows, others: Rows, similarity: npt.NDArray[np.float64], preference: Rows
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """For each of ``n`` rows the best of the references ``others[i]`` that ``rows[i]`` is near, -1 where there is none."""
    total = n + len(preference)
    ranks = np.concatenate([np.zeros(n, np.int64), preference])
    nearest, best = best_of(total, rows, n + others, similarity, ranks, np.arange(total) >= n)
    return np.where(nearest[:n] >= 0, nearest[:n] - n, -1), best[:n]
