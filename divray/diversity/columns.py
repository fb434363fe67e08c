"""The texts and ids in a batch of any table: which columns, of which kinds, and how their sets are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.diversity.clusters import Rule
from divray.diversity.distinct import Distinct
from divray.diversity.neighbours import Method
from divray.diversity.shingles import Shingles, shingle, text_hashes
from divray.errors import InputError


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
            (:mod:`divray.diversity.clusters`).
        method: How pairs are found (:func:`~divray.diversity.neighbours.near_duplicates`).
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
        if self.kind not in ("word", "char") or self.size < 1:
            raise InputError("dedup", "shingles", f"{self.kind}:{self.size} is no kind of shingle", "Give e.g. word:3 or char:5.")

    def shingle(self, texts: Any) -> Shingles:
        return shingle(texts, self.kind, self.size, self.lower, self.strip_punctuation)


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
    if pa.types.is_integer(ids.type):
        values = np.sort(ids.to_numpy())
        twice = values[1:][values[1:] == values[:-1]][:1].tolist()
    else:
        # Hashes are sorted, not strings; only those that meet are looked at.
        hashes = text_hashes(ids)
        values = np.sort(hashes)
        meeting = np.unique(values[1:][values[1:] == values[:-1]])
        counts = pc.value_counts(ids.filter(pa.array(np.isin(hashes, meeting)))) if len(meeting) else []
        twice = [pair["values"].as_py() for pair in counts if pair["counts"].as_py() > 1][:1]
    if twice:
        raise InputError(where, name, f"{twice[0]!r} occurs twice", "Give every row its own id, or leave the id column out.")


def take_in(distinct: Distinct, settings: DedupSettings, texts: pa.Array) -> npt.NDArray[np.int32]:
    """The groups of a batch of texts, -1 for those that are null."""
    if not texts.null_count:
        return distinct.add(settings.shingle(texts))
    group = np.full(len(texts), -1, np.int32)
    group[texts.is_valid().to_numpy(zero_copy_only=False)] = distinct.add(settings.shingle(texts.drop_null()))
    return group


def joined_ids(names: list[pa.Array | None], settings: DedupSettings, rows: int) -> Any:
    """The ids of all batches as one array; the rows' numbers where they have no other; of no type where no batch came."""
    if settings.id_column is None:
        return pa.array(np.arange(rows))
    known = [part for part in names if part is not None]
    if not known:
        return pa.nulls(0)
    kind = known[0].type if pa.types.is_integer(known[0].type) else pa.large_string()
    return pa.concat_arrays([part.cast(kind) for part in known])


def _decoded(column: pa.Array) -> pa.Array:
    kind = column.type
    if not pa.types.is_dictionary(kind):
        return column
    if pa.types.is_string_view(kind.value_type):  # no kernel takes from these
        column = column.cast(pa.dictionary(kind.index_type, pa.large_string()))
    return column.dictionary_decode()


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
