"""Sets that stayed, on disk, so that the next batch of texts is compared with them and they are not read again.

An index is a folder with one Arrow file for each batch that was added.  A file holds the batch's sets and, for each
element, the rows that hold it (an inverted file); it is mapped into memory, so that a look-up (:mod:`divray.diversity.lookups`)
reads only the pages that it needs.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs

from divray.diversity.columns import DedupSettings
from divray.diversity.joins import MOST_PAIRS, check_pairs
from divray.diversity.lookups import look_up, postings_of, runs_of
from divray.diversity.neighbours import Pairs, most_visits
from divray.diversity.shingles import Shingles
from divray.errors import InputError
from divray.runs import open_uri, placed, target_of

_MADE = b"divray.index"


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

    def beside(self, pairs: Pairs, sets: int) -> Pairs:
        """With ``pairs`` of the ``sets`` themselves; the indexed ones are numbered after these."""
        return Pairs(
            np.concatenate([pairs.left, self.sets]),
            np.concatenate([pairs.right, sets + self.rows]),
            np.concatenate([pairs.similarity, self.similarity]),
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    """One file: ``ids[i]`` stands for set ``i``; postings are those of :mod:`divray.diversity.lookups`."""

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
        self._left = [one.path for one in found if (target_of(one.base_name) or "").endswith(".arrow")]
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
            starts, counts = runs_of(sets.values, order, batch.postings)
            limit = most_visits(len(sets) + len(batch.sets), self.settings.method)
            most = np.iinfo(np.int64).max if limit is None else limit
            complete, *pairs = look_up(*sets, starts, counts, batch.postings, *batch.sets, self.settings.threshold, most, MOST_PAIRS)
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
        postings = postings_of(sets)
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
