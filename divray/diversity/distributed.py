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
them.  The result is the same, row for row, for any number of workers, slices and partitions.  A partition's edges lie
in the work folder once it is done; an interrupted call that is made again joins only the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from divray.diversity.clusters import components
from divray.diversity.columns import DedupSettings, check_ids, columns_of, joined_ids, take_in
from divray.diversity.distinct import Distinct
from divray.diversity.minhash import band_sets, choose_bands
from divray.diversity.neighbours import Pairs, most_visits
from divray.diversity.partitions import Held, Task, join_part, send
from divray.diversity.prefixes import count_elements, table_bits
from divray.diversity.sources import ParquetSource, judge_files
from divray.diversity.verdicts import References, Verdicts, verdicts_of
from divray.errors import DivrayError
from divray.runs import RunFolder

SLICE_ROWS = 500_000
ROWS_PER_PARTITION = 500_000
DECODING = 0.25
"""What it takes to decode a row, as a share of what it takes to read it and make its set."""
TABLE_BITS = 28
ROLES = ("row", "earlier", "test")
_AT_ONCE = 1 << 18


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` of one row group."""

    uri: str
    path: str
    row_group: int
    start: int
    stop: int
    role: str  # of ROLES


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
    slices = [one for role, source in sources.items() if source is not None for one in _slices(source, slice_rows, role)]
    rows = sum(source.rows for source in sources.values() if source is not None)
    partitions = partitions or max(min(_lanes(), 4), -(-rows // ROWS_PER_PARTITION))
    with _errors_of_tasks():
        read: Any = ray.remote(num_cpus=1)(_read).options(num_returns=3)
        made = [read.remote(one, settings) for one in slices]
        sets, groups = [one[0] for one in made], [one[1] for one in made]
        sizes = np.array(ray.get([one[2] for one in made]), np.int64).reshape(-1, 2)
        del made
        if not sizes[:, 0].any():
            return judge_files(files, settings, against, earlier)
        own = int(sizes[[one.role == "row" for one in slices], 0].sum())
        most = None if _banding(settings) else most_visits(int(sizes[:, 0].sum()), settings.method)
        told = Task(settings.threshold, partitions, own, most)
        joins = _joins(sets, sizes, told, f"cut-{slice_rows}", work)
        named = _named(settings, slices, ray.get(groups), sizes[:, 0], files.name)
        return _decide(settings, named, int(sizes[:, 0].sum()), _edges(joins, work))


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
        cut: How the slices were made, a part of the names.
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


def _slices(files: ParquetSource, slice_rows: int, role: str) -> list[Slice]:
    found = []
    for path in files.paths:
        metadata = pq.read_metadata(path, filesystem=files.fs)
        for number in range(metadata.num_row_groups):
            cuts = _cuts(metadata.row_group(number).num_rows, slice_rows)
            found += [Slice(files.name, path, number, start, stop, role) for start, stop in itertools.pairwise(cuts)]
    return found


def _cuts(rows: int, slice_rows: int) -> list[int]:
    """Where a row group is cut so that its slices take equally long: each also decodes the rows before it, so later ones are smaller."""
    count = max(1, -(-rows // slice_rows))
    share = (1 - DECODING) ** np.arange(count)
    ends = np.rint(rows * np.cumsum(share) / share.sum()).astype(int)
    return [0, *ends.tolist()]


def _banding(settings: DedupSettings) -> tuple[int, int] | None:
    """Permutations and bands of MinHash; ``None`` for the exact join."""
    approximate = settings.method == "minhash" or (settings.method == "auto" and settings.kind == "char")
    return choose_bands(settings.threshold) if approximate else None


def _read(part: Slice, settings: DedupSettings) -> tuple[Held, tuple[npt.NDArray[np.int32], Any], tuple[int, int]]:
    """A slice's distinct sets; the set of each row and its id; how many sets there are and how many elements they are searched by."""
    from divray.runs import open_uri

    fs, _ = open_uri(part.uri)
    wanted = [settings.text_column] if part.role == "test" or settings.id_column is None else [settings.text_column, settings.id_column]
    distinct, groups, names = Distinct(part.stop - part.start), [np.zeros(0, np.int32)], []
    for batch in _batches(pq.ParquetFile(fs.open_input_file(part.path)), part, wanted):
        texts, ids = columns_of(batch, settings, part.path, part.role != "test")
        groups.append(take_in(distinct, settings, texts))
        names.append(ids)
    sets = distinct.close()
    banding = _banding(settings)
    held = Held(sets, None if banding is None else band_sets(sets, *banding))
    return held, (np.concatenate(groups), names), (len(sets), len(held.searched.values))


def _batches(file: pq.ParquetFile, part: Slice, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The slice's rows; those before it must be decoded, too, those after it are not."""
    at = 0
    for batch in file.iter_batches(batch_size=1 << 16, row_groups=[part.row_group], columns=columns, use_threads=False):
        own = batch.slice(max(0, part.start - at), max(0, min(part.stop - at, len(batch)) - max(0, part.start - at)))
        at += len(batch)
        if len(own):
            yield own
        if at >= part.stop:
            return


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


class _Named(NamedTuple):
    """The rows of all slices in their order: by role the set of each, of the rows and of the earlier ones the ids too."""

    sets: dict[str, npt.NDArray[np.int32]]
    ids: Any
    earlier: Any


def _named(settings: DedupSettings, slices: list[Slice], groups: list[Any], sizes: npt.NDArray[np.int64], where: str) -> _Named:
    """Put the rows of all slices together.

    Raises:
        InputError: An id is null or occurs twice.
    """
    sets: dict[str, list[npt.NDArray[np.int32]]] = {role: [np.zeros(0, np.int32)] for role in ROLES}
    names: dict[str, list[Any]] = {role: [] for role in ROLES}
    for part, base, (group, ids) in zip(slices, np.cumsum(sizes) - sizes, groups, strict=True):
        sets[part.role].append(np.where(group < 0, np.int32(-1), group + np.int32(base)))
        names[part.role] += ids
    rows = {role: np.concatenate(parts) for role, parts in sets.items()}
    ids = joined_ids(names["row"], settings, len(rows["row"]))
    check_ids(ids, where, settings.id_column or "row")
    return _Named(rows, ids, joined_ids(names["earlier"], settings, len(rows["earlier"])))


def _decide(settings: DedupSettings, named: _Named, sets: int, edges: list[pa.Table]) -> Verdicts:
    parts = [Pairs(*(part[name].to_numpy() for name in ("left", "right", "similarity"))) for part in edges]
    equal = [part.similarity == 1.0 for part in parts]  # sets of similarity 1 are equal
    left, right = (np.concatenate([part[side][same] for part, same in zip(parts, equal, strict=True)]) for side in (0, 1))
    number = components(sets, left, right)
    of_set = np.append(number, -1).astype(np.int32)  # a last entry is what set -1, no text, finds
    row, earlier, test = (of_set[named.sets[role]] for role in ROLES)
    references = References.of([earlier], named.earlier, [test]) if len(earlier) or len(test) else None
    return verdicts_of(named.ids, row, _numbered(parts, equal, number), int(number.max(initial=-1)) + 1, settings.rule, references)


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
