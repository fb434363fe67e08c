"""Seconds of the diversity scores on one core, beside the reference packages.

    python benchmarks/scores.py [--rows 100000] [--repeats 5] [--peers SITE_PACKAGES] [--out benchmarks/results/scores.json]

Sentences come from a generator with a new seed each run: templates filled from a Zipf vocabulary, so that words,
phrases and whole frames repeat; embeddings are unit vectors around many centres.  ``--peers`` names the site-packages
folder of an environment that holds ``vendi-score`` and ``fast-bleu``, whose results are compared on the same input.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
from machine import machine

from divray.measures import diversity, max_rouge_l, self_bleu
from divray.measures.overlap import all_grams, words_of


def sentences(rows: int, seed: int) -> list[str]:
    """``rows`` sentences of about 20 words."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"w{number}" for number in range(30_000)])
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    weights /= weights.sum()
    frames = [rng.choice(vocabulary, rng.integers(6, 14), p=weights) for _ in range(2_000)]
    made = []
    words = iter(rng.choice(vocabulary, rows * 24, p=weights))
    for frame, extra in zip(rng.integers(len(frames), size=rows), rng.integers(6, 16, size=rows), strict=True):
        own = [next(words) for _ in range(extra)]
        made.append(" ".join([*own[: extra // 2], "HEAD", *frames[frame], "TAIL", *own[extra // 2 :], "."]))
    return made


def vectors(rows: int, seed: int, dimension: int = 384) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(300, dimension)).astype(np.float32)
    made = centres[rng.integers(300, size=rows)] + rng.standard_normal((rows, dimension), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def seconds(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 3), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="site-packages folder with vendi-score and fast-bleu")
    parser.add_argument("--peer-rows", type=int, default=5_000, help="sentences for fast-bleu")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    seed = secrets.randbits(32)
    texts, embeddings = sentences(arguments.rows, seed), vectors(arguments.rows, seed)
    patterns = [text.partition("HEAD")[2].partition("TAIL")[0] for text in texts]
    max_rouge_l(texts[:10])  # compiled once, kept on disk
    words = words_of(texts)
    grams = all_grams(words, 4)
    drawn = texts[: diversity.SAMPLED_ROWS]
    parts: dict[str, Callable[[], Any]] = {
        "words and n-grams of 1 to 4": lambda: all_grams(words_of(texts), 4),
        "vendi, embedding kernel": lambda: diversity.vendi_score(embeddings),
        "vendi, n-gram kernel (sample)": lambda: diversity.vendi_score(diversity.ngram_vectors(texts[: diversity.SAMPLED_ROWS])),
        "self-BLEU, from text": lambda: self_bleu(texts).mean(),
        "self-BLEU, n-grams known": lambda: self_bleu(words, grams=grams).mean(),
        "rouge-L (sample)": lambda: max_rouge_l(drawn).mean(),
        "mean cosine": lambda: diversity.mean_cosine(embeddings),
        "entropy of patterns": lambda: diversity.entropy(patterns),
        "all of diversity_of": lambda: diversity.diversity_of(texts, embeddings, patterns),
    }
    found: dict[str, Any] = {
        "rows": arguments.rows,
        "seed": seed,
        "repeats": arguments.repeats,
        "cores": 1,
        "machine": {**machine(), "numpy": np.__version__},
    }
    results: dict[str, Any] = {}
    found["seconds"] = {}
    for name, function in parts.items():
        found["seconds"][name], results[name] = seconds(function, arguments.repeats)
        print(f"{found['seconds'][name]:8.3f} s  {name}", flush=True)
    found["scores"] = results["all of diversity_of"]
    if arguments.peers:
        found["peers"] = peers(arguments.peers, texts[: arguments.peer_rows], embeddings, results["vendi, embedding kernel"])
        print(json.dumps(found["peers"], indent=2))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def peers(folder: str, texts: list[str], embeddings: np.ndarray, own_vendi: float) -> dict[str, Any]:
    sys.path.append(folder)
    found: dict[str, Any] = {}
    from vendi_score import vendi

    took, value = seconds(lambda: vendi.score_dual(embeddings), 3)
    found["vendi-score"] = {"version": version("vendi-score"), "seconds": took, "value": float(value), "divray": own_vendi}
    from fast_bleu import SelfBLEU

    split = [text.split() for text in texts]
    weights = {4: (0.25,) * 4}
    took, value = seconds(lambda: SelfBLEU(split, weights).get_score()[4], 1)
    own_took, own = seconds(lambda: self_bleu(texts), 3)
    found["fast-bleu"] = {
        "version": version("fast-bleu"),
        "rows": len(texts),
        "seconds": took,
        "divray_seconds": own_took,
        "largest_difference": float(np.abs(np.array(value) - own).max()),
    }
    return found


if __name__ == "__main__":
    main()
