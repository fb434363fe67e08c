"""Near-duplicates in any table of texts, streamed by batch: which rows stay, and what each is near to.

    clusters = near_duplicate_clusters(table, id_column="id")          # one row a row of the table
    kept = table.filter(clusters["kept"])

Rows whose text is null have nothing to be compared and stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.decide import Rule
from divray.dedup.explain import References, Verdicts, verdicts_of
from divray.dedup.index import TextIndex, digest_of
from divray.dedup.shingle import Distinct, Shingles, shingle, text_hashes
from divray.dedup.verify import Method, Pairs, near_duplicates
from divray.errors import InputError

Batches: TypeAlias = "pa.Table | Iterable[pa.RecordBatch]"
_Groups: TypeAlias = "npt.NDArray[np.int32]"

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
            (:mod:`divray.dedup.decide`).
        method: How pairs are found (:func:`~divray.dedup.verify.near_duplicates`).
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
        if self.kind not in ("word", "char") or not 1 <= self.size < 1 << 31:
            raise InputError("dedup", "shingles", f"{self.kind}:{self.size} is no kind of shingle", "Give e.g. word:3 or char:5.")

    def shingle(self, texts: Any) -> Shingles:
        return shingle(texts, self.kind, self.size, self.lower, self.strip_punctuation)


def near_duplicate_clusters(
    source: Batches,
    settings: DedupSettings | None = None,
    against: Batches | None = None,
    earlier: Batches | None = None,
    index: TextIndex | None = None,
    **options: Any,
) -> pa.Table:
    """Say of every row of a table of texts which near-duplicates it has and whether it stays.

    Args:
        source: A table, or record batches that are taken one at a time.
        settings: How; or name them one by one: ``near_duplicate_clusters(table, id_column="id", threshold=0.8)``.
        against: Texts of a test set in the same text column: rows near one of them are dropped before all else.
        earlier: Rows that an earlier call kept, with the same columns: rows near one of them are dropped as well.  They are
            not compared with each other again.
        index: Of rows that earlier calls kept, with the same effect; those that stay are put into it, for its ``commit``.

    Returns:
        One row a row of ``source``, in its order: ``id``; ``cluster``, the smallest id of the cluster; ``nearest_id`` and
        ``similarity``, the most similar other row from the threshold on (of equally similar ones first a kept one, then
        the smallest id), else null; ``kept``; ``reason``, in words.  Ids are of the input's type; of type null where no
        batch came to show it.

    Raises:
        InputError: a column is missing or of a wrong kind, an id is null or occurs twice.
    """
    settings = DedupSettings(**options) if settings is None else settings
    tests, known = (None if one is None else _batches(one) for one in (against, earlier))
    verdicts = judge(_batches(source), settings, tests, known, index)
    return pa.Table.from_batches(verdicts.batches(), verdicts.schema())


def judge(
    batches: Iterable[pa.RecordBatch],
    settings: DedupSettings,
    against: Iterable[pa.RecordBatch] | None = None,
    earlier: Iterable[pa.RecordBatch] | None = None,
    index: TextIndex | None = None,
    rows: int | None = None,
    where: str = "table",
) -> Verdicts:
    """:func:`near_duplicate_clusters` as arrays; ``rows`` is how many will come, if known, those of ``against`` and
    ``earlier`` among them; ``where`` names the source in errors."""
    distinct = Distinct(rows)
    group, ids = _taken_in(batches, distinct, settings, where)
    check_ids(ids, where, settings.id_column or "row")
    own = distinct.count
    known, known_ids = _taken_in(earlier or (), distinct, settings, "earlier rows")
    tests = [_groups(distinct, settings, columns_of(batch, settings, "test", False)[0]) for batch in against or ()]
    numbers = pa.array(np.arange(sum(map(len, tests)))).cast(pa.string())
    sets = distinct.close()
    pairs = near_duplicates(sets, settings.threshold, settings.method, own)
    groups = distinct.count
    if index is not None:
        digest = digest_of(settings, sets, group, known, *tests, text_hashes(ids.cast(pa.large_string())))
        found, names = index.near(Shingles(sets.offsets[: own + 1], sets.values[: sets.offsets[own]]), digest, groups)
        pairs = Pairs(*(np.concatenate(both) for both in zip(pairs, found, strict=True)))
        known = np.concatenate([known, np.arange(groups, groups + len(names), dtype=np.int32)])
        known_ids = pa.concat_arrays([known_ids.cast(pa.string()), names])
        groups += len(names)
    names = pa.concat_arrays([known_ids.cast(pa.string()), numbers])
    verdicts = verdicts_of(ids, group, pairs, groups, settings.rule, References(np.concatenate([known, *tests]), names, len(known)))
    if index is not None:
        stays = np.flatnonzero(verdicts.mask() & (group >= 0))
        index.put(digest, ids.take(pa.array(stays)), sets.take(group[stays].astype(np.int64)))
    return verdicts


def _batches(source: Any) -> Iterable[pa.RecordBatch]:
    if isinstance(source, pa.Table):
        source = source.to_batches(max_chunksize=_SLICE) or [pa.RecordBatch.from_pylist([], source.schema)]
    if isinstance(source, pa.RecordBatchReader):  # none may come, and the ids have a type all the same
        source = itertools.chain([pa.RecordBatch.from_pylist([], source.schema)], source)
    return cast(Iterable[pa.RecordBatch], source)


def _taken_in(batches: Iterable[pa.RecordBatch], distinct: Distinct, settings: DedupSettings, where: str) -> tuple[_Groups, Any]:
    """Group and id of each row; its number where it has no other id; ids of no type where no batch came."""
    groups, names = [np.zeros(0, np.int32)], []
    for batch in batches:
        texts, ids = columns_of(batch, settings, where)
        groups.append(_groups(distinct, settings, texts))
        if ids is not None:
            names.append(ids if pa.types.is_integer(ids.type) else ids.cast(pa.large_string()))
    group = np.concatenate(groups)
    if settings.id_column is None:
        return group, pa.array(np.arange(len(group)))
    return group, pa.concat_arrays([part.cast(names[0].type) for part in names]) if names else pa.nulls(0)


def _groups(distinct: Distinct, settings: DedupSettings, texts: pa.Array) -> _Groups:
    """The groups of a batch of texts, -1 for those that are null."""
    if not texts.null_count:
        return distinct.add(settings.shingle(texts))
    group = np.full(len(texts), -1, np.int32)
    group[texts.is_valid().to_numpy(zero_copy_only=False)] = distinct.add(settings.shingle(texts.drop_null()))
    return group


def columns_of(batch: pa.RecordBatch, settings: DedupSettings, where: str, with_ids: bool = True) -> tuple[pa.Array, pa.Array | None]:
    """The texts, as ``large_string``, and the ids of a batch; ids are ``None`` where rows are numbered.

    Raises:
        InputError: a column is missing or of a wrong kind.
    """
    check_schema(batch.schema, settings, where, with_ids)
    texts = batch.column(settings.text_column)
    ids = batch.column(settings.id_column) if with_ids and settings.id_column is not None else None
    return _decoded(texts).cast(pa.large_string()), None if ids is None else _decoded(ids)


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
    if not len(ids):
        return
    if ids.null_count:
        raise InputError(where, name, f"null in row {pc.index(ids.is_null(), True).as_py()}", "Give every row an id.")
    keys = ids.to_numpy() if pa.types.is_integer(ids.type) else text_hashes(ids)  # sorted faster than Arrow counts them
    ordered = np.sort(keys)
    meeting = ordered[1:][ordered[1:] == ordered[:-1]]
    counts = ids.filter(pa.array(np.isin(keys, meeting))).value_counts() if len(meeting) else []
    if twice := [pair["values"].as_py() for pair in counts if pair["counts"].as_py() > 1]:
        raise InputError(where, name, f"{twice[0]!r} occurs twice", "Give every row its own id, or leave the id column out.")


def _decoded(column: pa.Array) -> pa.Array:
    kind = column.type
    if not pa.types.is_dictionary(kind):
        return column
    if pa.types.is_string_view(kind.value_type):  # no kernel takes from these
        column = column.cast(pa.dictionary(kind.index_type, pa.large_string()))
    return column.dictionary_decode()


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
