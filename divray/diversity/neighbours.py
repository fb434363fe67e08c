"""Near-duplicate pairs among sets of shingles, and each set's nearest neighbour."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from divray.diversity.distinct import collapse
from divray.diversity.joins import Found, exact_flags, exact_join
from divray.diversity.minhash import choose_bands, minhash_join
from divray.diversity.nearest import nearest_cost, nearest_sets, rank
from divray.diversity.shingles import Shingles
from divray.errors import InputError

Method: TypeAlias = Literal["auto", "exact", "minhash"]

EXACT_ROWS = 2_000
"""Up to this many sets the join is exact whatever it costs."""

EXACT_VISITS, EXACT_VISITS_PER_SET = 100_000_000, 1_000
"""Above :data:`EXACT_ROWS` the join stays exact while it looks at no more pairs than this, or than this many a set (20 µs)."""

NEAREST_VISITS = 1_000_000_000
"""The most index entries that are visited for neighbours below the threshold (seconds)."""


class Pairs(NamedTuple):
    """Pairs ``left < right`` of row numbers, sorted by ``(left, right)``, with their exact Jaccard similarity."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.left)

    def at_least(self, threshold: float) -> Pairs:
        near = self.similarity >= threshold
        return Pairs(self.left[near], self.right[near], self.similarity[near])


def near_duplicates(
    offsets: npt.NDArray[np.int64],
    values: npt.NDArray[np.uint64],
    threshold: float,
    permutations: int | None = None,
    bands: int | None = None,
    method: Method = "auto",
    own: int | None = None,
) -> Pairs:
    """All pairs of sets whose Jaccard similarity is at least ``threshold``.

    Precision is 1 in either way, since every pair is checked on the whole sets.  ``exact`` is a
    prefix-filter join with recall 1.  ``minhash`` has the expected recall ``1 - (1 - s^r)^b`` for a
    pair of similarity ``s`` in ``b`` bands of ``r = permutations / b``; the banding chosen by default
    has at least 0.9999 at the threshold and more above it.  ``auto`` is exact for up to
    :data:`EXACT_ROWS` sets and wherever the exact join is cheap, which is known beforehand and
    depends on the sets alone; else MinHash.

    Collapse equal sets first (:func:`divray.diversity.shingles.collapse`): ``k`` of them are ``k (k - 1) / 2`` pairs.

    Args:
        offsets: int64 ``[n + 1]``, as in :class:`~divray.diversity.shingles.Shingles`.
        values: uint64, ascending and without repeats within a set; no set is empty.
        threshold: In (0, 1].
        permutations: MinHash permutations; default: by :func:`~divray.diversity.minhash.choose_bands`.
        bands: MinHash bands; must divide ``permutations``.
        own: Sets from this number on are not compared with each other.

    Raises:
        InputError: the threshold is out of range, or the bands don't divide the permutations.
    """
    return _sorted(*find_pairs(Shingles(offsets, values), threshold, permutations, bands, method, own))


def find_pairs(
    shingles: Shingles,
    threshold: float,
    permutations: int | None = None,
    bands: int | None = None,
    method: Method = "auto",
    own: int | None = None,
) -> Found:
    """:func:`near_duplicates` in no set order: ``(row, row, similarity)``; sets from number ``own`` on are not compared with
    each other."""
    _check(threshold)
    n = len(shingles)
    own = n if own is None else own
    if n < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if method != "minhash":
        found = exact_join(shingles, threshold, most_visits(n, method), own)
        if found is not None:
            return found
    if permutations is None or bands is None:
        permutations, bands = choose_bands(threshold)
    return minhash_join(shingles, threshold, permutations, bands, own)


def _check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError("diversity", "threshold", f"{threshold} is not in (0, 1]", "Give e.g. 0.7.")


def most_visits(sets: int, method: Method) -> int | None:
    """How many pairs the exact join of so many distinct sets may look at; ``None``: any number."""
    return None if method == "exact" or sets <= EXACT_ROWS else max(EXACT_VISITS, EXACT_VISITS_PER_SET * sets)


def near_duplicate_flags(shingles: Shingles, threshold: float, method: Method = "auto") -> npt.NDArray[np.bool_]:
    """bool ``[n]``: has the row a near-duplicate among the others?

    Args:
        shingles: ``n`` sets, equal ones among them.
        threshold: In (0, 1].
        method: See :func:`near_duplicates`.
    """
    _check(threshold)
    first, group = collapse(shingles)
    near = (np.bincount(group, minlength=len(first)) > 1)[group]
    rows = np.zeros(len(shingles), np.bool_)
    rows[first] = True
    if method == "minhash" or not exact_flags(shingles, threshold, rows, near, most_visits(len(first), method)):
        left, right, _ = find_pairs(shingles.take(first), threshold, method="minhash")
        near[first[left]] = near[first[right]] = True
    return near[first][group]


def nearest_neighbours(
    shingles: Shingles, preference: npt.NDArray[np.int64], floor: float, pairs: Pairs, own: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For every set the most similar other one of at least ``floor``.

    Exact where counting shared shingles through the whole index visits at most :data:`NEAREST_VISITS`
    entries; beyond that only ``pairs`` are looked at, so that neighbours below their threshold go unnamed.

    Args:
        shingles: ``n`` sets.
        preference: int64 ``[n]``; among equally similar sets the one with the lowest is named.
        floor: Least similarity that counts, above 0.
        pairs: Pairs already found by :func:`near_duplicates`.
        own: Sets from this number on are neighbours only; what is said of them is of no use.

    Returns:
        int64 ``[n]`` rows (-1 where there is none) and float64 ``[n]`` similarities (then 0).
    """
    n = len(shingles)
    if n >= 2:
        ranked = rank(shingles)
        if n <= EXACT_ROWS or nearest_cost(ranked) <= NEAREST_VISITS:
            return nearest_sets(ranked, preference, floor, own)
    return best_of(n, *pairs.at_least(floor), preference, np.ones(n, bool))


def nearest_items(
    group: npt.NDArray[np.integer[Any]],
    preference: npt.NDArray[np.int64],
    pairs: Pairs,
    sets: Shingles | None = None,
    floor: float = 0.0,
    own: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For every item the most similar other one, where items of a group are equal.

    Args:
        group: int ``[n]``, from 0 without gaps.
        preference: int64 ``[n]``, distinct and from 0 to below 2^32; among equally similar items the one with the lowest is named.
        pairs: Near pairs of groups; only these are looked at, unless ``sets``, the groups' sets, are given.
        floor: Least similarity that counts; only with ``sets``.
        own: Groups from this number on are neighbours only; only with ``sets``.

    Returns:
        int64 ``[n]`` items (-1 where there is none) and float64 ``[n]`` similarities (then 0).
    """
    order = np.argsort(group.astype(np.int64) << 32 | preference)
    first = np.ones(len(order), bool)
    first[1:] = group[order[1:]] != group[order[:-1]]
    best = order[first]  # of each group the most preferred item
    if sets is None:
        other, similarity = best_of(len(best), *pairs, preference[best], np.ones(len(best), bool))
    else:
        other, similarity = nearest_neighbours(sets, preference[best], floor, pairs, own)
    nearest, values = np.where(other[group] >= 0, best[other[group]], -1), similarity[group]
    # A twin is nearer than any: for the most preferred of a group the second, for the others that one.
    second = np.full(len(best), -1, np.int64)
    seconds = np.flatnonzero(~first & np.append(False, first[:-1]))
    second[group[order[seconds]]] = order[seconds]
    twin = np.where(best[group] == np.arange(len(group)), second[group], best[group])
    return np.where(twin >= 0, twin, nearest), np.where(twin >= 0, 1.0, values)


def best_of(
    n: int,
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float64],
    preference: npt.NDArray[np.int64],
    candidate: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Each node's best neighbour that is a ``candidate``: highest similarity, then lowest ``preference``.

    Returns:
        int64 ``[n]`` (-1 where there is none) and the similarities, float64 ``[n]`` (then 0).
    """
    nearest, best = np.full(n, -1, np.int64), np.zeros(n)
    _best_of(left, right, similarity, preference, candidate, nearest, best)
    return nearest, best


def _sorted(one: npt.NDArray[np.int64], two: npt.NDArray[np.int64], similarity: npt.NDArray[np.float64]) -> Pairs:
    left, right = np.minimum(one, two), np.maximum(one, two)
    order = np.argsort(left << 32 | right)
    return Pairs(left[order], right[order], similarity[order])


@njit(cache=True)
def _best_of(left, right, similarity, preference, candidate, nearest, best):  # type: ignore[no-untyped-def]
    for edge in range(len(left)):
        value = similarity[edge]
        for node, other in ((left[edge], right[edge]), (right[edge], left[edge])):
            if not candidate[other] or value < best[node]:
                continue
            if value > best[node] or preference[other] < preference[nearest[node]]:
                nearest[node], best[node] = other, value
