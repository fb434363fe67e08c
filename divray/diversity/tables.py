"""Near-duplicates in any table of texts, streamed by batch: which rows stay, and what each is near to.

    clusters = near_duplicate_clusters(table, id_column="id")          # one row a row of the table
    kept = table.filter(clusters["kept"])

Rows whose text is null have nothing to be compared and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.diversity.clusters import REASONS, Rule, decide, in_words, ranks
from divray.diversity.distinct import Distinct
from divray.diversity.neighbours import Method, Pairs, best_of, find_pairs, nearest_items
from divray.diversity.shingles import Shingles, shingle, text_hashes
from divray.errors import InputError

if TYPE_CHECKING:
    import ray.data

Batches: TypeAlias = "pa.Table | Iterable[pa.RecordBatch] | ray.data.Dataset"

LEAKED, NO_TEXT = len(REASONS), len(REASONS) + 1
ALL_REASONS = (*REASONS, "near test text", "kept: no text")
_ALONE = REASONS.index("kept: no near neighbour")
_SLICE = 1 << 18


@dataclass(frozen=True, slots=True)
class DedupSettings:
    """How texts are compared, and what stays.

    Attributes:
        text_column: Column of the texts, strings of any Arrow kind.
        id_column: Column of the ids, distinct strings or integers; ``None``: rows are named by their number, from 0.
        kind: n-grams of words or of characters.
        size: n.
        lower: Lower-case first.
        strip_punctuation: Take punctuation off both ends of each word.
        threshold: Jaccard similarity from which two texts are near, in (0, 1].
        rule: ``component`` keeps one row of each cluster, ``independent`` a greedy independent set
            (:mod:`divray.diversity.clusters`).
        method: How pairs are found (:func:`~divray.diversity.neighbours.near_duplicates`).
    """

    text_column: str = "text"
    id_column: str | None = None
    kind: Literal["word", "char"] = "word"
    size: int = 3
    lower: bool = True
    strip_punctuation: bool = False
    threshold: float = 0.7
    rule: Rule = "component"
    method: Method = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError("dedup", "threshold", f"{self.threshold} is not in (0, 1]", "Give e.g. 0.7.")
        if self.kind not in ("word", "char") or self.size < 1:
            raise InputError("dedup", "shingles", f"{self.kind}:{self.size} is no kind of shingle", "Give e.g. word:3 or char:5.")

    def shingle(self, texts: Any) -> Shingles:
        return shingle(texts, self.kind, self.size, self.lower, self.strip_punctuation)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What becomes of ``n`` rows; held for those only that are near something.

    Attributes:
        ids: Arrow array ``[n]``.
        rows: int64 ``[k]``, ascending: the rows that the arrays below are about; the others are alone and stay.
        cluster, copy_of, nearest: int64 ``[k]``, row numbers; -1 in the last two for none.
        copy_similarity, similarity: float64 ``[k]``.
        kept: bool ``[k]``.
        why: int8 ``[k]``, index into :data:`ALL_REASONS`.
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

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool ``[n]``, the rows that stay."""
        stays = np.ones(len(self), bool)
        stays[self.rows[~self.kept]] = False
        return stays

    def counts(self) -> dict[str, int]:
        """``rows``, ``kept``, ``clusters`` (of two rows or more), ``leaked`` (near a test text)."""
        several = np.bincount(np.unique(self.cluster, return_inverse=True)[1]) if len(self.rows) else np.zeros(0)
        leaked = int((self.why == LEAKED).sum())
        return {"rows": len(self), "kept": int(self.mask().sum()), "clusters": int((several > 1).sum()), "leaked": leaked}

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
        leaked = why == LEAKED
        near = zip(copy_of[leaked].tolist(), similarity[leaked].tolist(), strict=True)
        levels = [ALL_REASONS[NO_TEXT], *(f"{ALL_REASONS[LEAKED]} {row} ({value:.2f})" for row, value in near)]
        at = np.zeros(int(beyond.sum()), np.int64)
        at[leaked[beyond]] = np.arange(1, leaked.sum() + 1)
        return pc.replace_with_mask(said, pa.array(beyond), pa.array(levels, pa.string()).take(pa.array(at)))


def near_duplicate_clusters(
    source: Batches, settings: DedupSettings | None = None, against: Batches | None = None, **options: Any
) -> pa.Table:
    """Say of every row of a table of texts which near-duplicates it has and whether it stays.

    Args:
        source: A table, record batches that are taken one at a time, or a Ray dataset, which is streamed through here
            (for one that is too large see :mod:`divray.diversity.distributed`).
        settings: How; or name them one by one: ``near_duplicate_clusters(table, id_column="id", threshold=0.8)``.
        against: Texts of a test set in the same text column: rows near one of them are dropped before all else.

    Returns:
        One row a row of ``source``, in its order: ``id``; ``cluster``, the smallest id of the cluster; ``nearest_id`` and
        ``similarity``, the most similar other row from the threshold on (of equally similar ones first a kept one, then
        the smallest id), else null; ``kept``; ``reason``, in words.

    Raises:
        InputError: a column is missing or of a wrong kind, an id is null or occurs twice.
    """
    settings = DedupSettings(**options) if settings is None else settings
    verdicts = judge(_batches(source), settings, None if against is None else _batches(against))
    return pa.Table.from_batches(verdicts.batches(), verdicts.schema())


def judge(
    batches: Iterable[pa.RecordBatch],
    settings: DedupSettings,
    against: Iterable[pa.RecordBatch] | None = None,
    rows: int | None = None,
    where: str = "table",
) -> Verdicts:
    """:func:`near_duplicate_clusters` as arrays; ``rows`` is how many will come, if known; ``where`` names the source in errors."""
    distinct = Distinct(rows)
    groups, names = [np.zeros(0, np.int32)], []
    for batch in batches:
        texts, ids = columns_of(batch, settings, where)
        names.append(ids)
        groups.append(take_in(distinct, settings, texts))
    group, ids = np.concatenate(groups), joined_ids(names, sum(map(len, groups)))
    del groups, names
    check_ids(ids, where, settings.id_column or "row")
    tests = [take_in(distinct, settings, columns_of(batch, settings, "test", False)[0]) for batch in against or ()]
    pairs = find_pairs(distinct.close(), settings.threshold, method=settings.method)
    return verdicts_of(ids, group, Pairs(*pairs), distinct.count, settings.rule, np.concatenate(tests) if tests else None)


def verdicts_of(
    ids: Any, group: npt.NDArray[np.int32], pairs: Pairs, groups: int, rule: Rule, tests: npt.NDArray[np.int32] | None = None
) -> Verdicts:
    """Decide what stays among rows that are given as groups of equal sets and near pairs of groups.

    Args:
        ids: Arrow array ``[n]``, distinct.
        group: int32 ``[n]``; -1 for a row without text.
        pairs: Of groups.
        groups: Their number.
        tests: int32, the groups of the texts that nothing may be near to.
    """
    leaked, test_of, test_similarity = _leaks(pairs, groups, tests)
    if tests is not None:
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
        why=np.where(bare, NO_TEXT, LEAKED).astype(np.int8),
    )
    out.copy_of[gone], out.copy_similarity[gone] = test_of[home[gone]], test_similarity[home[gone]]
    out.cluster[inside], out.kept[inside], out.why[inside] = near[made.cluster], made.kept, made.why
    out.copy_of[inside] = np.where(made.copy_of >= 0, near[made.copy_of], -1)
    out.copy_similarity[inside] = made.copy_similarity
    out.nearest[inside] = np.where(nearest >= 0, near[nearest], -1)
    out.similarity[inside] = similarity
    return out


def _leaks(
    pairs: Pairs, groups: int, tests: npt.NDArray[np.int32] | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each group: is it near a test text, to which (the most similar, then the first), and how near."""
    first = np.full(groups, -1, np.int64)
    if tests is None:
        return np.zeros(groups, bool), first, np.zeros(groups)
    texts = np.flatnonzero(tests >= 0)[::-1]
    first[tests[texts]] = texts
    test = first >= 0
    nearest, similarity = best_of(groups, *pairs, first, test)
    nearest[test], similarity[test] = np.flatnonzero(test), 1.0
    return nearest >= 0, first[nearest], similarity


def columns_of(batch: pa.RecordBatch, settings: DedupSettings, where: str, with_ids: bool = True) -> tuple[pa.Array, pa.Array | None]:
    """The texts, as ``large_string``, and the ids of a batch; ids are ``None`` where rows are numbered.

    Raises:
        InputError: a column is missing or of a wrong kind.
    """
    check_schema(batch.schema, settings, where, with_ids)
    texts = batch.column(settings.text_column)
    ids = batch.column(settings.id_column) if with_ids and settings.id_column is not None else None
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    if ids is not None and pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    return texts.cast(pa.large_string()), ids


def check_schema(schema: pa.Schema, settings: DedupSettings, where: str, with_ids: bool = True) -> None:
    """Are the text and id columns there, and of kinds that can be compared?

    Raises:
        InputError: says which is not.
    """
    wanted: list[tuple[str, tuple[Any, ...], str]] = [(settings.text_column, (_is_string,), "texts must be strings")]
    if with_ids and settings.id_column is not None:
        wanted.append((settings.id_column, (_is_string, pa.types.is_integer), "ids must be strings or integers"))
    for name, kinds, rule in wanted:
        places = schema.get_all_field_indices(name)
        if len(places) != 1:
            problem = "no such column" if not places else "two columns of this name"
            raise InputError(where, name, problem, f"The columns are: {', '.join(schema.names)}.")
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_kind(kind) for is_kind in kinds):
            raise InputError(where, name, f"a column of {kind}; {rule}", "Name another column, or convert it.")


def check_ids(ids: Any, where: str, name: str) -> None:
    """Are ids distinct and none of them null?

    Raises:
        InputError: names the row, or the id that occurs twice.
    """
    if ids.null_count:
        raise InputError(where, name, f"null in row {pc.index(ids.is_null(), True).as_py()}", "Give every row an id.")
    if pa.types.is_integer(ids.type):
        values = np.sort(ids.to_numpy())
        twice = values[1:][values[1:] == values[:-1]][:1].tolist()
    else:
        # Hashes are sorted, not strings; only those that meet are looked at.
        hashes = text_hashes(ids)
        values = np.sort(hashes)
        meeting = np.unique(values[1:][values[1:] == values[:-1]])
        counts = pc.value_counts(ids.filter(pa.array(np.isin(hashes, meeting)))) if len(meeting) else []
        twice = [pair["values"].as_py() for pair in counts if pair["counts"].as_py() > 1][:1]
    if twice:
        raise InputError(where, name, f"{twice[0]!r} occurs twice", "Give every row its own id, or leave the id column out.")


def take_in(distinct: Distinct, settings: DedupSettings, texts: pa.Array) -> npt.NDArray[np.int32]:
    """The groups of a batch of texts, -1 for those that are null."""
    if not texts.null_count:
        return distinct.add(settings.shingle(texts))
    group = np.full(len(texts), -1, np.int32)
    group[texts.is_valid().to_numpy(zero_copy_only=False)] = distinct.add(settings.shingle(texts.drop_null()))
    return group


def joined_ids(names: list[pa.Array | None], rows: int) -> Any:
    """The ids of all batches as one array; the rows' numbers where there are none."""
    known = [part for part in names if part is not None]
    if not known:
        return pa.array(np.arange(rows))
    kind = known[0].type if pa.types.is_integer(known[0].type) else pa.large_string()
    return pa.concat_arrays([part.cast(kind) for part in known])


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _batches(source: Any) -> Iterable[pa.RecordBatch]:
    if hasattr(source, "iter_batches"):  # a Ray dataset
        tables = source.iter_batches(batch_format="pyarrow", batch_size=_SLICE)
        return (batch for table in tables for batch in table.to_batches())
    if not isinstance(source, pa.Table):
        return source
    return source.to_batches(max_chunksize=_SLICE) or [pa.RecordBatch.from_pylist([], source.schema)]
