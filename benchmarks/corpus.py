"""Short English-like sentences with planted near-duplicates, for benchmarks; other ones for every seed.

Words are made of syllables and drawn by a Zipf-Mandelbrot law; set phrases, drawn by another, make word
n-grams recur as they do in prose.  A sixth of the sentences fill the slots of templates; a quarter are copies
of earlier ones (copies included, so that chains arise) with words replaced, left out, put in or swapped.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

WORDS, PHRASES = 60_000, 40_000
ROWS_PER_TEMPLATE = 60
LONGEST = 60


def make_corpus(rows: int, seed: int) -> pa.Table:
    """``id`` (int64, from 0) and ``text``; median 20 words."""
    random = np.random.default_rng(seed)
    vocabulary = _vocabulary(random)
    chance = _zipf(WORDS, 1.05)
    kind = random.choice(3, rows, p=[0.58, 0.17, 0.25]).astype(np.int8)  # fresh, of a template, a copy
    kind[0] = 0
    lengths = np.clip(np.round(np.exp(random.normal(np.log(20), 0.4, rows))), 3, LONGEST - 8).astype(np.int64)
    drawn = random.choice(WORDS, lengths.sum() + 8 * rows, p=chance).astype(np.int32)
    phrase_lengths = random.integers(2, 6, PHRASES)
    phrases = random.choice(WORDS, (PHRASES, 5), p=chance).astype(np.int32)
    used = random.choice(PHRASES, rows * 3, p=_zipf(PHRASES, 0.9)).astype(np.int32)
    templates = max(1, rows // ROWS_PER_TEMPLATE)
    offsets, words = _write(
        kind, lengths, drawn, phrases, phrase_lengths, used, random.choice(templates, rows, p=_zipf(templates, 0.7)), templates, seed
    )
    tokens = pa.array(vocabulary).take(pa.array(words))
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), tokens), " ")
    texts = pc.binary_join_element_wise(pc.utf8_capitalize(texts), pa.scalar("."), "")
    return pa.table({"id": pa.array(np.arange(rows, dtype=np.int64)), "text": texts})


def _zipf(n: int, exponent: float) -> np.ndarray:
    weights = 1.0 / (np.arange(n) + 2.7) ** exponent
    return weights / weights.sum()


def _vocabulary(random: np.random.Generator) -> list[str]:
    """Distinct words, the frequent ones short; every eighth comes with a comma."""
    onsets, vowels = [*"bcdfghlmnprstvw", "st", "tr", "sh", "th"], [*"aaeeiioou", "ea", "ou"]
    codas = [*[""] * 9, *"nrstlmd", "ng"]
    seen: dict[str, None] = {}
    while len(seen) < WORDS:
        syllables = 1 + int(random.random() < len(seen) / 400) + int(random.random() < len(seen) / 10_000) + int(random.random() < 0.1)
        word = "".join(random.choice(onsets) + random.choice(vowels) + random.choice(codas) for _ in range(syllables))
        seen.setdefault(word + "," if len(seen) % 8 == 7 else word)
    return list(seen)


@njit(cache=True)
def _write(kind, lengths, drawn, phrases, phrase_lengths, used, template_of, templates, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed % (1 << 31))
    rows, vocabulary = len(kind), 60_000
    offsets, words = np.zeros(rows + 1, np.int32), np.empty(rows * (LONGEST // 2) + LONGEST, np.int32)
    bodies, body_lengths = np.empty((templates, LONGEST), np.int32), np.zeros(templates, np.int64)
    source, end, row = 0, 0, np.empty(2 * LONGEST, np.int32)
    for i in range(rows):
        if end + 2 * LONGEST > len(words):
            larger = np.empty(2 * len(words), np.int32)
            larger[:end] = words[:end]
            words = larger
        size, template = 0, template_of[i]
        if kind[i] == 2:  # a copy of something near or far back, edited
            back = np.random.randint(0, min(i, 5000)) + 1 if np.random.random() < 0.5 else np.random.randint(0, i) + 1
            start = offsets[i - back]
            size = offsets[i - back + 1] - start
            row[:size] = words[start : start + size]
            edits = 0
            while edits < 6 and np.random.random() < 0.55:
                edits += 1
            for _ in range(edits):
                at, choice = np.random.randint(0, size), np.random.random()
                if choice < 0.6 or size < 4:
                    row[at] = drawn[source]
                elif choice < 0.75:
                    row[at : size - 1] = row[at + 1 : size].copy()
                    size -= 1
                elif choice < 0.9 and size < LONGEST - 1:
                    row[at + 1 : size + 1] = row[at:size].copy()
                    row[at] = drawn[source]
                    size += 1
                elif at + 1 < size:
                    row[at], row[at + 1] = row[at + 1], row[at]
                source += 1
        elif kind[i] == 1 and body_lengths[template] > 0:
            size = body_lengths[template]
            row[:size] = bodies[template, :size]
            for j in range(size):
                if row[j] < 0:
                    row[j] = np.random.randint(0, vocabulary) if np.random.random() < 0.5 else drawn[source]
                    source += 1
        else:
            size = lengths[i]
            row[:size] = drawn[source : source + size]
            source += size
            for p in range(np.random.randint(0, 4)):
                phrase = used[3 * i + min(p, 2)]
                at = np.random.randint(0, size)
                for j in range(min(phrase_lengths[phrase], size - at)):
                    row[at + j] = phrases[phrase, j]
            if kind[i] == 1:  # the first sentence of a template makes it: one to three of its words become slots
                bodies[template, :size] = row[:size]
                for _ in range(np.random.randint(1, 4)):
                    bodies[template, np.random.randint(0, size)] = -1
                body_lengths[template] = size
        words[end : end + size] = row[:size]
        end += size
        offsets[i + 1] = end
    return offsets, words[:end]
