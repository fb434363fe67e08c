"""Which of the near-duplicates stay, and why.

Near pairs make a graph.  Its connected components are the clusters.  Items are visited in a stated order,
and one of two rules says what stays:

``component``: of each cluster the first item.
``independent``: a greedy independent set: an item is kept unless near one that already is.  Hence no two
kept items are near, and every dropped one is near a kept one; a chain a-b-c whose ends are not near keeps
both ends, where one item a component would lose one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from divray.diversity.neighbours import Pairs, best_of

Rule: TypeAlias = Literal["component", "independent"]

SEED_PREFIX = "seed:"
"""Items whose id starts so are seed examples."""

NEAR, CHAINED = 0, 1
REASONS = (
    "near copy of",
    "linked by near copies to",
    "kept: fixed",
    "kept: no near neighbour",
    "kept: near only to dropped ones",
    "kept: most correct of its cluster",
    "kept: most central of its cluster",
    "kept: first id of its cluster",
)
"""What ``Decisions.why`` numbers; the first two name the item that stays instead."""
_FIXED, _ALONE, _LEFT, _CORRECT, _CENTRAL, _FIRST = range(2, 8)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of each of ``n`` items; other items are named by their row number.

    Attributes:
        cluster: int64 ``[n]``, the item with the smallest id in the connected component.
        kept: bool ``[n]``.
        copy_of: int64 ``[n]``, for a dropped item the most similar kept one (then the smallest id), or, where it
            is near no kept one, the one that its component keeps; else -1.
        copy_similarity: float64 ``[n]``, similarity to ``copy_of``, else 0.
        why: int8 ``[n]``, index into :data:`REASONS`.
    """

    cluster: npt.NDArray[np.int64]
    kept: npt.NDArray[np.bool_]
    copy_of: npt.NDArray[np.int64]
    copy_similarity: npt.NDArray[np.float64]
    why: npt.NDArray[np.int8]

    def reasons(self, ids: Any) -> pa.StringArray:
        """Why, in words: strings ``[n]`` that name other items by ``ids``, an Arrow array or a sequence ``[n]``."""
        return in_words(self.why, self.copy_of, self.copy_similarity, ids)


def in_words(why: npt.NDArray[np.int8], copy_of: npt.NDArray[np.int64], similarity: npt.NDArray[np.float64], ids: Any) -> pa.StringArray:
    """The sentence of each item; ``copy_of`` indexes ``ids``."""
    words = pa.array(REASONS, pa.string()).take(pa.array(why))
    dropped = np.flatnonzero(why <= CHAINED)
    if len(dropped) == 0:
        return words
    ids = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    named = ids.take(pa.array(copy_of[dropped])).cast(pa.string())
    if isinstance(named, pa.ChunkedArray):
        named = named.combine_chunks()
    named = pc.replace_substring_regex(named, f"^{SEED_PREFIX}", "seed ")
    levels = pa.array([f" ({level / 100:.2f})" for level in range(101)], pa.string())
    values = levels.take(pa.array(np.round(100 * similarity[dropped]).astype(np.int64)))
    values = pc.if_else(pa.array(why[dropped] == NEAR), values, "")
    said = pc.binary_join_element_wise(pc.binary_join_element_wise(words.take(pa.array(dropped)), named, " "), values, "")
    return pc.replace_with_mask(words, pa.array(why <= CHAINED), said)


def decide(
    ids: Sequence[Any] | pa.Array | pa.ChunkedArray,
    pairs: Pairs,
    correctness: npt.NDArray[np.float64] | None = None,
    fixed: npt.NDArray[np.bool_] | None = None,
    group: npt.NDArray[np.integer[Any]] | None = None,
    rule: Rule = "independent",
) -> Decisions:
    """Decide what stays.

    The order is: fixed items, then correctness descending, centrality (number of near neighbours)
    descending, id ascending.  Fixed items always stay, near each other or not.  Items without near
    neighbours cost next to nothing: only the others are ordered.

    Args:
        ids: ``n`` distinct names, strings (ordered by code points) or integers.
        pairs: Near pairs; of rows, or of groups where ``group`` is given.
        correctness: float64 ``[n]`` or none; NaN counts as the lowest.
        fixed: bool ``[n]``, items that stay in any case (seeds, samples of earlier rounds).
        group: int ``[n]``, equal for identical items, from 0 without gaps; pairs then join groups, and
            the members of a group are near each other with similarity 1.
        rule: Of each component one item, or a greedy independent set.
    """
    n = len(ids)
    group = np.arange(n) if group is None else group
    size = np.bincount(group, minlength=1)
    met = size > 1
    met[pairs.left] = True
    met[pairs.right] = True
    rows = np.flatnonzero(met[group])
    why = np.full(n, _ALONE, np.int8)
    cluster, copy_of, copy_similarity, kept = np.arange(n), np.full(n, -1), np.zeros(n), np.ones(n, bool)
    if fixed is not None:
        why[fixed] = _FIXED
    if len(rows):
        home = group[rows].astype(np.int64, copy=False)
        if not met.all():
            number = np.cumsum(met) - 1
            pairs, home = Pairs(number[pairs.left], number[pairs.right], pairs.similarity), number[home]
        score = np.zeros(len(rows)) if correctness is None else np.nan_to_num(correctness[rows], nan=-np.inf)
        held = np.zeros(len(rows), bool) if fixed is None else fixed[rows]
        by_id = ranks((ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)).take(pa.array(rows)))
        part = _decide(by_id, pairs, score, held, home, size[met], rule)
        cluster[rows], kept[rows], copy_similarity[rows], why[rows] = rows[part.cluster], part.kept, part.copy_similarity, part.why
        copy_of[rows] = np.where(part.copy_of >= 0, rows[part.copy_of], -1)
    return Decisions(cluster, kept, copy_of, copy_similarity, why)


def _decide(
    by_id: npt.NDArray[np.int64],
    pairs: Pairs,
    score: npt.NDArray[np.float64],
    fixed: npt.NDArray[np.bool_],
    group: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    rule: Rule,
) -> Decisions:
    groups = len(size)
    centrality = (_neighbours(pairs.left, pairs.right, size) + size - 1)[group]
    order = _in_order(fixed, score, centrality, by_id)
    component = components(groups, pairs.left, pairs.right)[group]
    first = _first_of(component, order)
    if rule == "component":
        kept = fixed.copy()
        kept[first] = True
    else:
        kept = _independent(order, group, fixed, groups, pairs.left, pairs.right)

    ascending = np.argsort(by_id)
    keeper = np.full(groups, -1, np.int64)
    kept_rows = ascending[kept[ascending]][::-1]
    keeper[group[kept_rows]] = kept_rows
    copy_of, copy_similarity, near = _keepers(kept, keeper, group, by_id, pairs)
    copy_of = np.where(kept | near, copy_of, first[component])

    loose = order[fixed.sum() :]
    best, last = _first_of(component, loose), _first_of(component, loose[::-1])
    best, last = best[component], last[component]
    correct, central = score > score[last], centrality > centrality[last]
    rows = np.arange(len(group))
    choices = [fixed, ~kept & near, ~kept, centrality == 0, best != rows, correct, central]
    why = np.select(choices, [_FIXED, NEAR, CHAINED, _ALONE, _LEFT, _CORRECT, _CENTRAL], _FIRST).astype(np.int8)
    return Decisions(_first_of(component, ascending)[component], kept, copy_of, copy_similarity, why)


def components(n: int, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Connected component of each of ``n`` nodes, int64 ``[n]`` from 0 without gaps, in order of their first nodes."""
    return _components(n, left, right)


def ranks(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The place of each id in their ascending order, int64 ``[n]``; strings by code points."""
    places = np.empty(len(ids), np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places


def _in_order(
    fixed: npt.NDArray[np.bool_], score: npt.NDArray[np.float64], centrality: npt.NDArray[np.int64], by_id: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Fixed items, then by score and centrality descending, then by id."""
    order = np.argsort((centrality.max(initial=0) - centrality) << 32 | by_id)
    if len(score) and (score != score[0]).any():
        order = order[np.argsort(-score[order], kind="stable")]
    held = fixed[order]
    return np.concatenate([order[held], order[~held]])


def _first_of(component: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first item of each component in ``order``; -1 where it holds none."""
    first = np.full(component.max(initial=-1) + 1, -1, np.int64)
    first[component[order[::-1]]] = order[::-1]
    return first


def _keepers(
    kept: npt.NDArray[np.bool_],
    keeper: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    by_id: npt.NDArray[np.int64],
    pairs: Pairs,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """For each dropped item its kept neighbour, in its own group, else over the pairs of groups; and whether it has one."""
    has = keeper >= 0
    nearest, similarity = best_of(len(keeper), *pairs, by_id[keeper], has)
    inside = has[group]
    near = inside | (nearest[group] >= 0)
    copy_of = np.where(inside, keeper[group], keeper[nearest[group]])
    values = np.where(inside, 1.0, similarity[group])
    return np.where(kept | ~near, -1, copy_of), np.where(kept, 0.0, values), near


@njit(cache=True)
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True)
def _components(n, left, right):  # type: ignore[no-untyped-def]
    """Union-find, the smaller node as the root (Tarjan 1975, with path halving)."""
    parent = np.arange(n)
    for edge in range(len(left)):
        one, two = _root(parent, left[edge]), _root(parent, right[edge])
        if one < two:
            parent[two] = one
        else:
            parent[one] = two
    label, count = np.empty(n, np.int64), 0
    for node in range(n):
        root = _root(parent, node)
        if root == node:
            label[node] = count
            count += 1
        else:
            label[node] = label[root]
    return label


@njit(cache=True)
def _neighbours(left, right, size):  # type: ignore[no-untyped-def]
    """How many items the groups next to each have."""
    held = np.zeros(len(size), np.int64)
    for edge in range(len(left)):
        held[left[edge]] += size[right[edge]]
        held[right[edge]] += size[left[edge]]
    return held


@njit(cache=True)
def _independent(order, group, fixed, groups, left, right):  # type: ignore[no-untyped-def]
    starts = np.zeros(groups + 1, np.int64)
    for edge in range(len(left)):
        starts[left[edge] + 1] += 1
        starts[right[edge] + 1] += 1
    for node in range(groups):
        starts[node + 1] += starts[node]
    ends, others = starts[:-1].copy(), np.empty(2 * len(left), np.int64)
    for edge in range(len(left)):
        for one, two in ((left[edge], right[edge]), (right[edge], left[edge])):
            others[ends[one]] = two
            ends[one] += 1
    kept, blocked = fixed.copy(), np.zeros(groups, np.bool_)
    for item in order:
        home = group[item]
        if blocked[home] and not fixed[item]:
            continue
        kept[item] = True
        blocked[home] = True
        for place in range(starts[home], ends[home]):
            blocked[others[place]] = True
    return kept
