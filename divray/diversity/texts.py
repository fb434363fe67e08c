"""What of a sample is compared: its sentence, with the entities masked or not."""

from __future__ import annotations

import pyarrow as pa

from divray.relations import Span, mask_entities


def compared_texts(table: pa.Table, mask: bool) -> list[str]:
    """The column ``text``, with head and tail replaced by ``HEAD`` and ``TAIL`` where ``mask``.

    Every text that is compared, embedded or scored for diversity goes through here.
    """
    texts: list[str] = table["text"].to_pylist()
    if not mask:
        return texts
    spans = (table[name].to_pylist() for name in ("head_start", "head_end", "tail_start", "tail_end"))
    return [
        mask_entities(text, (head_start, head_end), (tail_start, tail_end))
        for text, head_start, head_end, tail_start, tail_end in zip(texts, *spans, strict=True)
    ]


def connective_patterns(table: pa.Table) -> list[str]:
    """What stands between the entities, lower-cased, with the entities masked: ``HEAD was caused by TAIL``."""
    columns = (table[name].to_pylist() for name in ("text", "head_start", "head_end", "tail_start", "tail_end"))
    return [connective_pattern(text, (a, b), (c, d)) for text, a, b, c, d in zip(*columns, strict=True)]


def connective_pattern(text: str, head: Span, tail: Span) -> str:
    """The pattern of one sentence."""
    (first, one), (second, two) = sorted(((head, "HEAD"), (tail, "TAIL")))
    return " ".join([one, *text[first[1] : second[0]].lower().split(), two])
