"""One partition of the join: the sets that hold one of its keys, and the pairs that meet in those keys.

Keys are elements of the sets' prefixes (:mod:`divray.diversity.prefixes`) or, for MinHash, those bands that several sets have.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from divray.diversity.distinct import collapse
from divray.diversity.joins import join
from divray.diversity.prefixes import Prefixes, postings, prefixes
from divray.diversity.shingles import Shingles
from divray.errors import InputError

_ANYWHERE = -(1 << 30)


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
    owner = _owners(found.keys, partitions)
    holder = np.repeat(np.arange(len(sets)), np.diff(found.offsets))
    pieces = []
    for partition in range(partitions):
        inside = np.zeros(len(sets), bool)
        inside[holder[owner == partition]] = True
        rows = np.flatnonzero(inside)
        keys = Shingles(found.offsets, found.keys).take(rows)
        pieces.append(Piece(base + rows, sets.take(rows), Prefixes(keys.offsets, keys.values, found.skipped[rows])))
    return pieces if partitions > 1 else pieces[0]


def _owners(keys: npt.NDArray[np.uint64], partitions: int) -> npt.NDArray[np.int64]:
    return ((keys >> np.uint64(20)) & np.uint64(0xFFFFFFF)).astype(np.int64) % partitions


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
    posted, mine = postings(found), _owners(found.keys, task.partitions) == partition
    twins = np.flatnonzero(first[group] != np.arange(len(group)))
    own_twins = twins[mine[found.offsets[twins]]]  # once: where the first key belongs
    equal = numbers[first[group[own_twins]]], numbers[own_twins], np.ones(len(own_twins))
    single = np.ones(len(group), bool)
    single[twins] = False
    mine &= np.repeat(single, np.diff(found.offsets))
    visits = posted.visits(mine)
    if task.most_visits is not None and visits > task.most_visits:
        problem = f"one partition of the exact join would look at {visits:,} pairs, more than {task.most_visits:,}"
        mend = "Compare longer shingles, take --method minhash, or insist with --method exact."
        raise InputError("texts", "", problem, mend)
    own = int(np.searchsorted(numbers, task.own))
    left, right, similarity = join(sets, found, posted, task.threshold, mine, own)
    columns = [np.concatenate(pair) for pair in ((equal[0], numbers[left]), (equal[1], numbers[right]), (equal[2], similarity))]
    return pa.table({"left": columns[0], "right": columns[1], "similarity": columns[2]})


def _stacked(parts: list[Shingles]) -> Shingles:
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, ends[:-1], strict=True)]
    return Shingles(np.concatenate([np.zeros(1, np.int64), *offsets]), np.concatenate([part.values for part in parts]))
