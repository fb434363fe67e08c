"""The graph of near pairs: its connected components, and each node's nearest neighbour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

Numbers: TypeAlias = "npt.NDArray[np.int64]"
Nearest: TypeAlias = "tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]"
"""Of each node the nearest other one, int64 ``[n]`` (-1 where there is none), and its similarity, float64 ``[n]`` (then 0)."""


def ranks(ids: pa.Array | pa.ChunkedArray) -> Numbers:
    """The place of each id in their ascending order, int64 ``[n]``; strings by code points."""
    places = np.empty(len(ids), np.int64)
    places[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return places


def best_of(
    n: int,
    left: Numbers,
    right: Numbers,
    similarity: npt.NDArray[np.float64],
    preference: Numbers,
    candidate: npt.NDArray[np.bool_] | None = None,
) -> Nearest:
    """Each node's best neighbour among the ``candidate`` ones (default: all): highest similarity, then lowest ``preference``."""
    nearest, best = np.full(n, -1, np.int64), np.zeros(n)
    _best_of(left, right, similarity, preference, np.ones(n, np.bool_) if candidate is None else candidate, nearest, best)
    return nearest, best


def nearest_items(group: npt.NDArray[np.integer[Any]], preference: Numbers, search: Callable[[Numbers], Nearest]) -> Nearest:
    """For every item the most similar other one, where items of a group are equal.

    Args:
        group: int ``[n]``, from 0 without gaps.
        preference: int64 ``[n]``, distinct, from 0 to below 2^32; among equally similar items the one with the lowest is named.
        search: The nearest neighbours of the groups, given int64 ``[groups]``, the preference of each one's best item.
    """
    order = np.argsort(group.astype(np.int64) << 32 | preference)
    first = np.ones(len(order), bool)
    first[1:] = group[order[1:]] != group[order[:-1]]
    best = order[first]  # of each group the most preferred item
    other, similarity = search(preference[best])
    nearest, values = np.where(other[group] >= 0, best[other[group]], -1), similarity[group]
    # A twin is nearer than any: for the most preferred of a group the second, for the others that one.
    second = np.full(len(best), -1, np.int64)
    seconds = np.flatnonzero(~first & np.append(False, first[:-1]))
    second[group[order[seconds]]] = order[seconds]
    twin = np.where(best[group] == np.arange(len(group)), second[group], best[group])
    return np.where(twin >= 0, twin, nearest), np.where(twin >= 0, 1.0, values)


@njit(cache=True)
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True)
def components(n, left, right):  # type: ignore[no-untyped-def]
    """Connected component of each of ``n`` nodes, int64 ``[n]`` from 0 without gaps, in order of their first nodes.

    Union-find with the smaller node as the root (Tarjan 1975, with path halving).
    """
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
def _best_of(left, right, similarity, preference, candidate, nearest, best):  # type: ignore[no-untyped-def]
    for edge in range(len(left)):
        value = similarity[edge]
        for node, other in ((left[edge], right[edge]), (right[edge], left[edge])):
            if not candidate[other] or value < best[node]:
                continue
            if value > best[node] or preference[other] < preference[nearest[node]]:
                nearest[node], best[node] = other, value
