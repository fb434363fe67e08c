"""What of a sentence the judge sees: the words between the entities, and the entities.

Mean-pooled embeddings say what the words mean and little of who does what to whom; the n-grams of the
words between, marked by which entity stands first, say that.  ``benchmarks/results/correctness.json``
compares these views with the embedding of the whole sentence.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from divray.scoring.classifier import FEATURE_GRID, on_grid

VIEWS = ("connective", "between", "head", "tail")
"""The texts of a sentence that are embedded; see :func:`feature_texts`."""

LEXICAL_SIZE = 1024
"""Buckets of the hashed n-grams."""

LEXICAL_NORM = 0.75
"""Length of the n-gram vector, where each embedding has length 1."""

MOST_WORDS, MOST_AROUND = 12, 2
"""Words between the entities, and on either side of them, that give n-grams."""

_TOKEN = re.compile(r"\w+|[^\w\s]")

Encode = Callable[[list[str]], np.ndarray]


def feature_texts(rows: pa.Table, reverse: bool = False) -> list[tuple[str, str, str, str]]:
    """The texts to embed of each row, in the order of :data:`VIEWS`.

    The text between the entities with ``HEAD`` and ``TAIL`` around it in their order, the same text
    bare, the head, the tail.

    Args:
        rows: Any table with the columns ``text``, ``head_start``, ``head_end``, ``tail_start``, ``tail_end``.
        reverse: Exchange head and tail.
    """
    result = []
    for text, head, tail in _sentences(rows, reverse):
        (first, opening), (second, closing) = sorted(((head, "HEAD"), (tail, "TAIL")))
        between = text[first[1] : second[0]]
        result.append((f"{opening}{between}{closing}", between.strip() or ",", text[slice(*head)], text[slice(*tail)]))
    return result


def lexical_features(rows: pa.Table, reverse: bool = False) -> np.ndarray:
    """Hashed n-grams (n = 1 to 3) of the words between the entities: float32 ``[n, LEXICAL_SIZE]``.

    Every n-gram carries the order of head and tail; so do the words just before and after the two.
    Square roots of signed counts (feature hashing, Weinberger et al. 2009), scaled to :data:`LEXICAL_NORM`.
    """
    sentences = _sentences(rows, reverse)
    counts = np.zeros((len(sentences), LEXICAL_SIZE))
    for row, (text, head, tail) in enumerate(sentences):
        first, second = sorted((head, tail))
        order = "ht" if first == head else "th"
        words = ["^", *_TOKEN.findall(text[first[1] : second[0]].lower())[:MOST_WORDS], "$"]
        grams = [f"{order}:{' '.join(words[i : i + n])}" for n in (1, 2, 3) for i in range(len(words) - n + 1)]
        grams += [f"{order}<{word}" for word in _TOKEN.findall(text[: first[0]].lower())[-MOST_AROUND:]]
        grams += [f"{order}>{word}" for word in _TOKEN.findall(text[second[1] :].lower())[:MOST_AROUND]]
        for gram in grams:
            code = zlib.crc32(gram.encode())
            counts[row, code % LEXICAL_SIZE] += 1 if code & 0x8000_0000 else -1
    values = np.sign(counts) * np.sqrt(np.abs(counts))
    length = np.maximum(np.sqrt(np.square(values).sum(axis=1, keepdims=True)), 1e-12)
    return on_grid(LEXICAL_NORM * values / length, FEATURE_GRID).astype(np.float32)


def sentence_features(rows: pa.Table, encode: Encode, reverse: bool = False) -> np.ndarray:
    """Features of each row: the unit embeddings of its four views and its n-grams, float32 ``[n, 4 d + LEXICAL_SIZE]``.

    Args:
        rows: As for :func:`feature_texts`.
        encode: Texts to float32 ``[n, d]`` of unit length; gets each distinct text once, sorted.
        reverse: Exchange head and tail.
    """
    texts = feature_texts(rows, reverse)
    distinct = sorted({text for views in texts for text in views})
    place = {text: number for number, text in enumerate(distinct)}
    embeddings = on_grid(encode(distinct), FEATURE_GRID).astype(np.float32) if distinct else np.zeros((0, 0), np.float32)
    rows_of = np.array([[place[text] for text in views] for views in texts], dtype=np.int64).reshape(len(texts), len(VIEWS))
    embedded = embeddings[rows_of].reshape(len(texts), len(VIEWS) * embeddings.shape[1])
    return np.concatenate([embedded, lexical_features(rows, reverse)], axis=1)


def _sentences(rows: pa.Table, reverse: bool) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    columns = [rows[name].to_pylist() for name in ("text", "head_start", "head_end", "tail_start", "tail_end")]
    spans = ((text, (hs, he), (ts, te)) for text, hs, he, ts, te in zip(*columns, strict=True))
    return [(text, tail, head) if reverse else (text, head, tail) for text, head, tail in spans]
