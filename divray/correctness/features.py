"""What of a sentence the judge sees: embeddings of the words between the entities, and of the entities.

On SemEval-2010 Task 8 with 8 seeds a relation these four views beat the embedding of the whole masked
sentence by far (``benchmarks/results/correctness.json``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from divray.correctness.classifier import FEATURE_GRID, on_grid

VIEWS = ("connective", "between", "head", "tail")
"""The texts of a sentence that are embedded; see :func:`feature_texts`."""

Encode = Callable[[list[str]], np.ndarray]


def feature_texts(rows: pa.Table, reverse: bool = False) -> list[tuple[str, str, str, str]]:
    """The texts to embed of each row, in the order of :data:`VIEWS`.

    The text between the entities with ``HEAD`` and ``TAIL`` around it in their order, the same text
    bare, the head, the tail.  ``reverse`` exchanges head and tail.

    Args:
        rows: Any table with the columns ``text``, ``head_start``, ``head_end``, ``tail_start``, ``tail_end``.
        reverse: Whether to read the rows in the wrong direction.
    """
    columns = [rows[name].to_pylist() for name in ("text", "head_start", "head_end", "tail_start", "tail_end")]
    result = []
    for text, head_start, head_end, tail_start, tail_end in zip(*columns, strict=True):
        head, tail = (head_start, head_end), (tail_start, tail_end)
        if reverse:
            head, tail = tail, head
        (first, opening), (second, closing) = sorted(((head, "HEAD"), (tail, "TAIL")))
        between = text[first[1] : second[0]]
        result.append((f"{opening}{between}{closing}", between.strip() or ",", text[slice(*head)], text[slice(*tail)]))
    return result


def sentence_features(rows: pa.Table, encode: Encode, reverse: bool = False) -> np.ndarray:
    """Features of each row: float32 ``[n, 4 * d]``, the unit embeddings of its four views side by side.

    Args:
        rows: As for :func:`feature_texts`.
        encode: Texts to float32 ``[n, d]`` of unit length; each distinct text is given once.
        reverse: Whether to read the rows in the wrong direction.
    """
    texts = feature_texts(rows, reverse)
    distinct = sorted({text for views in texts for text in views})
    if not distinct:
        return np.zeros((0, 0), np.float32)
    place = {text: number for number, text in enumerate(distinct)}
    embeddings = on_grid(encode(distinct), FEATURE_GRID).astype(np.float32)
    return embeddings[[[place[text] for text in views] for views in texts]].reshape(len(texts), -1)
