"""Near-duplicates in any table of texts, streamed by batch: which rows stay, and what each is near to.

    clusters = near_duplicate_clusters(table, id_column="id")          # one row a row of the table
    kept = table.filter(clusters["kept"])

Rows whose text is null have nothing to be compared and stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from divray.diversity.columns import DedupSettings, check_ids, columns_of, joined_ids, take_in
from divray.diversity.distinct import Distinct
from divray.diversity.index import TextIndex, digest_of
from divray.diversity.neighbours import Pairs, find_pairs
from divray.diversity.shingles import Shingles, text_hashes
from divray.diversity.verdicts import References, Verdicts, verdicts_of

if TYPE_CHECKING:
    import ray.data

Batches: TypeAlias = "pa.Table | Iterable[pa.RecordBatch] | ray.data.Dataset"

_SLICE = 1 << 18


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
        source: A table, record batches that are taken one at a time, or a Ray dataset, which is streamed through here
            (for one that is too large see :mod:`divray.diversity.distributed`).
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
    tests = [take_in(distinct, settings, columns_of(batch, settings, "test", False)[0]) for batch in against or ()]
    sets = distinct.close()
    pairs = Pairs(*find_pairs(sets, settings.threshold, method=settings.method, own=own))
    groups = distinct.count
    if index is not None:
        digest = digest_of(settings, sets, group, known, *tests, text_hashes(ids.cast(pa.large_string())))
        found = index.near(Shingles(sets.offsets[: own + 1], sets.values[: sets.offsets[own]]), digest)
        pairs, groups = found.beside(pairs, groups), groups + len(found.names)
        known = np.concatenate([known, np.arange(distinct.count, groups, dtype=np.int32)])
        known_ids = pa.concat_arrays([known_ids.cast(pa.string()), found.names])
    references = None if against is None and earlier is None and index is None else References.of([known], known_ids, tests)
    verdicts = verdicts_of(ids, group, pairs, groups, settings.rule, references)
    if index is not None:
        stays = np.flatnonzero(verdicts.mask() & (group >= 0))
        index.put(digest, ids.take(pa.array(stays)), sets.take(group[stays].astype(np.int64)))
    return verdicts


def _taken_in(
    batches: Iterable[pa.RecordBatch], distinct: Distinct, settings: DedupSettings, where: str
) -> tuple[npt.NDArray[np.int32], Any]:
    """Group and id of each row."""
    groups, names = [np.zeros(0, np.int32)], []
    for batch in batches:
        texts, ids = columns_of(batch, settings, where)
        names.append(ids)
        groups.append(take_in(distinct, settings, texts))
    return np.concatenate(groups), joined_ids(names, settings, sum(map(len, groups)))


def _batches(source: Any) -> Iterable[pa.RecordBatch]:
    if hasattr(source, "iter_batches"):  # a Ray dataset
        tables = source.iter_batches(batch_format="pyarrow", batch_size=_SLICE)
        return (batch for table in tables for batch in table.to_batches())
    if isinstance(source, pa.Table):
        source = source.to_batches(max_chunksize=_SLICE) or [pa.RecordBatch.from_pylist([], source.schema)]
    if isinstance(source, pa.RecordBatchReader):  # none may come, and the ids have a type all the same
        source = itertools.chain([pa.RecordBatch.from_pylist([], source.schema)], source)
    return cast(Iterable[pa.RecordBatch], source)
