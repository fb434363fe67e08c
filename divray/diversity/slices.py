"""The rows of the input, cut into slices: what a task makes of one slice, and the rows of all of them put together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from divray.diversity.columns import DedupSettings, check_ids, columns_of, joined_ids, take_in
from divray.diversity.distinct import Distinct
from divray.diversity.minhash import band_sets, choose_bands
from divray.diversity.partitions import Held
from divray.diversity.sources import ParquetSource

ROLES = ("row", "earlier", "test")
DECODING = 0.25
"""What it takes to decode a row, as a share of what it takes to read it and make its set."""


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` of one row group."""

    uri: str
    path: str
    row_group: int
    start: int
    stop: int
    role: str  # of ROLES


def slices_of(files: ParquetSource, slice_rows: int, role: str) -> list[Slice]:
    """Slices of ``slice_rows`` rows on average, none of them of more than one row group."""
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


def banding_of(settings: DedupSettings) -> tuple[int, int] | None:
    """Permutations and bands of MinHash; ``None`` for the exact join."""
    approximate = settings.method == "minhash" or (settings.method == "auto" and settings.kind == "char")
    return choose_bands(settings.threshold) if approximate else None


def read_slice(part: Slice, settings: DedupSettings) -> tuple[Held, tuple[npt.NDArray[np.int32], Any], tuple[int, int]]:
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
    banding = banding_of(settings)
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


class Rows(NamedTuple):
    """The rows of all slices in their order: by role the set of each, of the rows and of the earlier ones the ids too."""

    sets: dict[str, npt.NDArray[np.int32]]
    ids: Any
    earlier: Any


def rows_of(settings: DedupSettings, slices: list[Slice], groups: list[Any], sizes: npt.NDArray[np.int64], where: str) -> Rows:
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
    return Rows(rows, ids, joined_ids(names["earlier"], settings, len(rows["earlier"])))
