"""The exact join of :mod:`divray.diversity.joins` as Ray tasks, for more rows than one process should hold.

Each slice of the input is shingled by a task of its own, which leaves only its distinct sets in the object
store.  The counters of all slices are added up, so that every task puts elements in the same order.  A set is
then sent to the partitions that its prefix keys belong to, and a partition checks the pairs that meet in its
keys: each pair in the one partition that holds the first key that both share.  Equal sets of different slices
share all keys, hence meet too.  Only edges between near sets come back, and what stays is decided on them as in
one process.

Partitions are cut by hashes of word n-grams, not by relation or file, so that no large group of rows ends in one of
them.  The result is the same, row for row, for any number of workers, slices and partitions.  A partition's edges lie
in the work folder once it is done; an interrupted call that is made again joins only the others.
"""

from __future__ import annotations

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
from divray.diversity.distinct import Distinct, collapse
from divray.diversity.files import ParquetSource
from divray.diversity.joins import join
from divray.diversity.neighbours import Pairs
from divray.diversity.prefixes import Prefixes, count_elements, postings, prefixes, table_bits
from divray.diversity.shingles import Shingles
from divray.diversity.verdicts import References, Verdicts, verdicts_of
from divray.runs import RunFolder

SLICE_ROWS = 500_000
ROWS_PER_PARTITION = 500_000
TABLE_BITS = 28
_AT_ONCE = 1 << 18


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` of one row group."""

    uri: str
    path: str
    row_group: int
    start: int
    stop: int
    role: str  # "row", "earlier" or "test"


class Piece(NamedTuple):
    """The sets of one slice that a partition must see, with their number over all slices and their prefix keys."""

    numbers: npt.NDArray[np.int64]
    sets: Shingles
    found: Prefixes


def judge_on_ray(
    files: ParquetSource,
    settings: DedupSettings,
    against: ParquetSource | None = None,
    earlier: ParquetSource | None = None,
    work: RunFolder | None = None,
    slice_rows: int = SLICE_ROWS,
    partitions: int | None = None,
) -> Verdicts:
    """:func:`divray.diversity.tables.judge` on the Ray cluster that this process is connected to; always exact.

    Args:
        files: Where the rows lie; workers must be able to read them.
        against: Test set that no row that stays may be near.
        earlier: Rows that earlier calls kept, which no row that stays may be near.
        work: Folder for the edges of finished partitions; none: an interrupted call begins anew.
        slice_rows: Most rows a task.
        partitions: Of the keys; default: one for :data:`ROWS_PER_PARTITION` rows, at least one a CPU up to four.
    """
    import ray

    sources = {"row": files, "earlier": earlier, "test": against}
    slices = [one for role, source in sources.items() if source is not None for one in _slices(source, slice_rows, role)]
    lanes = max(1, int(ray.cluster_resources().get("CPU", 1)))
    partitions = partitions or max(min(lanes, 4), -(-files.rows // ROWS_PER_PARTITION))
    task: Any = ray.remote(num_cpus=1)
    read: Any = task(_read).options(num_returns=3)
    made = [read.remote(one, settings) for one in slices]
    sets, groups, counts = [one[0] for one in made], [one[1] for one in made], [one[2] for one in made]
    sizes = np.array(ray.get(counts), np.int64).reshape(-1, 2)
    bases = np.cumsum(sizes[:, 0]) - sizes[:, 0]
    total = int(sizes[:, 0].sum())

    names = [f"edges-{number:05d}-of-{partitions:05d}-by-{slice_rows}.parquet" for number in range(partitions)]
    missing = [name for name in names if work is None or not work.exists(name)]
    edges: dict[str, Any] = {}
    if missing:
        bits = min(TABLE_BITS, table_bits(int(sizes[:, 1].sum())))
        tables = [task(_counted).remote(bits, *sets[lane::lanes]) for lane in range(lanes) if sets[lane::lanes]]
        table = task(_added).remote(*tables)
        send: Any = task(_send).options(num_returns=partitions)
        sent: list[Any] = [
            send.remote(one, int(base), table, settings.threshold, partitions) for one, base in zip(sets, bases, strict=True)
        ]
        sent = [one if isinstance(one, list) else [one] for one in sent]
        del sets, tables, table
        for number, name in enumerate(names):
            if name in missing:
                edges[name] = task(_join_part).remote(settings.threshold, number, partitions, *[one[number] for one in sent])
        del sent
        waiting = {ref: name for name, ref in edges.items()}
        while waiting and work is not None:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            work.write_parquet(waiting.pop(done), ray.get(done))
    parts = [ray.get(edges[name]) if name in edges else _edges(work, name) for name in names]
    return _decide(settings, slices, ray.get(groups), bases, total, pa.concat_tables(parts), files.name)


def _edges(work: RunFolder | None, name: str) -> pa.Table:
    assert work is not None
    return pq.read_table(work.path(name), filesystem=work.fs)


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
            rows = metadata.row_group(number).num_rows
            cuts = np.linspace(0, rows, max(1, -(-rows // slice_rows)) + 1).astype(int).tolist()
            found += [Slice(files.name, path, number, start, stop, role) for start, stop in itertools.pairwise(cuts)]
    return found


def _read(part: Slice, settings: DedupSettings) -> tuple[Shingles, tuple[npt.NDArray[np.int32], Any], tuple[int, int]]:
    """A slice's distinct sets; the set of each row and its id; how many sets and elements there are."""
    from divray.runs import open_uri

    fs, _ = open_uri(part.uri)
    wanted = [settings.text_column] if part.role == "test" or settings.id_column is None else [settings.text_column, settings.id_column]
    distinct, groups, names = Distinct(part.stop - part.start), [np.zeros(0, np.int32)], []
    for batch in _batches(pq.ParquetFile(fs.open_input_file(part.path)), part, wanted):
        texts, ids = columns_of(batch, settings, part.path, part.role != "test")
        groups.append(take_in(distinct, settings, texts))
        names.append(ids)
    sets = distinct.close()
    return Shingles(sets.offsets.copy(), sets.values.copy()), (np.concatenate(groups), names), (len(sets), len(sets.values))


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


def _counted(bits: int, *sets: Shingles) -> npt.NDArray[np.uint8]:
    counts = None
    for one in sets:
        counts = count_elements(one, bits, counts)
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


def _send(sets: Shingles, base: int, table: npt.NDArray[np.uint8], threshold: float, partitions: int) -> Any:
    """For every partition the sets that hold one of its keys."""
    found = prefixes(sets, threshold, table)
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


def _join_part(threshold: float, partition: int, partitions: int, *pieces: Piece) -> pa.Table:
    """Edges ``left, right, similarity`` between numbers of sets; those of similarity 1 between equal sets among them."""
    numbers = np.concatenate([piece.numbers for piece in pieces])
    sets = _stacked([piece.sets for piece in pieces])
    keys = _stacked([Shingles(piece.found.offsets, piece.found.keys) for piece in pieces])
    skipped = np.concatenate([piece.found.skipped for piece in pieces])
    first, group = collapse(sets)
    if len(first) < len(group):
        twins = np.flatnonzero(first[group] != np.arange(len(group)))
        held = keys.values[keys.offsets[twins]]
        twins = twins[_owners(held, partitions) == partition]  # once: where the first key belongs
        equal = numbers[first[group[twins]]], numbers[twins], np.ones(len(twins))
        sets, keys, skipped, numbers = sets.take(first), keys.take(first), skipped[first], numbers[first]
    else:
        equal = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    found = Prefixes(keys.offsets, keys.values, skipped)
    left, right, similarity = join(sets, found, postings(found), threshold, _owners(found.keys, partitions) == partition)
    columns = [np.concatenate(pair) for pair in ((equal[0], numbers[left]), (equal[1], numbers[right]), (equal[2], similarity))]
    return pa.table({"left": columns[0], "right": columns[1], "similarity": columns[2]})


def _stacked(parts: list[Shingles]) -> Shingles:
    ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, ends[:-1], strict=True)]
    return Shingles(np.concatenate([np.zeros(1, np.int64), *offsets]), np.concatenate([part.values for part in parts]))


def _decide(
    settings: DedupSettings, slices: list[Slice], groups: list[Any], bases: npt.NDArray[np.int64], total: int, edges: pa.Table, where: str
) -> Verdicts:
    left, right, similarity = (edges[name].to_numpy() for name in ("left", "right", "similarity"))
    equal = similarity == 1.0  # sets of similarity 1 are equal
    number = components(total, left[equal], right[equal])
    near = Pairs(number[left[~equal]], number[right[~equal]], similarity[~equal])
    rows: dict[str, list[npt.NDArray[np.int32]]] = {"row": [np.zeros(0, np.int32)], "earlier": [], "test": []}
    names: dict[str, list[Any]] = {"row": [], "earlier": [], "test": []}
    for part, base, (group, ids) in zip(slices, bases, groups, strict=True):
        rows[part.role].append(np.where(group < 0, -1, number[np.maximum(group + base, 0)]).astype(np.int32))
        names[part.role] += ids
    group = np.concatenate(rows["row"])
    ids = joined_ids(names["row"], settings, len(group))
    check_ids(ids, where, settings.id_column or "row")
    known = joined_ids(names["earlier"], settings, sum(map(len, rows["earlier"])))
    references = References.of(rows["earlier"], known, rows["test"]) if rows["earlier"] or rows["test"] else None
    return verdicts_of(ids, group, near, int(number.max(initial=-1)) + 1, settings.rule, references)
