"""What becomes of each row of a table of texts: kept or dropped, near what, and why, as a table of words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.diversity.clusters import REASONS, Rule, decide, in_words, ranks
from divray.diversity.neighbours import Pairs, best_of, nearest_items

LEAKED, KNOWN, NO_TEXT = range(len(REASONS), len(REASONS) + 3)
ALL_REASONS = (*REASONS, "near test text", "near earlier row", "kept: no text")
_ALONE = REASONS.index("kept: no near neighbour")
_SLICE = 1 << 18


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

    @classmethod
    def of(cls, earlier: list[npt.NDArray[np.int32]], ids: Any, tests: list[npt.NDArray[np.int32]]) -> References:
        """From the groups of both, batch by batch; ``ids`` are those of the earlier rows, an Arrow array."""
        group = np.concatenate([np.zeros(0, np.int32), *earlier, *tests])
        count = sum(map(len, earlier))
        numbers = pa.array(np.arange(len(group) - count)).cast(pa.string())
        return cls(group, pa.concat_arrays([ids.cast(pa.string()), numbers]), count)


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
        why: int8 ``[k]``, index into :data:`ALL_REASONS`.
        references: strings ``[m]``, their names.
    """

    ids: Any
    rows: npt.NDArray[np.int64]
    cluster: npt.NDArray[np.int64]
    kept: npt.NDArray[np.bool_]
    copy_of: npt.NDArray[np.int64]
    copy_similarity: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.int64]
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
        several = np.bincount(np.unique(self.cluster, return_inverse=True)[1]) if len(self.rows) else np.zeros(0)
        near = {"leaked": int((self.why == LEAKED).sum()), "known": int((self.why == KNOWN).sum())}
        return {"rows": len(self), "kept": int(self.mask().sum()), "clusters": int((several > 1).sum()), **near}

    def schema(self) -> pa.Schema:
        named = [(name, self.ids.type) for name in ("id", "cluster", "nearest_id")]
        return pa.schema([*named, ("similarity", pa.float64()), ("kept", pa.bool_()), ("reason", pa.string())])

    def batches(self, rows: int = _SLICE) -> Iterator[pa.RecordBatch]:
        """The table of :func:`near_duplicate_clusters`, a slice of rows at a time."""
        for start in range(0, len(self), rows):
            yield self._batch(start, min(start + rows, len(self)))

    def _batch(self, start: int, stop: int) -> pa.RecordBatch:
        first, last = np.searchsorted(self.rows, [start, stop])
        part, at = slice(first, last), self.rows[first:last] - start
        cluster, kept, nearest = np.arange(start, stop), np.ones(stop - start, bool), np.full(stop - start, -1)
        similarity, why = np.zeros(stop - start), np.full(stop - start, _ALONE, np.int8)
        copy_of, copy_similarity = np.full(stop - start, -1), np.zeros(stop - start)
        for whole, some in (
            (cluster, self.cluster),
            (kept, self.kept),
            (nearest, self.nearest),
            (similarity, self.similarity),
            (why, self.why),
            (copy_of, self.copy_of),
            (copy_similarity, self.copy_similarity),
        ):
            whole[at] = some[part]
        ids = self.ids[start:stop]
        columns = [
            ids,
            self.ids.take(pa.array(cluster)),
            self.ids.take(pa.array(nearest, mask=nearest < 0)),
            pa.array(similarity, mask=nearest < 0),
            pa.array(kept),
            self._reasons(why, copy_of, copy_similarity),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema())

    def _reasons(self, why: npt.NDArray[np.int8], copy_of: npt.NDArray[np.int64], similarity: npt.NDArray[np.float64]) -> pa.Array:
        beyond = why >= LEAKED
        said = in_words(np.where(beyond, _ALONE, why).astype(np.int8), copy_of, similarity, self.ids)
        if not beyond.any():
            return said
        near = beyond & (why != NO_TEXT)
        names = self.references.take(pa.array(copy_of[near])).to_pylist()
        told = zip(why[near].tolist(), names, similarity[near].tolist(), strict=True)
        levels = [ALL_REASONS[NO_TEXT], *(f"{ALL_REASONS[kind]} {name} ({value:.2f})" for kind, name, value in told)]
        at = np.zeros(int(beyond.sum()), np.int64)
        at[near[beyond]] = np.arange(1, near.sum() + 1)
        return pc.replace_with_mask(said, pa.array(beyond), pa.array(levels, pa.string()).take(pa.array(at)))


def verdicts_of(
    ids: Any, group: npt.NDArray[np.int32], pairs: Pairs, groups: int, rule: Rule, references: References | None = None
) -> Verdicts:
    """Decide what stays among rows that are given as groups of equal sets and near pairs of groups.

    Args:
        ids: Arrow array ``[n]``, distinct.
        group: int32 ``[n]``; -1 for a row without text.
        pairs: Of groups.
        groups: Their number.
        references: In the same groups; pairs among them may be left out of ``pairs``.
    """
    leaked, test_of, test_similarity = _leaks(pairs, groups, references)
    if references is not None:
        free = ~(leaked[pairs.left] | leaked[pairs.right])
        pairs = Pairs(pairs.left[free], pairs.right[free], pairs.similarity[free])
    met = np.bincount(group[group >= 0], minlength=groups) > 1
    met[pairs.left] = True
    met[pairs.right] = True
    met &= ~leaked
    number = np.cumsum(met) - 1
    # A last entry is what group -1, no text, finds.
    inside = np.append(met, False)[group]
    special = np.append(leaked, True)[group]
    rows = np.flatnonzero(inside | special)
    inside, home = inside[rows], group[rows]
    near = rows[inside]
    own = number[home[inside]]
    pairs = Pairs(number[pairs.left], number[pairs.right], pairs.similarity)
    by_id = ranks(ids.take(pa.array(near)))
    made = decide(pa.array(by_id), pairs, group=own, rule=rule)
    preference = by_id + np.where(made.kept, 0, len(by_id))
    nearest, similarity = nearest_items(own, preference, pairs)

    bare = home < 0
    gone = ~inside & ~bare
    out = Verdicts(
        ids,
        rows,
        cluster=rows.copy(),
        kept=~gone,
        copy_of=np.full(len(rows), -1),
        copy_similarity=np.zeros(len(rows)),
        nearest=np.full(len(rows), -1),
        similarity=np.zeros(len(rows)),
        why=np.full(len(rows), NO_TEXT, np.int8),
        references=pa.array([], pa.string()) if references is None else references.names,
    )
    out.copy_of[gone], out.copy_similarity[gone] = test_of[home[gone]], test_similarity[home[gone]]
    if references is not None:
        out.why[gone] = np.where(out.copy_of[gone] < references.earlier, KNOWN, LEAKED)
    out.cluster[inside], out.kept[inside], out.why[inside] = near[made.cluster], made.kept, made.why
    out.copy_of[inside] = np.where(made.copy_of >= 0, near[made.copy_of], -1)
    out.copy_similarity[inside] = made.copy_similarity
    out.nearest[inside] = np.where(nearest >= 0, near[nearest], -1)
    out.similarity[inside] = similarity
    return out


def _leaks(
    pairs: Pairs, groups: int, references: References | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each group: is it near a reference, to which, and how near; to a test text if to any, the most similar, then the first."""
    chosen, best = np.full(groups, -1, np.int64), np.zeros(groups)
    if references is not None:
        tests = np.arange(len(references.group)) >= references.earlier
        for kind in (tests, ~tests):
            texts = np.flatnonzero(kind & (references.group >= 0))[::-1]
            first = np.full(groups, -1, np.int64)
            first[references.group[texts]] = texts
            own = first >= 0
            nearest, similarity = best_of(groups, *pairs, first, own)
            nearest[own], similarity[own] = np.flatnonzero(own), 1.0
            named = (chosen < 0) & (nearest >= 0)
            chosen[named], best[named] = first[nearest[named]], similarity[named]
    return chosen >= 0, chosen, best
