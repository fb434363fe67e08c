"""The joins of :mod:`divray.diversity.joins` and :mod:`~divray.diversity.minhash` as Ray tasks, for more rows than one process should hold.

Each slice of the input is shingled by a task of its own, which leaves only its distinct sets in the object
store.  The counters of all slices are added up, so that every task puts elements in the same order.  A set is
then sent to the partitions that its prefix keys belong to, and a partition checks the pairs that meet in its
keys: each pair in the one partition that holds the first key that both share.  Equal sets of different slices
share all keys, hence meet too.  Only edges between near sets come back, and what stays is decided on them as in
one process.

With MinHash the keys are bands (:mod:`divray.diversity.minhash`), of which only those that several sets have are sent on.
One process changes to it where a row meets too many others in its keys; here ``method="auto"`` means the exact join of word
n-grams, with an error where one process would change, and MinHash of character n-grams.

Partitions are cut by hashes of the keys, not by relation or file, so that no large group of rows ends in one of
them; a key of very many sets is shared out among several.  The result is the same, row for row, for any number of
workers, slices and partitions.  A partition's edges lie in the work folder once it is done; an interrupted call that
is made again joins only the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from divray.diversity.clusters import components
from divray.diversity.columns import DedupSettings
from divray.diversity.neighbours import Pairs, most_visits
from divray.diversity.partitions import STRIPES, Held, Task, join_part, send
from divray.diversity.prefixes import count_elements, table_bits
from divray.diversity.slices import ROLES, Rows, banding_of, read_slice, rows_of, slices_of
from divray.diversity.sources import ParquetSource, judge_files
from divray.diversity.verdicts import References, Verdicts, verdicts_of
from divray.errors import DivrayError
from divray.runs import RunFolder

SLICE_ROWS = 500_000
ROWS_PER_PARTITION = 500_000
TABLE_BITS = 28
_AT_ONCE = 1 << 18


def judge_on_ray(
    files: ParquetSource,
    settings: DedupSettings,
    against: ParquetSource | None = None,
    earlier: ParquetSource | None = None,
    work: RunFolder | None = None,
    slice_rows: int = SLICE_ROWS,
    partitions: int | None = None,
) -> Verdicts:
    """:func:`divray.diversity.tables.judge` on the Ray cluster that this process is connected to.  Tables without
    texts are judged here.

    Args:
        files: Where the rows lie; workers must be able to read them.
        against: Test set that no row that stays may be near.
        earlier: Rows that earlier calls kept, which no row that stays may be near.
        work: Folder for the edges of finished partitions; none: an interrupted call begins anew.
        slice_rows: Rows a task, on average.
        partitions: Of the keys; default: one for :data:`ROWS_PER_PARTITION` rows of all three, at least one a CPU up to four.

    Raises:
        InputError: The exact join would look at more pairs than ``method="auto"`` allows.
    """
    import ray

    if not files.rows:
        return judge_files(files, settings, against, earlier)
    sources = dict(zip(ROLES, (files, earlier, against), strict=True))
    slices = [one for role, source in sources.items() if source is not None for one in slices_of(source, slice_rows, role)]
    total = sum(source.rows for source in sources.values() if source is not None)
    partitions = partitions or max(min(_lanes(), 4), -(-total // ROWS_PER_PARTITION))
    with _errors_of_tasks():
        read: Any = ray.remote(num_cpus=1)(read_slice).options(num_returns=3)
        made = [read.remote(one, settings) for one in slices]
        sets, groups = [one[0] for one in made], [one[1] for one in made]
        sizes = np.array(ray.get([one[2] for one in made]), np.int64).reshape(-1, 2)
        del made
        if not sizes[:, 0].any():
            return judge_files(files, settings, against, earlier)
        own = int(sizes[[one.role == "row" for one in slices], 0].sum())
        most = None if banding_of(settings) else most_visits(int(sizes[:, 0].sum()), settings.method)
        told = Task(settings.threshold, partitions, own, most)
        joins = _joins(sets, sizes, told, f"cut-{slice_rows}-shared-{STRIPES}", work)
        rows = rows_of(settings, slices, ray.get(groups), sizes[:, 0], files.name)
        return _decide(settings, rows, int(sizes[:, 0].sum()), _edges(joins, work))


@contextlib.contextmanager
def _errors_of_tasks() -> Iterator[None]:
    """What a task raises on purpose, as it raised it."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DivrayError):
            raise error.cause from None
        raise


def _joins(sets: list[Any], sizes: npt.NDArray[np.int64], told: Task, cut: str, work: RunFolder | None) -> dict[str, Any]:
    """Begin to join all partitions: of each the name of its file in ``work`` and a reference to its edges, ``None`` where they lie there.

    Args:
        sets: References to each slice's; emptied, so that Ray lets go of what has been sent.
        sizes: int64 ``[slices, 2]``, how many sets each has, and how many elements they are searched by.
        cut: How slices and partitions were made, a part of the names.
    """
    import ray

    names = [f"edges-{number:05d}-of-{told.partitions:05d}-{cut}.parquet" for number in range(told.partitions)]
    joins: dict[str, Any] = dict.fromkeys(names)
    missing = [name for name in names if work is None or not work.exists(name)]
    if missing:
        task: Any = ray.remote(num_cpus=1)
        lanes, bits = _lanes(), min(TABLE_BITS, table_bits(int(sizes[:, 1].sum())))
        tables = [task(_counted).remote(bits, *sets[lane::lanes]) for lane in range(lanes) if sets[lane::lanes]]
        table = task(_added).remote(*tables)
        sender: Any = task(send).options(num_returns=told.partitions)
        bases = np.cumsum(sizes[:, 0]) - sizes[:, 0]
        sent: list[Any] = [
            sender.remote(one, int(base), table, told.threshold, told.partitions) for one, base in zip(sets, bases, strict=True)
        ]
        sent = [one if isinstance(one, list) else [one] for one in sent]
        for number, name in enumerate(names):
            if name in missing:
                joins[name] = task(join_part).remote(told, number, *[one[number] for one in sent])
    sets.clear()
    return joins


def _edges(joins: dict[str, Any], work: RunFolder | None) -> list[pa.Table]:
    """The edges of all partitions, each left in ``work`` once it is done."""
    import ray

    waiting = {ref: name for name, ref in joins.items() if ref is not None}
    while waiting and work is not None:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        work.write_parquet(waiting.pop(done), ray.get(done))
    return [_left_there(work, name) if ref is None else ray.get(ref) for name, ref in joins.items()]


def _left_there(work: RunFolder | None, name: str) -> pa.Table:
    assert work is not None
    return pq.read_table(work.path(name), filesystem=work.fs)


def _lanes() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def work_name(files: ParquetSource, settings: DedupSettings, *references: ParquetSource | None) -> str:
    """A name for the work folder that changes with the input and the settings."""
    sources = (files, *references)
    inputs = [None if one is None else (one.name, one.paths, one.rows) for one in sources]
    stamps = [(i.size, str(i.mtime)) for one in sources if one is not None for i in one.fs.get_file_info(one.paths)]
    return ".work-" + hashlib.sha256(json.dumps([inputs, stamps, asdict(settings)]).encode()).hexdigest()[:16]


def _counted(bits: int, *parts: Held) -> npt.NDArray[np.uint8]:
    counts = None
    for one in parts:
        counts = count_elements(one.searched, bits, counts)
    assert counts is not None
    return counts


def _added(*tables: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The sum, 255 for more; part by part, so that what lies between stays in the cache."""
    if len(tables) == 1:
        return tables[0]
    total = np.empty_like(tables[0])
    for start in range(0, len(total), _AT_ONCE):
        part = tables[0][start : start + _AT_ONCE].copy()
        for table in tables[1:]:
            part += np.minimum(table[start : start + _AT_ONCE], 255 - part)
        total[start : start + _AT_ONCE] = part
    return total


def _decide(settings: DedupSettings, rows: Rows, sets: int, edges: list[pa.Table]) -> Verdicts:
    parts = [Pairs(*(part[name].to_numpy() for name in ("left", "right", "similarity"))) for part in edges]
    equal = [part.similarity == 1.0 for part in parts]  # sets of similarity 1 are equal
    left, right = (np.concatenate([part[side][same] for part, same in zip(parts, equal, strict=True)]) for side in (0, 1))
    number = components(sets, left, right)
    of_set = np.append(number, -1).astype(np.int32)  # a last entry is what set -1, no text, finds
    row, earlier, test = (of_set[rows.sets[role]] for role in ROLES)
    references = References.of([earlier], rows.earlier, [test]) if len(earlier) or len(test) else None
    return verdicts_of(rows.ids, row, _numbered(parts, equal, number), int(number.max(initial=-1)) + 1, settings.rule, references)


def _numbered(parts: list[Pairs], equal: list[npt.NDArray[np.bool_]], number: npt.NDArray[np.int64]) -> Pairs:
    """The pairs of different sets by the sets' numbers, part by part, so that nothing is held twice."""
    count = sum(int((~same).sum()) for same in equal)
    near = Pairs(np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count))
    at = 0
    for part, same in zip(parts, equal, strict=True):
        stop = at + int((~same).sum())
        near.left[at:stop], near.right[at:stop], near.similarity[at:stop] = (
            number[part.left[~same]],
            number[part.right[~same]],
            part.similarity[~same],
        )
        at = stop
    return near
