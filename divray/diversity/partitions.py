"""One partition of the join: the sets that hold one of its keys, and the pairs that meet in those keys.

Keys are elements of the sets' prefixes (:mod:`divray.diversity.prefixes`) or, for MinHash, those bands that several sets have.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from divray.diversity.distinct import collapse
from divray.diversity.joins import ASKED, INDEXED, PASSED, join
from divray.diversity.prefixes import Prefixes, postings, prefixes
from divray.diversity.shingles import Shingles
from divray.errors import InputError

_ANYWHERE = -(1 << 30)
_COUNT = np.uint64(48)
FREQUENT = 255
"""The count of a key that at least so many sets have."""
STRIPES = 8
"""Among so many partitions, or all, the pairs that meet in a frequent key are divided."""


class Held(NamedTuple):
    """The distinct sets of one slice, and the bands by which MinHash finds them."""

    sets: Shingles
    bands: Shingles | None

    @property
    def searched(self) -> Shingles:
        return self.sets if self.bands is None else self.bands


class Piece(NamedTuple):
    """The sets of one slice that a partition must see, with their number over all slices and their prefix keys."""

    numbers: npt.NDArray[np.int64]
    sets: Shingles
    found: Prefixes


class Task(NamedTuple):
    """What every partition is told.

    Attributes:
        threshold: Least similarity.
        partitions: How many there are.
        own: Sets from this number on are not compared with each other.
        most_visits: More than these are an error; ``None``: however many.
    """

    threshold: float
    partitions: int
    own: int
    most_visits: int | None = None


def send(held: Held, base: int, table: npt.NDArray[np.uint8], threshold: float, partitions: int) -> Any:
    """For every partition the sets that hold one of its keys; a :class:`Piece` each, alone where there is one partition."""
    sets, found = held.sets, prefixes(held.searched, threshold if held.bands is None else 0.0, table)
    if held.bands is not None:  # shared bands say nothing about where in the sets shared elements are
        found.skipped.fill(_ANYWHERE)
    starts, rows = _destinations(found.offsets, found.keys, partitions, min(partitions, STRIPES))
    pieces = []
    for start, stop in itertools.pairwise(starts):
        taken = rows[start:stop]
        keys = Shingles(found.offsets, found.keys).take(taken)
        pieces.append(Piece(base + taken, sets.take(taken), Prefixes(keys.offsets, keys.values, found.skipped[taken])))
    return pieces if partitions > 1 else pieces[0]


def use_of(
    found: Prefixes, numbers: npt.NDArray[np.int64], partitions: int, partition: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.bool_]]:
    """What a partition does with each of its sets' keys, and which of them are its own.

    A key that more sets than the counters can tell have is a matter of several partitions, so that one phrase that half
    of all texts share does not keep a single one busy: each of them holds all those sets, and asks for a share of them.
    """
    stripes = min(partitions, STRIPES)
    ahead = (partition - _owner(found.keys, partitions)) % partitions
    mine = ahead == 0
    share = np.repeat(numbers % stripes, np.diff(found.offsets)) == ahead
    frequent = (found.keys >> _COUNT) == FREQUENT
    use = np.where(frequent, np.where(share, ASKED, np.where(ahead < stripes, INDEXED, PASSED)), np.where(mine, ASKED, PASSED))
    return use, mine


def join_part(task: Task, partition: int, *pieces: Piece) -> pa.Table:
    """Edges ``left, right, similarity`` between numbers of sets; those of similarity 1 between equal sets among them.

    Args:
        pieces: In ascending order of their sets' numbers.

    Raises:
        InputError: this partition alone would look at more pairs than ``task.most_visits``.
    """
    numbers = np.concatenate([piece.numbers for piece in pieces])
    sets = _stacked([piece.sets for piece in pieces])
    keys = _stacked([Shingles(piece.found.offsets, piece.found.keys) for piece in pieces])
    skipped = np.concatenate([piece.found.skipped for piece in pieces])
    first, group = collapse(sets)
    found = Prefixes(keys.offsets, keys.values, skipped)
    posted, (use, mine) = postings(found), use_of(found, numbers, task.partitions, partition)
    twins = np.flatnonzero(first[group] != np.arange(len(group)))
    own_twins = twins[mine[found.offsets[twins]]]  # once: where the first key belongs
    equal = numbers[first[group[own_twins]]], numbers[own_twins], np.ones(len(own_twins))
    single = np.ones(len(group), bool)
    single[twins] = False
    use[~np.repeat(single, np.diff(found.offsets))] = PASSED
    visits = posted.visits(use != PASSED, use == ASKED)
    if task.most_visits is not None and visits > task.most_visits:
        problem = f"one partition of the exact join would look at {visits:,} pairs, more than {task.most_visits:,}"
        mend = "Compare longer shingles, take --method minhash, or insist with --method exact."
        raise InputError("texts", "", problem, mend)
    own = int(np.searchsorted(numbers, task.own))
    left, right, similarity = join(sets, found, posted, task.threshold, use, own)
    columns = [np.concatenate(pair) for pair in ((equal[0], numbers[left]), (equal[1], numbers[right]), (equal[2], similarity))]
    return pa.table({"left": columns[0], "right": columns[1], "similarity": columns[2]})


def _stacked(parts: list[Shingles]) -> Shingles:
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, ends[:-1], strict=True)]
    return Shingles(np.concatenate([np.zeros(1, np.int64), *offsets]), np.concatenate([part.values for part in parts]))


@njit(cache=True)
def _owner(keys, partitions):  # type: ignore[no-untyped-def]
    """The partition that a key belongs to; if frequent, to those after it, too."""
    owners = np.empty(len(keys), np.int64)
    for k in range(len(keys)):
        owners[k] = np.int64(keys[k] >> np.uint64(20) & np.uint64(0xFFFFFFF)) % partitions
    return owners


@njit(cache=True)
def _destinations(offsets, keys, partitions, stripes):  # type: ignore[no-untyped-def]
    """The sets that each partition must see: those of partition ``p`` are ``rows[starts[p]:starts[p + 1]]``, ascending."""
    owner, n = _owner(keys, partitions), len(offsets) - 1
    starts, rows = np.zeros(partitions + 1, np.int64), np.empty(0, np.int64)
    for filling in (False, True):
        ends, last = starts[:-1].copy(), np.full(partitions, -1, np.int64)
        for i in range(n):
            for k in range(offsets[i], offsets[i + 1]):
                for ahead in range(stripes if keys[k] >> _COUNT == FREQUENT else 1):
                    partition = (owner[k] + ahead) % partitions
                    if last[partition] != i:
                        last[partition] = i
                        if filling:
                            rows[ends[partition]] = i
                        ends[partition] += 1
        if not filling:
            for partition in range(partitions):
                starts[partition + 1] = starts[partition] + ends[partition]
            rows = np.empty(starts[-1], np.int64)
    return starts, rows
