"""Which of the near-duplicates stay, and why.

Near pairs make a graph.  Its connected components are the clusters.  What stays is a greedy
independent set: items are visited in a stated order and kept unless near one that already is.
Hence no two kept items are near, and every dropped one is near a kept one; a chain a-b-c whose ends
are not near keeps both ends, where one item a component would lose one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from divray.diversity.neighbours import Pairs, best_of

SEED_PREFIX = "seed:"
"""Items whose id starts so are seed examples."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of each of ``n`` items; other items are named by their row number.

    Attributes:
        cluster: int64 ``[n]``, the item with the smallest id in the connected component.
        kept: bool ``[n]``.
        copy_of: int64 ``[n]``, for a dropped item the most similar kept one (then the smallest id), else -1.
        copy_similarity: float64 ``[n]``, similarity to ``copy_of``, else 0.
        reason: Why, in words.
    """

    cluster: npt.NDArray[np.int64]
    kept: npt.NDArray[np.bool_]
    copy_of: npt.NDArray[np.int64]
    copy_similarity: npt.NDArray[np.float64]
    reason: list[str]


def decide(
    ids: Sequence[str],
    pairs: Pairs,
    correctness: npt.NDArray[np.float64] | None = None,
    fixed: npt.NDArray[np.bool_] | None = None,
    group: npt.NDArray[np.int64] | None = None,
) -> Decisions:
    """Decide what stays by a greedy independent set.

    The order is: fixed items, then correctness descending, centrality (number of near neighbours)
    descending, id ascending.  Fixed items always stay, near each other or not.

    Args:
        ids: ``n`` distinct names.
        pairs: Near pairs; of rows, or of groups where ``group`` is given.
        correctness: float64 ``[n]`` or none; NaN counts as the lowest.
        fixed: bool ``[n]``, items that stay in any case (seeds, samples of earlier rounds).
        group: int64 ``[n]``, equal for identical items, from 0 without gaps; pairs then join groups, and
            the members of a group are near each other with similarity 1.
    """
    n = len(ids)
    fixed = np.zeros(n, bool) if fixed is None else fixed
    group = np.arange(n) if group is None else group
    score = np.zeros(n) if correctness is None else np.where(np.isnan(correctness), -np.inf, correctness)
    by_id = np.empty(n, np.int64)
    by_id[sorted(range(n), key=ids.__getitem__)] = np.arange(n)
    size = np.bincount(group, minlength=0)
    groups = len(size)
    neighbours = np.bincount(pairs.left, size[pairs.right], groups) + np.bincount(pairs.right, size[pairs.left], groups)
    centrality = (neighbours + size - 1).astype(np.int64)[group]

    order = np.lexsort((by_id, -centrality, -score, ~fixed))
    best = np.full(groups, -1, np.int64)
    best[group[order][::-1]] = order[::-1]
    kept = _independent(order, best, group, fixed, pairs)

    keeper = np.full(groups, -1, np.int64)
    kept_rows = np.flatnonzero(kept)
    kept_rows = kept_rows[np.argsort(-by_id[kept_rows])]
    keeper[group[kept_rows]] = kept_rows
    copy_of, copy_similarity = _keepers(kept, keeper, group, by_id, pairs)
    component = components(groups, pairs.left, pairs.right)[group]
    cluster = _smallest(component, by_id)
    reason = _reasons(ids, kept, fixed, copy_of, copy_similarity, centrality, score, order, component)
    return Decisions(cluster, kept, copy_of, copy_similarity, reason)


def components(n: int, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Connected component of each of ``n`` nodes, int64 ``[n]`` from 0 without gaps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64) if n else np.zeros(0, np.int64)


def _independent(
    order: npt.NDArray[np.int64],
    best: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    fixed: npt.NDArray[np.bool_],
    pairs: Pairs,
) -> npt.NDArray[np.bool_]:
    groups = len(best)
    rows = np.concatenate([pairs.left, pairs.right])
    others = np.concatenate([pairs.right, pairs.left])[np.argsort(rows, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=groups))])
    kept = fixed.copy()
    blocked = np.zeros(groups, bool)
    for item in order:
        home = group[item]
        if not fixed[item] and (blocked[home] or best[home] != item):
            continue
        kept[item] = True
        blocked[others[starts[home] : starts[home + 1]]] = True
        blocked[home] = True
    return kept


def _keepers(
    kept: npt.NDArray[np.bool_],
    keeper: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    by_id: npt.NDArray[np.int64],
    pairs: Pairs,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each dropped item its kept neighbour: in its own group, else over the pairs of groups."""
    has = keeper >= 0
    rows, others = np.concatenate([pairs.left, pairs.right]), np.concatenate([pairs.right, pairs.left])
    useful = has[others]
    nearest, similarity = best_of(len(keeper), rows[useful], others[useful], np.tile(pairs.similarity, 2)[useful], by_id[keeper])
    inside = has[group]
    copy_of = np.where(inside, keeper[group], keeper[nearest[group]])
    values = np.where(inside, 1.0, similarity[group])
    return np.where(kept, -1, copy_of), np.where(kept, 0.0, values)


def _smallest(component: npt.NDArray[np.int64], by_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    names = np.empty(component.max(initial=-1) + 1, np.int64)
    descending = np.argsort(-by_id)
    names[component[descending]] = descending
    return names[component]


def _reasons(
    ids: Sequence[str],
    kept: npt.NDArray[np.bool_],
    fixed: npt.NDArray[np.bool_],
    copy_of: npt.NDArray[np.int64],
    copy_similarity: npt.NDArray[np.float64],
    centrality: npt.NDArray[np.int64],
    score: npt.NDArray[np.float64],
    order: npt.NDArray[np.int64],
    component: npt.NDArray[np.int64],
) -> list[str]:
    members: dict[int, list[int]] = {}
    for item in order[fixed.sum() :]:
        members.setdefault(int(component[item]), []).append(int(item))
    reasons = []
    for item in range(len(ids)):
        home = int(component[item])
        if fixed[item]:
            reasons.append("kept: fixed")
        elif not kept[item]:
            reasons.append(f"near copy of {_named(ids[copy_of[item]])} ({copy_similarity[item]:.2f})")
        elif centrality[item] == 0:
            reasons.append("kept: no near neighbour")
        elif members[home][0] != item:
            reasons.append("kept: near only to dropped ones")
        elif score[item] > score[members[home][-1]]:
            reasons.append("kept: most correct of its cluster")
        elif centrality[item] > centrality[members[home][-1]]:
            reasons.append("kept: most central of its cluster")
        else:
            reasons.append("kept: first id of its cluster")
    return reasons


def _named(item: str) -> str:
    return f"seed {item.removeprefix(SEED_PREFIX)}" if item.startswith(SEED_PREFIX) else item
