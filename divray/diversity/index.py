"""Sets that stayed, on disk, so that the next batch of texts is compared with them and they are not read again.

An index is a folder with one Arrow file for each batch that was added.  A file holds the batch's sets and, for each
element, the rows that hold it (an inverted file); it is mapped into memory, so that a look-up reads only the pages that
it needs.

Of two sets with ``J(x, y) >= t``, ``y`` holds at least ``⌈t |x|⌉`` elements of ``x``, hence one of any ``|x| - ⌈t |x|⌉ + 1``
of them: the prefix filter of :mod:`divray.diversity.prefixes`, from one side.  Those that the fewest indexed sets hold are
looked up, and each set found there is checked as a whole.  So nothing is missed, at any threshold.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
from numba import njit

from divray.diversity.columns import DedupSettings
from divray.diversity.hashing import sort_unsigned
from divray.diversity.joins import MOST_PAIRS, check_pairs, jaccard
from divray.diversity.neighbours import most_visits
from divray.diversity.prefixes import grown
from divray.diversity.shingles import Shingles
from divray.errors import InputError
from divray.runs import open_uri, placed

_MADE = b"divray.index"
_LEFT = re.compile(r"\.\d+-[0-9a-f]+\.arrow\.[0-9a-f]{32}\.tmp")
_ROW = np.uint64((1 << 32) - 1)
_SHIFT = np.uint64(32)


class Known(NamedTuple):
    """Near pairs of ``n`` sets and ``m`` indexed ones.

    Attributes:
        sets: int64 ``[k]``, number of the set.
        rows: int64 ``[k]``, number of the indexed one among those found, which are in the order in which they were added.
        similarity: float64 ``[k]``.
        names: strings ``[m]``, their ids.
    """

    sets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]
    names: pa.StringArray


@dataclass(frozen=True, slots=True)
class _Batch:
    """One file: ``ids[i]`` stands for set ``i``; postings are the upper half of an element, then a row, ascending."""

    name: str
    ids: Any
    sets: Shingles
    postings: npt.NDArray[np.uint64]


class TextIndex:
    """The texts that stayed in earlier batches; one call at a time may add to it.

    Args:
        uri: Folder of the index; a path or any URI that ``pyarrow.fs`` opens.
        settings: How texts become sets, which must be as they were for the batches there.  The threshold may be another.

    Raises:
        InputError: the batches there were made otherwise, or a file is no index.
    """

    def __init__(self, uri: str, settings: DedupSettings) -> None:
        self.uri, self.settings = uri, settings
        self.fs, self.folder = open_uri(uri.rstrip("/"))
        try:
            found = self.fs.get_file_info(pafs.FileSelector(self.folder, allow_not_found=True))
        except OSError as error:
            raise InputError(
                uri, "index", f"no folder ({str(error).splitlines()[0][:120]})", "Give the folder of an index, or a new one."
            ) from None
        paths = sorted(one.path for one in found if one.type == pafs.FileType.File and one.path.endswith(".arrow"))
        self._left = [one.path for one in found if _LEFT.fullmatch(one.base_name)]
        self.batches = [self._opened(path) for path in paths]
        self._next: tuple[str, Any, Shingles] | None = None

    def __len__(self) -> int:
        return sum(len(batch.sets) for batch in self.batches)

    def near(self, sets: Shingles, digest: str) -> Known:
        """The indexed sets near ``sets``; of a batch that is in the index under ``digest``, those before it.

        Raises:
            InputError: more would be looked at than ``settings.method`` allows.
        """
        named = [batch.name for batch in self.batches]
        before = self.batches[: named.index(digest)] if digest in named else self.batches
        order = np.argsort(sets.values) if before else np.zeros(0, np.int64)
        left, right, similarity, names = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)], [pa.array([], pa.string())]
        base = 0
        for batch in before:
            starts, counts = _runs(sets.values, order, batch.postings)
            limit = most_visits(len(sets) + len(batch.sets), self.settings.method)
            most = np.iinfo(np.int64).max if limit is None else limit
            complete, *pairs = _look_up(*sets, starts, counts, batch.postings, *batch.sets, self.settings.threshold, most, MOST_PAIRS)
            if not complete:
                problem = f"a look-up would compare more than {most:,} pairs"
                raise InputError(self.uri, "index", problem, "Compare longer shingles, or insist with method exact.")
            check_pairs(len(pairs[0]), self.settings.threshold)
            rows, numbers = np.unique(pairs[1], return_inverse=True)
            left.append(pairs[0])
            right.append(base + numbers)
            similarity.append(pairs[2])
            names.append(batch.ids.take(pa.array(rows)).cast(pa.string()))
            base += len(rows)
        return Known(np.concatenate(left), np.concatenate(right), np.concatenate(similarity), pa.concat_arrays(names))

    def put(self, digest: str, ids: Any, sets: Shingles) -> None:
        """A batch that :meth:`commit` will add: the ids of the rows that stay and their sets, no two near each other."""
        self._next = digest, ids, sets

    def commit(self) -> None:
        """Add what was put, unless it is there: from now on the next batches are compared with it."""
        if self._next is None:
            return
        (digest, ids, sets), self._next = self._next, None
        if digest in [batch.name for batch in self.batches]:
            return
        rows = np.repeat(np.arange(len(sets), dtype=np.uint64), np.diff(sets.offsets))
        postings = (sets.values >> _SHIFT << _SHIFT) | rows
        postings.sort()
        columns = {"ids": ids, "offsets": pa.array(sets.offsets), "values": pa.array(sets.values), "postings": pa.array(postings)}
        held = {name: pa.LargeListArray.from_arrays(pa.array([0, len(column)]), column) for name, column in columns.items()}
        made = pa.RecordBatch.from_pydict(held, metadata={_MADE: json.dumps(self._made()).encode()})
        self.fs.create_dir(self.folder, recursive=True)
        while self._left:  # by a killed call
            self.fs.delete_file(self._left.pop())
        path = posixpath.join(self.folder, f"{len(self.batches):06d}-{digest}.arrow")
        with placed(self.fs, path) as beside, self.fs.open_output_stream(beside) as stream, pa.ipc.new_file(stream, made.schema) as writer:
            writer.write_batch(made)
        self.batches.append(self._opened(path))

    def _made(self) -> dict[str, Any]:
        shingles = asdict(self.settings)
        return {"format": 1, **{name: shingles[name] for name in ("kind", "size", "lower", "strip_punctuation")}}

    def _opened(self, path: str) -> _Batch:
        local = isinstance(self.fs, pafs.LocalFileSystem)
        try:
            file = pa.ipc.open_file(pa.memory_map(path) if local else self.fs.open_input_file(path))
            made = json.loads(file.schema.metadata[_MADE])
            held = file.get_batch(0)
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            problem = f"not readable as a part of an index ({str(error).splitlines()[0][:120]})"
            raise InputError(path, "", problem, "Give the folder of an index, or a new one.") from None
        if made != self._made():
            differing = ", ".join(f"{name} is {made.get(name)} there" for name, value in self._made().items() if made.get(name) != value)
            raise InputError(
                self.uri, "index", f"its texts were compared otherwise: {differing}", "Ask for the same, or give a new folder."
            )
        ids, offsets, values, postings = (held[name].flatten() for name in ("ids", "offsets", "values", "postings"))
        name = posixpath.basename(path).removesuffix(".arrow").partition("-")[2]
        return _Batch(name, ids, Shingles(offsets.to_numpy(), values.to_numpy()), postings.to_numpy())


def digest_of(settings: DedupSettings, sets: Shingles, *parts: npt.NDArray[Any]) -> str:
    """A name for a batch by all that its outcome depends on: the same rows again have the same, wherever they lie."""
    digest = hashlib.blake2b(json.dumps(asdict(settings)).encode(), digest_size=12)
    for part in (*sets, *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


@njit(cache=True)
def _from(postings, at, least):  # type: ignore[no-untyped-def]
    """The first place from ``at`` on whose element is ``least`` or more, in steps that double."""
    low, high, step = at, at, 1
    while high < len(postings) and postings[high] >> _SHIFT < least:
        low = high + 1
        high += step
        step *= 2
    high = min(high, len(postings))
    while low < high:
        middle = (low + high) // 2
        if postings[middle] >> _SHIFT < least:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _runs(values, order, postings):  # type: ignore[no-untyped-def]
    """Where each element's postings start, and how many they are; elements are taken in ascending ``order``."""
    starts, counts = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    start = end = 0
    for n in range(len(order)):
        element = values[order[n]] >> _SHIFT
        if n == 0 or element != values[order[n - 1]] >> _SHIFT:
            start = _from(postings, end, element)
            end = _from(postings, start, element + np.uint64(1))
        starts[order[n]], counts[order[n]] = start, end - start
    return starts, counts


@njit(cache=True)
def _look_up(offsets, values, starts, counts, postings, held_offsets, held_values, threshold, most_visits, most):  # type: ignore[no-untyped-def]
    """``(True, sets, rows, similarity)`` of the near pairs; ``False`` first where it would look at more than ``most_visits`` postings."""
    left, right, similarity = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.float64)
    seen = np.full(len(held_offsets) - 1, -1, np.int32)
    longest = 0
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    rarest = np.empty(longest, np.uint64)
    found, visits = 0, 0
    for i in range(len(offsets) - 1):
        start, size = offsets[i], offsets[i + 1] - offsets[i]
        for j in range(size):
            rarest[j] = np.uint64(counts[start + j]) << _SHIFT | np.uint64(j)
        sort_unsigned(rarest, 0, size)
        for j in range(size - int(np.ceil(threshold * size - 1e-9)) + 1):
            place = start + np.int64(rarest[j] & _ROW)
            visits += counts[place]
            if visits > most_visits:
                return False, left[:0], right[:0], similarity[:0]
            for entry in range(starts[place], starts[place] + counts[place]):
                row = np.int64(postings[entry] & _ROW)
                if seen[row] == i:
                    continue
                seen[row] = i
                other = held_offsets[row + 1] - held_offsets[row]
                if min(size, other) < threshold * max(size, other) - 1e-9:
                    continue
                value = jaccard(values, start, start + size, held_values, held_offsets[row], held_offsets[row + 1], threshold)
                if value >= 0:
                    if found == len(left):
                        left, right, similarity = grown(left), grown(right), grown(similarity)
                    left[found], right[found], similarity[found] = i, row, value
                    found += 1
                    if found == most:
                        return True, left[:found], right[:found], similarity[:found]
    return True, left[:found], right[:found], similarity[:found]
