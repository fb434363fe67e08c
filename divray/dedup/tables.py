"""Near-duplicates in any table of texts, streamed by batch: which rows stay, and what each is near to.

    clusters = near_duplicate_clusters(table, id_column="id")          # one row for each row of the table
    kept = table.filter(clusters["kept"])

Rows whose text is null are not compared, and stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.decide import ALONE, NO_TEXT, REFERENCE, Decisions, Rule, decide, in_words, nearest_given, nearest_items, ranks
from divray.dedup.shingle import Shingles, fold, joined, shingle
from divray.dedup.verify import Method, Pairs, near_duplicates
from divray.errors import InputError

Rows: TypeAlias = pa.Table | pa.RecordBatchReader

_SLICE = 1 << 18


@dataclass(frozen=True, slots=True)
class DedupSettings:
    """How texts are compared, and what stays.

    Attributes:
        text_column: Column of the texts, strings of any Arrow kind.
        id_column: Column of the ids, distinct strings or integers; ``None``: rows are named by their number, from 0.
        threshold: Jaccard similarity from which two texts are near, in (0, 1].
        kind, size, rule, method: See :mod:`~divray.dedup.shingle`, :mod:`~divray.dedup.decide` and :mod:`~divray.dedup.verify`.
    """

    text_column: str = "text"
    id_column: str | None = None
    kind: Literal["word", "char"] = "word"
    size: int = 3
    threshold: float = 0.7
    rule: Rule = "component"
    method: Method = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError("dedup", "threshold", f"{self.threshold} is not in (0, 1]", "Give e.g. 0.7.")
        if self.kind not in ("word", "char") or not 1 <= self.size < 1 << 31:
            raise InputError("dedup", "shingles", f"{self.kind}:{self.size} is no kind of shingle", "Give e.g. word:3 or char:5.")


def near_duplicate_clusters(source: Rows, settings: DedupSettings | None = None, against: Rows | None = None, **options: Any) -> pa.Table:
    """Find the near-duplicates in a table of texts, and decide for each row whether it stays.

    Args:
        source: A table, or a reader of record batches, which are taken one at a time.
        settings: How to compare; or give its fields as keywords: ``near_duplicate_clusters(table, id_column="id", threshold=0.8)``.
        against: The reference, such as a test set or what earlier calls kept, with its texts in the same column.  Rows near a
            reference text are dropped first.  Reference texts are not compared with each other.

    Returns:
        One row for each row of ``source``, in its order: ``id``; ``cluster``, the smallest id of the cluster; ``nearest_id``
        and ``similarity``, of the most similar other row that reaches the threshold (among equals a kept one, then the smallest
        id); ``kept``; ``reason``, in words.  ``nearest_id`` and ``similarity`` are null if there is no such row, and for rows near
        the reference.

    Raises:
        InputError: a column is missing or of a wrong kind, an id is null or occurs twice.
    """
    settings = DedupSettings(**options) if settings is None else settings
    source, against = (rows.to_reader(_SLICE) if isinstance(rows, pa.Table) else rows for rows in (source, against))
    verdicts = judge(source, settings, against)
    return pa.Table.from_batches(verdicts.batches(), verdicts.schema())


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The decisions on ``n`` rows.  Row numbers stand for rows, and -1 for no row.

    Attributes:
        ids: Arrow array ``[n]``.
        decided: What stays and why; for a row near a reference text, ``copy_of`` is the number of the text.
        nearest: int64 ``[n]``.
        similarity: float64 ``[n]``, to ``nearest``.
    """

    ids: Any
    decided: Decisions
    nearest: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]

    def counts(self) -> dict[str, int]:
        """``rows``, ``kept``, ``clusters`` (of two rows or more), ``near_reference``."""
        made = self.decided
        found = {"kept": made.kept, "clusters": np.bincount(made.cluster) > 1, "near_reference": made.why == REFERENCE}
        return {"rows": len(self.ids), **{name: int(some.sum()) for name, some in found.items()}}

    def schema(self) -> pa.Schema:
        named = [(name, self.ids.type) for name in ("id", "cluster", "nearest_id")]
        return pa.schema([*named, ("similarity", pa.float64()), ("kept", pa.bool_()), ("reason", pa.string())])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The table of :func:`near_duplicate_clusters`, a slice of rows at a time."""
        made = self.decided
        for start in range(0, len(self.ids), _SLICE):
            part = slice(start, start + _SLICE)
            alone = self.nearest[part] < 0
            columns = [
                self.ids[part],
                self.ids.take(pa.array(made.cluster[part])),
                self.ids.take(pa.array(self.nearest[part], mask=alone)),
                pa.array(self.similarity[part], mask=alone),
                pa.array(made.kept[part]),
                in_words(made.why[part], made.copy_of[part], made.copy_similarity[part], self.ids),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=self.schema())


def judge(
    source: pa.RecordBatchReader, settings: DedupSettings, against: pa.RecordBatchReader | None = None, where: str = "table"
) -> Verdicts:
    """:func:`near_duplicate_clusters` as arrays; ``where`` names the source in errors."""
    parts: list[Shingles] = []
    ids = _taken_in(source, parts, settings, where)
    _check_ids(ids, where, settings.id_column or "row")
    if against is not None:
        _taken_in(against, parts, replace(settings, id_column=None), "reference")
    rows = joined(parts)
    parts.clear()
    sets, _, groups = fold(rows)
    del rows
    group, others = np.split(groups, [len(ids)])
    blank = np.diff(sets.offsets) == 0  # the group of the rows without text
    pairs = near_duplicates(sets, settings.threshold, settings.method, own=int(group.max(initial=-1)) + 1)

    # Rows near a reference text are dropped first, and link no others.
    reference, reference_similarity = nearest_given(others, len(sets), pairs)
    reference[blank], reference_similarity[blank] = -1, 0.0
    gone = (reference >= 0) | blank
    if gone.any():
        pairs = pairs.take(~(gone[pairs.left] | gone[pairs.right]))
    copy_of = reference[group]
    why = np.select([blank[group], copy_of >= 0], [NO_TEXT, REFERENCE], ALONE).astype(np.int8)
    made = Decisions(np.arange(len(ids)), copy_of < 0, copy_of, reference_similarity[group], why)
    nearest, similarity = np.full(len(ids), -1), np.zeros(len(ids))

    # Of the other rows, only those with a twin or a near pair need a decision.
    met = np.bincount(group, minlength=len(sets)) > 1
    met[np.append(pairs.left, pairs.right)] = True
    met &= ~gone
    near = np.flatnonzero(met[group])
    number = np.cumsum(met) - 1
    home = number[group[near]]
    pairs = Pairs(number[pairs.left], number[pairs.right], pairs.similarity)
    by_id = ranks(ids.take(pa.array(near)))
    decided = decide(by_id, pairs, group=home, rule=settings.rule)
    preference = by_id + np.where(decided.kept, 0, len(near))
    other, other_similarity = nearest_items(home, preference, pairs)
    row = np.append(near, -1)  # -1 (none) gives -1
    made.cluster[near], made.kept[near], made.why[near] = row[decided.cluster], decided.kept, decided.why
    made.copy_of[near], made.copy_similarity[near] = row[decided.copy_of], decided.copy_similarity
    nearest[near], similarity[near] = row[other], other_similarity
    return Verdicts(ids, made, nearest, similarity)


def _taken_in(reader: pa.RecordBatchReader, parts: list[Shingles], settings: DedupSettings, where: str) -> Any:
    """Add each row's set to ``parts`` (an empty set for a null text); return the rows' ids, or their numbers without an id column."""
    check_schema(reader.schema, settings, where)
    start, name = len(parts), settings.id_column
    ids = [] if name is None else [_plain(pa.nulls(0, reader.schema.field(name).type))]
    for batch in reader:
        texts = _plain(batch.column(settings.text_column))
        sets = shingle(texts.drop_null(), settings.kind, settings.size)
        sizes = np.zeros(len(texts), np.int64)
        sizes[texts.is_valid().to_numpy(zero_copy_only=False)] = np.diff(sets.offsets)
        parts.append(Shingles(np.append(0, np.cumsum(sizes)), sets.values))
        if name is not None:
            ids.append(_plain(batch.column(name)))
    return pa.concat_arrays(ids) if ids else pa.array(np.arange(sum(len(part) for part in parts[start:])))


def check_schema(schema: pa.Schema, settings: DedupSettings, where: str) -> None:
    """Raises InputError where the text or the id column is missing, occurs twice, or is of a kind that can't be compared."""
    for name, wanted in ((settings.text_column, "texts must be strings"), (settings.id_column, "ids must be strings or integers")):
        if name is None:
            continue
        places = schema.get_all_field_indices(name)
        if len(places) != 1:
            problem = "no such column" if not places else "two columns of this name"
            raise InputError(where, name, problem, f"The columns are: {', '.join(schema.names)}.")
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if not (strings or (pa.types.is_integer(kind) and "integers" in wanted)):
            raise InputError(where, name, f"a column of {kind}; {wanted}", "Name another column, or convert it.")


def _check_ids(ids: Any, where: str, name: str) -> None:
    """Raises InputError where an id is null or occurs twice."""
    if ids.null_count:
        raise InputError(where, name, f"null in row {pc.index(ids.is_null(), True).as_py()}", "Give every row an id.")
    if pa.types.is_integer(ids.type):  # a sort is faster than Arrow's search for distinct ids
        ordered = np.sort(ids.to_numpy())
        repeated = bool((ordered[1:] == ordered[:-1]).any())
    else:
        repeated = len(ids.unique()) < len(ids)
    if repeated:
        twice = next(pair["values"] for pair in ids.value_counts() if pair["counts"].as_py() > 1).as_py()
        raise InputError(where, name, f"{twice!r} occurs twice", "Give every row its own id, or leave the id column out.")


def _plain(column: pa.Array) -> pa.Array:
    """Strings as ``large_string``, integers as they are, neither in a dictionary."""
    coded = pa.types.is_dictionary(column.type)
    if pa.types.is_integer(column.type.value_type if coded else column.type):
        return column.dictionary_decode() if coded else column
    if coded:  # Arrow has no take kernel for string views
        column = column.cast(pa.dictionary(column.type.index_type, pa.large_string()))
    return column.cast(pa.large_string())
