"""The parts of a sample that are compared: its sentence, masked or not, and its entities."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from divray.relations import Example, mask_entities, render_marked

SPANS = ("head_start", "head_end", "tail_start", "tail_end")
SENTENCE = ("text", *SPANS)

WORDS = 2
"""Words between the entities that tell wordings of a relation apart."""

SEED_PREFIX = "seed:"
"""Prefix of a seed example's id where samples and seed examples are listed together."""


def compared_texts(table: pa.Table, mask: bool) -> list[str]:
    """The column ``text``; with ``mask``, masked by :func:`divray.relations.mask_entities`.

    Every text that is compared, embedded or scored for diversity goes through here.
    """
    texts: list[str] = table["text"].to_pylist()
    if not mask:
        return texts
    spans = (table[name].to_pylist() for name in SPANS)
    return [mask_entities(text, (a, b), (c, d)) for text, a, b, c, d in zip(texts, *spans, strict=True)]


def marked(row: Mapping[str, Any]) -> str:
    """The sentence of a row with the columns of a sample, with the head in ``[ ]`` and the tail in ``{ }``."""
    head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
    return render_marked(Example(row["text"], head, tail, ""))


def names_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Head and tail of a row with the columns of a sample, both case-folded."""
    head, tail = (row["text"][row[f"{side}_start"] : row[f"{side}_end"]].casefold() for side in ("head", "tail"))
    return head, tail


def wording(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """How a row states its relation, roughly: whether the head comes first, and the first :data:`WORDS` words between the entities."""
    forward = row["head_start"] < row["tail_start"]
    between = row["text"][row["head_end"] : row["tail_start"]] if forward else row["text"][row["tail_end"] : row["head_start"]]
    return forward, *between.casefold().split()[:WORDS]
