"""Sets that stayed, on disk, so that the next batch of texts is compared with them and they are not read again.

An index is a folder with one Arrow file for each batch that was added: the batch's sets and its *postings*, for each element the
sets that hold it (an inverted file).  It is mapped into memory, so that a look-up reads only the pages that it needs.

Of two sets with ``J(x, y) >= t``, ``y`` holds one of any ``|x| - ⌈t |x|⌉ + 1`` elements of ``x``: the prefix filter of
:mod:`divray.dedup.propose`, from one side.  Those that the fewest indexed sets hold are looked up, and each set found there is
compared as a whole.  So nothing is missed, at any threshold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
from numba import njit

from divray.dedup.hashing import sort_unsigned
from divray.dedup.propose import grown
from divray.dedup.shingle import Shingles
from divray.dedup.storage import first_line, lock, open_uri, placed, target_of
from divray.dedup.verify import MOST_PAIRS, Pairs, check_pairs, jaccard, most_visits
from divray.errors import DivrayError, InputError

if TYPE_CHECKING:
    from divray.dedup.tables import DedupSettings

_MADE, _MAKER = b"divray.index", b"divray.maker"
_ROW = np.uint64((1 << 32) - 1)
_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class _Batch:
    """One file: ``ids[i]`` stands for set ``i``; postings are uint64, ascending: the upper half of an element, then a set's number."""

    file: str
    digest: str
    maker: str
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
        self.fs, self.folder = open_uri(uri)
        names = self._names()
        self._left = [name for name in names if target_of(name).endswith(".arrow")]
        self.batches = [self._opened(name) for name in names if name.endswith(".arrow")]
        self._next: tuple[str, Any, Shingles] | None = None

    def __len__(self) -> int:
        return sum(len(batch.sets) for batch in self.batches)

    def near(self, sets: Shingles, digest: str, first: int) -> tuple[Pairs, pa.StringArray]:
        """The indexed sets near ``sets``; of a batch that is in the index under ``digest``, those before it.

        Returns:
            Pairs of sets and indexed ones, which are numbered from ``first`` in the order in which they were added; and the
            ids of these.

        Raises:
            InputError: more would be looked at than ``settings.method`` allows.
        """
        named = [batch.digest for batch in self.batches]
        before = self.batches[: named.index(digest)] if digest in named else self.batches
        order = np.argsort(sets.values)
        parts, names = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))], [pa.array([], pa.string())]
        for batch in before:
            starts, counts = _runs_of(sets.values, order, batch.postings)
            most = most_visits(len(sets) + len(batch.sets), self.settings.method) or np.iinfo(np.int64).max
            complete, *found = _look_up(*sets, starts, counts, batch.postings, *batch.sets, self.settings.threshold, most, MOST_PAIRS)
            if not complete:
                problem = f"a look-up would compare more than {most:,} pairs"
                raise InputError(self.uri, "index", problem, "Compare longer shingles, or insist with method exact.")
            check_pairs(len(found[0]), self.settings.threshold)
            rows, numbers = np.unique(found[1], return_inverse=True)
            parts.append(Pairs(found[0], first + numbers, found[2]))
            names.append(batch.ids.take(pa.array(rows)).cast(pa.string()))
            first += len(rows)
        return Pairs.joined(parts), pa.concat_arrays(names)

    def put(self, digest: str, ids: Any, sets: Shingles) -> None:
        """What :meth:`commit` will add: the ids of the rows that stay and their sets, no two near each other."""
        self._next = digest, ids, sets

    def commit(self) -> None:
        """Add what was put, unless it is there: from now on the next batches are compared with it.

        Raises:
            DivrayError: another process has added to the index meanwhile; nothing is added.
        """
        if self._next is None:
            return
        (digest, ids, sets), self._next = self._next, None
        if digest in [batch.digest for batch in self.batches]:
            return
        postings = (sets.values & ~_ROW) | np.repeat(np.arange(len(sets), dtype=np.uint64), np.diff(sets.offsets))
        postings.sort()
        columns = {"ids": ids, "offsets": pa.array(sets.offsets), "values": pa.array(sets.values), "postings": pa.array(postings)}
        lists = {name: pa.LargeListArray.from_arrays(pa.array([0, len(column)]), column) for name, column in columns.items()}
        made = pa.RecordBatch.from_pydict(lists, metadata={_MADE: json.dumps(self._made()).encode(), _MAKER: _signature().encode()})
        self.fs.create_dir(self.folder, recursive=True)
        while self._left:  # by a killed call
            self.fs.delete_file(posixpath.join(self.folder, self._left.pop()))
        known = {batch.file for batch in self.batches}
        self._check_alone(known)
        name = f"{len(self.batches):06d}-{digest}.arrow"
        path = posixpath.join(self.folder, name)
        with placed(self.fs, path) as beside, self.fs.open_output_stream(beside) as stream, pa.ipc.new_file(stream, made.schema) as writer:
            writer.write_batch(made)
        try:
            self._check_alone({*known, name})
        except DivrayError:
            self.fs.delete_file(path)
            raise
        self.batches.append(self._opened(name))

    def _check_alone(self, known: set[str]) -> None:
        """Where a folder has no lock, two calls see each other's files at the latest once both are written."""
        others = [name for name in self._names() if name.endswith(".arrow") and name not in known]
        if others:
            maker = self._opened(others[0]).maker
            raise DivrayError(f"{self.uri}: index: {maker} has added a batch meanwhile, nothing was added. Call this again.")

    def _names(self) -> list[str]:
        try:
            found = self.fs.get_file_info(pafs.FileSelector(self.folder, allow_not_found=True))
        except OSError as error:
            raise InputError(self.uri, "index", f"no folder ({first_line(error)})", "Give the folder of an index, or a new one.") from None
        return sorted(one.base_name for one in found if one.type == pafs.FileType.File)

    def _made(self) -> dict[str, Any]:
        return {"format": 1, **{name: getattr(self.settings, name) for name in ("kind", "size", "lower", "strip_punctuation")}}

    def _opened(self, name: str) -> _Batch:
        path = posixpath.join(self.folder, name)
        local = isinstance(self.fs, pafs.LocalFileSystem)
        try:
            file = pa.ipc.open_file(pa.memory_map(path) if local else self.fs.open_input_file(path))
            made = json.loads(file.schema.metadata[_MADE])
            maker = file.schema.metadata.get(_MAKER, b"another process").decode()
            lists = file.get_batch(0)
            ids, offsets, values, postings = (lists[name].flatten() for name in ("ids", "offsets", "values", "postings"))
            kinds = [str(part.type) for part in (offsets, values, postings)]
            if not isinstance(made, dict) or kinds != ["int64", "uint64", "uint64"] or len(offsets) != len(ids) + 1:
                raise ValueError("its parts do not fit together")
        except (pa.ArrowException, AttributeError, OSError, KeyError, TypeError, ValueError) as error:
            problem = f"not readable as a part of an index ({first_line(error)})"
            raise InputError(path, "", problem, "Give the folder of an index, or a new one.") from None
        if made != self._made():
            differing = ", ".join(f"{name} is {made.get(name)} there" for name, value in self._made().items() if made.get(name) != value)
            raise InputError(
                self.uri, "index", f"its texts were compared otherwise: {differing}", "Ask for the same, or give a new folder."
            )
        digest = name.removesuffix(".arrow").partition("-")[2]
        return _Batch(name, digest, maker, ids, Shingles(offsets.to_numpy(), values.to_numpy()), postings.to_numpy())


def _signature() -> str:
    """This process, for those that meet its files."""
    return f"process {os.getpid()} on {platform.node()}, {datetime.now().astimezone().isoformat(' ', 'seconds')}"


@contextlib.contextmanager
def held(uri: str) -> Iterator[None]:
    """Make a folder, and hold it for this process alone: the lock ends with the process.  Object stores, and file systems without
    locks, have none.

    Raises:
        InputError: another process holds the folder (says which, where and since when), or it can't be made.
    """
    fs, folder = open_uri(uri)
    with contextlib.ExitStack() as opened:
        try:
            fs.create_dir(folder, recursive=True)
            if isinstance(fs, pafs.LocalFileSystem):
                file = opened.enter_context(Path(folder, ".lock").open("a+", encoding="utf-8"))
        except OSError as error:
            problem = f"not a folder that can be written to ({first_line(error)})"
            raise InputError(uri, "", problem, "Give another folder.") from None
        if not isinstance(fs, pafs.LocalFileSystem):
            yield
            return
        if not lock(file):
            file.seek(0)
            holder = file.read() or "another process"
            raise InputError(uri, "", f"in use by {holder}", "Wait until that one is done, or give another folder.")
        file.truncate(0)
        file.write(_signature())
        file.flush()
        yield
        file.truncate(0)


def digest_of(settings: DedupSettings, sets: Shingles, *parts: npt.NDArray[Any]) -> str:
    """A name for a batch by all that its outcome depends on: the same rows again have the same, wherever they lie."""
    digest = hashlib.blake2b(json.dumps(asdict(settings)).encode(), digest_size=12)
    for part in (*sets, *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


@njit(cache=True)
def _from(postings, at, least):  # type: ignore[no-untyped-def]
    """The first place from ``at`` on that holds ``least`` or more, in steps that double."""
    step = 1
    while at + step < len(postings) and postings[at + step] < least:
        at += step
        step *= 2
    return at + np.searchsorted(postings[at : at + step + 1], least)


@njit(cache=True)
def _runs_of(values, order, postings):  # type: ignore[no-untyped-def]
    """Where each element's postings start, and how many they are; elements are taken in ascending ``order``."""
    starts, counts = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    start = end = 0
    for n in range(len(order)):
        element = values[order[n]] & ~_ROW
        if n == 0 or element != values[order[n - 1]] & ~_ROW:
            start = _from(postings, end, element)
            end = _from(postings, start, element | _ROW)
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
