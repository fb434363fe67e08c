"""What becomes of each row of a table of texts: kept or dropped, near what, and why, as a table of words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.decide import (
    ALONE,
    CHAINED,
    KNOWN,
    LEAKED,
    NEAR,
    NO_TEXT,
    REASONS,
    Nearest,
    Numbers,
    Rule,
    best_of,
    decide,
    nearest_items,
    ranks,
)
from divray.dedup.verify import Pairs

_SLICE = 1 << 18


def in_words(
    why: npt.NDArray[np.int8], copy_of: Numbers, similarity: npt.NDArray[np.float64], ids: Any, references: Any = None
) -> pa.StringArray:
    """The reason of each item: strings ``[n]``.

    Args:
        why: int8 ``[n]``, index into :data:`~divray.dedup.decide.REASONS`.
        copy_of, similarity: ``[n]``, what stays instead and how near it is.
        ids: Arrow array that ``copy_of`` indexes.
        references: Strings that it indexes where the reason is a text outside of the table.
    """
    words = pa.array(REASONS, pa.string()).take(pa.array(why))
    levels = pa.array([f" ({level / 100:.2f})" for level in range(101)], pa.string())
    for kinds, names in (((NEAR, CHAINED), ids), ((LEAKED, KNOWN), references)):
        named = np.isin(why, kinds)
        if not named.any():
            continue
        others = names.take(pa.array(copy_of[named])).cast(pa.string())
        values = levels.take(pa.array(np.round(100 * similarity[named]).astype(np.int64)))
        values = pc.if_else(pa.array(why[named] == CHAINED), "", values)
        said = pc.binary_join_element_wise(words.filter(pa.array(named)), others, " ")
        words = pc.replace_with_mask(words, pa.array(named), pc.binary_join_element_wise(said, values, ""))
    return words


@dataclass(frozen=True, slots=True)
class References:
    """Texts that no row that stays may be near to: rows that earlier calls kept, then a test set's, which count first.

    Attributes:
        group: int32 ``[m]``, -1 for one without text.
        names: strings ``[m]``: ids of earlier rows, numbers of test texts.
        earlier: How many of them are earlier rows.
    """

    group: npt.NDArray[np.int32]
    names: pa.StringArray
    earlier: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What becomes of ``n`` rows; held for those only that are near something.

    Attributes:
        ids: Arrow array ``[n]``.
        rows: int64 ``[k]``, ascending: the rows that the arrays below are about; the others are alone and stay.
        cluster, copy_of, nearest: int64 ``[k]``, row numbers; -1 in the last two for none; ``copy_of`` of a row that is
            near a reference is the reference's number.
        copy_similarity, similarity: float64 ``[k]``.
        kept: bool ``[k]``.
        why: int8 ``[k]``, index into :data:`~divray.dedup.decide.REASONS`.
        references: strings ``[m]``, their names.
    """

    ids: Any
    rows: Numbers
    cluster: Numbers
    kept: npt.NDArray[np.bool_]
    copy_of: Numbers
    copy_similarity: npt.NDArray[np.float64]
    nearest: Numbers
    similarity: npt.NDArray[np.float64]
    why: npt.NDArray[np.int8]
    references: Any

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool ``[n]``, the rows that stay."""
        stays = np.ones(len(self), bool)
        stays[self.rows[~self.kept]] = False
        return stays

    def counts(self) -> dict[str, int]:
        """``rows``, ``kept``, ``clusters`` (of two rows or more), ``leaked`` (near a test text), ``known`` (else near an earlier row)."""
        _, sizes = np.unique(self.cluster, return_counts=True)
        near = {"leaked": int((self.why == LEAKED).sum()), "known": int((self.why == KNOWN).sum())}
        return {"rows": len(self), "kept": int(self.mask().sum()), "clusters": int((sizes > 1).sum()), **near}

    def schema(self) -> pa.Schema:
        named = [(name, self.ids.type) for name in ("id", "cluster", "nearest_id")]
        return pa.schema([*named, ("similarity", pa.float64()), ("kept", pa.bool_()), ("reason", pa.string())])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The table of :func:`~divray.dedup.tables.near_duplicate_clusters`, a slice of rows at a time."""
        for start in range(0, len(self), _SLICE):
            yield self._batch(start, min(start + _SLICE, len(self)))

    def _batch(self, start: int, stop: int) -> pa.RecordBatch:
        part = slice(*np.searchsorted(self.rows, [start, stop]))
        at = self.rows[part] - start

        def whole(some: npt.NDArray[Any], alone: float) -> npt.NDArray[Any]:
            out = np.full(stop - start, alone, some.dtype)
            out[at] = some[part]
            return out

        cluster = np.arange(start, stop)
        cluster[at] = self.cluster[part]
        nearest, why = whole(self.nearest, -1), whole(self.why, ALONE)
        ids = self.ids[start:stop]
        columns = [
            ids,
            self.ids.take(pa.array(cluster)),
            self.ids.take(pa.array(nearest, mask=nearest < 0)),
            pa.array(whole(self.similarity, 0), mask=nearest < 0),
            pa.array(whole(self.kept, True)),
            in_words(why, whole(self.copy_of, -1), whole(self.copy_similarity, 0), self.ids, self.references),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema())


def verdicts_of(ids: Any, group: npt.NDArray[np.int32], pairs: Pairs, groups: int, rule: Rule, references: References) -> Verdicts:
    """Decide what stays among rows that are given as groups of equal sets and near pairs of groups.

    Args:
        ids: Arrow array ``[n]``, distinct.
        group: int32 ``[n]``; -1 for a row without text.
        pairs: Of groups.
        groups: Their number.
        references: In the same groups; pairs among them may be left out of ``pairs``.
    """
    reference, reference_similarity = _references_near(pairs, groups, references)
    gone = reference >= 0
    if gone.any():
        pairs = pairs.take(~(gone[pairs.left] | gone[pairs.right]))
    met = np.bincount(group[group >= 0], minlength=groups) > 1
    met[pairs.left] = True
    met[pairs.right] = True
    met &= ~gone
    # A last entry is what group -1, no text, finds.
    inside = np.append(met, False)[group]
    rows = np.flatnonzero(inside | np.append(gone, True)[group])
    inside, home = inside[rows], group[rows]
    number = np.cumsum(met) - 1
    near, own = rows[inside], number[home[inside]]
    pairs = Pairs(number[pairs.left], number[pairs.right], pairs.similarity)
    by_id = ranks(ids.take(pa.array(near)))
    made = decide(by_id, pairs, group=own, rule=rule)
    preference = by_id + np.where(made.kept, 0, len(by_id))
    nearest, similarity = nearest_items(own, preference, lambda order: best_of(len(order), *pairs, order))

    bare = home < 0
    out = Verdicts(
        ids,
        rows,
        cluster=rows.copy(),
        kept=bare.copy(),
        copy_of=np.append(reference, -1)[home],
        copy_similarity=np.append(reference_similarity, 0)[home],
        nearest=np.full(len(rows), -1),
        similarity=np.zeros(len(rows)),
        why=np.full(len(rows), NO_TEXT, np.int8),
        references=references.names,
    )
    out.why[~bare] = np.where(out.copy_of[~bare] < references.earlier, KNOWN, LEAKED)
    out.cluster[inside], out.kept[inside], out.why[inside] = near[made.cluster], made.kept, made.why
    out.copy_of[inside] = np.where(made.copy_of >= 0, near[made.copy_of], -1)
    out.copy_similarity[inside] = made.copy_similarity
    out.nearest[inside] = np.where(nearest >= 0, near[nearest], -1)
    out.similarity[inside] = similarity
    return out


def _references_near(pairs: Pairs, groups: int, references: References) -> Nearest:
    """Of each group the nearest reference, the first of equally near ones; a test text if it is near any."""
    chosen, best = np.full(groups, -1, np.int64), np.zeros(groups)
    tests = np.arange(len(references.group)) >= references.earlier
    for kind in (tests, ~tests):
        texts = np.flatnonzero(kind & (references.group >= 0))[::-1]
        if not len(texts):
            continue
        first = np.full(groups, -1, np.int64)
        first[references.group[texts]] = texts
        own = first >= 0
        nearest, similarity = best_of(groups, *pairs, first, own)
        nearest[own], similarity[own] = np.flatnonzero(own), 1.0
        named = (chosen < 0) & (nearest >= 0)
        chosen[named], best[named] = first[nearest[named]], similarity[named]
    return chosen, best
