"""What of a sample is compared: its sentence, masked or not, and its set of shingles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.dedup.shingle import Shingles, Texts, decoded, shingle
from divray.dedup.tables import check_column
from divray.errors import InputError
from divray.relations import mask_entities
from divray.sections import DiversityConfig

SPANS = ("head_start", "head_end", "tail_start", "tail_end")

SEED_PREFIX = "seed:"
"""Where samples and seed examples are named together, the ids of seeds begin so."""


def checked(table: pa.Table, where: str, identity: str | None = None, label: str | None = None, spans: bool = False) -> pa.Table:
    """``table`` with ``text``, the columns named, and the four of the entities where ``spans``, checked; none of these stays a
    dictionary.

    Raises:
        InputError: says which is missing, of a wrong kind, or holds a null, and the row of the first one.
    """
    wanted: dict[str | None, str] = {"text": "texts", identity: "ids", label: "texts", **dict.fromkeys(SPANS if spans else (), "spans")}
    for name, what in wanted.items():
        if name is None:
            continue
        check_column(table.schema, name, where, what)
        if table[name].null_count:
            raise InputError(where, name, f"null in row {_first_null(table[name])}", "Drop the row, or fill it in.")
        if pa.types.is_dictionary(kind := table.schema.field(name).type):
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind.value_type))
    return table


def strings_of(texts: Texts) -> list[str]:
    """Python strings of a sequence of them or of an Arrow column, with U+FFFD for bytes that are no UTF-8.

    Raises:
        InputError: a text is null, or no string.
    """
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        if texts.null_count:
            raise InputError("texts", f"row {_first_null(texts)}", "null instead of a text", "Drop the row or put an empty text.")
        return decoded(texts.cast(pa.large_string()))
    strings = list(texts)
    for row, text in enumerate(strings):
        if not isinstance(text, str):
            problem = f"{'null' if text is None else type(text).__name__} instead of a text"
            raise InputError("texts", f"row {row}", problem, "Drop the row or put an empty text.")
    return strings


def _first_null(column: pa.Array | pa.ChunkedArray) -> int:
    row: int = pc.index(column.is_null(), True).as_py()
    return row


def compared_texts(table: pa.Table, mask: bool) -> list[str]:
    """The column ``text``, where ``mask`` masked by :func:`divray.relations.mask_entities`.

    Every text that is compared, embedded or scored for diversity goes through here.

    Raises:
        InputError: as of :func:`checked`.
    """
    table = checked(table, "texts", spans=mask)
    texts = strings_of(table["text"])
    if not mask:
        return texts
    spans = (table[name].to_pylist() for name in SPANS)
    return [mask_entities(text, (a, b), (c, d)) for text, a, b, c, d in zip(texts, *spans, strict=True)]


def names_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Head and tail of a row with the columns of a sample, folded."""
    head, tail = (row["text"][row[f"{side}_start"] : row[f"{side}_end"]].casefold() for side in ("head", "tail"))
    return head, tail


def configured_shingles(texts: Texts, config: DiversityConfig) -> Shingles:
    """The sets of n-grams that a run's settings ask for."""
    return shingle(texts, config.shingle_kind, config.shingle_size)
