"""What a cosine threshold catches among real sentences, entities masked: the calibration of semantic duplicates.

    python benchmarks/semantic.py DATA/semeval2010_task8/TRAIN_FILE.TXT [--rows 1500] [--figure docs/semantic_threshold.png]

Share of pairs at or above each threshold, for pairs that should be caught (a sentence and its own slight edit, of four
kinds) and pairs that should not (two different sentences, of one label or of two); and how many sentences of the
corpus have another one above it, and how many of those word 3-grams (Jaccard 0.7) find too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from divray.dedup.shingle import fold, shingle
from divray.dedup.verify import near_duplicates
from divray.embeddings import Encoder
from divray.measures import semantic_pairs

THRESHOLDS = [round(0.5 + 0.02 * step, 2) for step in range(26)]


def masked_sentences(path: Path, rows: int) -> tuple[list[str], list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    found, labels = [], []
    for line, label in itertools.pairwise(lines):
        if match := re.fullmatch(r'\d+\t"?(.*?)"?\s*', line):
            text = re.sub(r"<e1>.*?</e1>", "HEAD", match[1])
            found.append(re.sub(r"<e2>.*?</e2>", "TAIL", text))
            labels.append(label.strip())
    step = max(1, len(found) // rows)
    return found[::step][:rows], labels[::step][:rows]


def edits(text: str, words: list[str], rng: random.Random) -> dict[str, str]:
    """Four slight edits of a masked sentence."""
    split = text.split()
    free = [place for place, word in enumerate(split) if "HEAD" not in word and "TAIL" not in word] or [0]
    one, two = rng.choice(free), rng.choice(free)
    changed = [*split[:one], rng.choice(words), *split[one + 1 :]]
    middle = len(split) // 2
    return {
        "a word replaced": " ".join(changed),
        "a word left out": " ".join(split[:two] + split[two + 1 :]),
        "halves exchanged": " ".join(split[middle:] + split[:middle]),
        "a phrase put before": f"As far as we know, {text}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(0)
    texts, labels = masked_sentences(arguments.sentences, arguments.rows)
    words = sorted({word for text in texts for word in text.split() if word.isalpha() and word.islower()})
    edited = [edits(text, words, rng) for text in texts]
    encoder = Encoder("embedded:minilm", device="cpu")
    vectors = encoder.encode(texts)
    of_edits = {kind: encoder.encode([edit[kind] for edit in edited]) for kind in edited[0]}
    n = len(texts)
    left, right = np.triu_indices(n, 1)
    cosines = (vectors @ vectors.T)[left, right]
    same = (np.array(labels)[:, None] == np.array(labels))[left, right]
    populations = {
        **{kind: (vectors * others).sum(axis=1) for kind, others in of_edits.items()},
        "two sentences of one label": cosines[same],
        "two sentences of two labels": cosines[~same],
    }
    shares = {kind: [float((values >= t).mean()) for t in THRESHOLDS] for kind, values in populations.items()}
    sets, first, group = fold(shingle(texts))
    lexical = near_duplicates(sets, 0.7)
    by_words = {tuple(sorted((int(first[a]), int(first[b])))) for a, b in zip(lexical.left, lexical.right, strict=True)}
    by_words |= {(int(first[g]), row) for row, g in enumerate(group) if first[g] != row}
    rows_above, found_by_words = [], []
    for threshold in THRESHOLDS:
        pairs = semantic_pairs(vectors, threshold)
        both = {(int(a), int(b)) for a, b in zip(pairs.left, pairs.right, strict=True)}
        rows_above.append(len(set(pairs.left.tolist()) | set(pairs.right.tolist())) / n)
        found_by_words.append(len(both & by_words) / len(both) if both else None)
    found = {
        "sentences": n,
        "thresholds": THRESHOLDS,
        "share_caught": {kind: [round(value, 6) for value in values] for kind, values in shares.items()},
        "share_of_sentences_with_a_pair": [round(value, 4) for value in rows_above],
        "share_of_pairs_that_word_3_grams_find": [None if value is None else round(value, 4) for value in found_by_words],
    }
    for t in (0.7, 0.8, 0.9, 0.95):
        at = THRESHOLDS.index(t) if t in THRESHOLDS else THRESHOLDS.index(round(t + 0.01, 2))
        print(THRESHOLDS[at], {kind: round(values[at], 4) for kind, values in shares.items()}, round(rows_above[at], 3))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.figure:
        draw(shares, arguments.figure)


def draw(shares: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for kind, values in shares.items():
        axes.plot(THRESHOLDS, [max(value, 1e-6) for value in values], "--" if kind.startswith("two") else "-", label=kind)
    axes.set(xlabel="cosine threshold (all-MiniLM-L6-v2, entities masked)", ylabel="share of pairs at or above it", yscale="log")
    axes.set_ylim(1e-6, 1.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
