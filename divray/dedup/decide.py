"""The graph of near pairs, and which of the near-duplicates stay.

The connected components of near pairs are the clusters.  :func:`decide` visits the items in its order of preference, by one of two rules:

``component``: keep the first item of each cluster.
``independent``: keep an item unless it is near a kept one (a greedy independent set).  Of a chain a-b-c whose ends are not near, both
ends stay unless b comes first.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from divray.dedup.verify import Pairs

Numbers: TypeAlias = npt.NDArray[np.int64]
Nearest: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Each node's nearest other node, int64 ``[n]``, -1 for none; and its similarity, float64 ``[n]``, 0 for none."""
Rule: TypeAlias = Literal["component", "independent"]

REASONS = (
    "near copy of",
    "linked by near copies to",
    "kept: fixed",
    "kept: no near neighbour",
    "kept: near only to dropped ones",
    "kept: most correct of its cluster",
    "kept: most central of its cluster",
    "kept: first id of its cluster",
    "near reference text",
    "kept: no text",
)
"""What ``Decisions.why`` indexes.  The first two and ``near reference text`` are followed by what stays instead."""
NEAR, CHAINED, FIXED, ALONE, LEFT, CORRECT, CENTRAL, FIRST, REFERENCE, NO_TEXT = range(len(REASONS))


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of each of ``n`` items.  The arrays refer to items by row number.

    Attributes:
        cluster: int64 ``[n]``, the item with the smallest id in the connected component.
        kept: bool ``[n]``.
        copy_of: int64 ``[n]``, -1 for a kept item; for a dropped one the most similar kept item (of equals, the smallest id), or, if
            none is near, the first one that its component keeps.
        copy_similarity: float64 ``[n]``, similarity to ``copy_of``, else 0.
        why: int8 ``[n]``, index into :data:`REASONS`.
    """

    cluster: Numbers
    kept: npt.NDArray[np.bool_]
    copy_of: Numbers
    copy_similarity: npt.NDArray[np.float64]
    why: npt.NDArray[np.int8]


def ranks(ids: pa.Array | pa.ChunkedArray) -> Numbers:
    """The rank of each id in ascending order, from 0, int64 ``[n]``; strings compare by code points."""
    return pc.rank(ids, tiebreaker="first").to_numpy().astype(np.int64) - 1


def in_words(why: npt.NDArray[np.int8], copy_of: Numbers, similarity: npt.NDArray[np.float64], ids: Any) -> pa.StringArray:
    """The reason of each item: strings ``[n]``.

    Args:
        why: int8 ``[n]``, index into :data:`REASONS`.
        copy_of, similarity: ``[n]``, what stays instead and how near it is.
        ids: Arrow array that ``copy_of`` indexes; a reference text is named by its number.
    """
    levels = pa.array([f"({level / 100:.2f})" for level in range(101)], pa.string())
    parts = [
        pa.array(REASONS, pa.string()).take(pa.array(why)),
        ids.take(pa.array(copy_of, mask=~np.isin(why, (NEAR, CHAINED)))).cast(pa.string()),
        pa.array(copy_of, mask=why != REFERENCE).cast(pa.string()),
        levels.take(pa.array(np.round(100 * similarity).astype(np.int64), mask=~np.isin(why, (NEAR, REFERENCE)))),
    ]
    return pc.binary_join_element_wise(*parts, " ", null_handling="skip")


@njit(cache=True)
def best_of(n, left, right, similarity, preference):  # type: ignore[no-untyped-def]
    """Each node's most similar neighbour of ``preference`` >= 0 (:data:`Nearest`); of equals, the one with the lowest ``preference``."""
    nearest, best = np.full(n, -1, np.int64), np.zeros(n)
    for edge in range(len(left)):
        value = similarity[edge]
        for node, other in ((left[edge], right[edge]), (right[edge], left[edge])):
            if preference[other] < 0 or value < best[node]:
                continue
            if value > best[node] or preference[other] < preference[nearest[node]]:
                nearest[node], best[node] = other, value
    return nearest, best


def nearest_given(given: npt.NDArray[np.integer[Any]], groups: int, pairs: Pairs) -> Nearest:
    """For each group, the nearest of the ``m`` given items.  An item counts if it is in the group or ``pairs`` links its group.

    Args:
        given: int ``[m]``, the group of each item.  The result holds indices into it; among equally near items, the lowest.
        groups: The number of groups.
        pairs: Near pairs of groups.
    """
    first = np.full(groups, -1, np.int64)
    first[given[::-1]] = np.arange(len(given))[::-1]
    has = first >= 0
    other, similarity = best_of(groups, *pairs, first)
    return np.where(has, first, np.where(other >= 0, first[other], -1)), np.where(has, 1.0, similarity)


def nearest_items(group: npt.NDArray[np.integer[Any]], preference: Numbers, pairs: Pairs) -> Nearest:
    """For every item the most similar other one, where items of a group are equal.

    Args:
        group: int ``[n]``, from 0 without gaps.
        preference: int64 ``[n]``, distinct, from 0 to below 2^32; of equally similar items, the one with the lowest value wins.
        pairs: Of groups.
    """
    order = np.argsort(group.astype(np.int64) << 32 | preference)
    first = np.ones(len(order), bool)
    first[1:] = group[order[1:]] != group[order[:-1]]
    best = order[first]  # of each group the most preferred item
    other, similarity = best_of(len(best), *pairs, preference[best])
    nearest, values = np.where(other[group] >= 0, best[other[group]], -1), similarity[group]
    # A twin (same group) is nearest of all: the second one for a group's most preferred item; for the others, the most preferred.
    second = np.full(len(best), -1, np.int64)
    seconds = np.flatnonzero(~first & np.append(False, first[:-1]))
    second[group[order[seconds]]] = order[seconds]
    twin = np.where(best[group] == np.arange(len(group)), second[group], best[group])
    return np.where(twin >= 0, twin, nearest), np.where(twin >= 0, 1.0, values)


def decide(
    by_id: Numbers,
    pairs: Pairs,
    correctness: npt.NDArray[np.float64] | None = None,
    fixed: npt.NDArray[np.bool_] | None = None,
    group: npt.NDArray[np.integer[Any]] | None = None,
    rule: Rule = "independent",
) -> Decisions:
    """Decide what stays of ``n`` items.

    The order is: fixed items, then correctness descending, centrality (number of near neighbours) descending, id ascending.
    Fixed items always stay, near each other or not.

    Args:
        by_id: int64 ``[n]``, the place of each item's id among all (:func:`ranks`).
        pairs: Near pairs; of items, or of groups where ``group`` is given.
        correctness: float64 ``[n]`` or none; NaN counts as the lowest.
        fixed: bool ``[n]``, items that stay in any case.
        group: int ``[n]``, equal for identical items (which are near with similarity 1), from 0 without gaps.
        rule: ``component`` or ``independent``; the top of this module explains them.
    """
    n = len(by_id)
    home = np.arange(n) if group is None else group.astype(np.int64, copy=False)
    held = np.zeros(n, bool) if fixed is None else fixed
    score = np.zeros(n) if correctness is None else np.nan_to_num(correctness, nan=-np.inf)
    size = np.bincount(home)
    neighbours = np.bincount(pairs.left, size[pairs.right], len(size)) + np.bincount(pairs.right, size[pairs.left], len(size))
    centrality = (neighbours.astype(np.int64) + size - 1)[home]
    order = np.argsort((centrality.max(initial=0) - centrality) << 32 | by_id)
    if n and (score != score[0]).any():
        order = order[np.argsort(-score[order], kind="stable")]
    order = np.concatenate([order[held[order]], order[~held[order]]])
    component = components(len(size), pairs.left, pairs.right)[home]
    first = _first_of(component, order)
    if rule == "component":
        kept = held.copy()
        kept[first] = True
    else:
        graph = _graph(len(size), np.append(pairs.left, pairs.right), np.append(pairs.right, pairs.left))
        kept = _independent(order, home, held, graph.indptr, graph.indices)
    ascending = np.argsort(by_id)
    staying = ascending[kept[ascending]]
    place, similarity = (found[home] for found in nearest_given(home[staying], len(size), pairs))
    near = place >= 0

    # Why each kept item comes before the others of its cluster, not counting fixed items.
    loose = order[held.sum() :]
    best, last = _first_of(component, loose)[component], _first_of(component, loose[::-1])[component]
    correct, central = score > score[last], centrality > centrality[last]
    choices = [held, ~kept & near, ~kept, centrality == 0, best != np.arange(n), correct, central]
    why = np.select(choices, [FIXED, NEAR, CHAINED, ALONE, LEFT, CORRECT, CENTRAL], FIRST).astype(np.int8)
    copy_of = np.where(kept, -1, np.where(near, staying[place], first[component]))
    return Decisions(_first_of(component, ascending)[component], kept, copy_of, np.where(kept, 0.0, similarity), why)


def _first_of(component: npt.NDArray[np.int32], order: Numbers) -> Numbers:
    """Each component's first item in ``order``; -1 for a component that has none there."""
    first = np.full(component.max(initial=-1) + 1, -1, np.int64)
    first[component[order[::-1]]] = order[::-1]
    return first


def components(n: int, left: Numbers, right: Numbers) -> npt.NDArray[np.int32]:
    """Connected component of each of ``n`` nodes, int32 ``[n]`` from 0 without gaps."""
    from scipy.sparse.csgraph import connected_components

    return connected_components(_graph(n, left, right), directed=False)[1]


def _graph(n: int, left: Numbers, right: Numbers) -> Any:
    """The pairs as a sparse array of SciPy, ``[n, n]``."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(left)), (left, right)), shape=(n, n))


@njit(cache=True)
def _independent(order, group, fixed, starts, others):  # type: ignore[no-untyped-def]
    kept, blocked = fixed.copy(), np.zeros(len(starts) - 1, np.bool_)
    for item in order:
        home = group[item]
        if blocked[home] and not fixed[item]:
            continue
        kept[item] = True
        blocked[home] = True
        for place in range(starts[home], starts[home + 1]):
            blocked[others[place]] = True
    return kept
