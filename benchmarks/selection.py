"""Selection of K of many candidates: value of its objective, and seconds, against random choice and top-K by correctness.

    python benchmarks/selection.py [--rows 100000] [--out benchmarks/results/selection.json]

Embeddings are unit vectors around many centres of unequal size, and correctness is higher in some of them, so that the
most correct samples are alike; a new seed each run.  Random is the best of 20 draws.  One core.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from divray.selection import SHARPNESS, greedy_selection

SIZES = (16, 100)
WEIGHTS = (0.3, 0.5, 0.8)


def candidates(rows: int, seed: int, dimension: int = 384) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(400, dimension)).astype(np.float32)
    shares = 1 / np.arange(1, 401)
    centre = rng.choice(400, rows, p=shares / shares.sum())
    vectors = centres[centre] + 0.8 * rng.standard_normal((rows, dimension), dtype=np.float32)
    correctness = np.clip(rng.beta(5, 2, size=rows) + 0.15 * (centre < 20), 0, 1)
    return correctness, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def objective(correctness: np.ndarray, embeddings: np.ndarray, weight: float) -> float:
    """``F`` of a whole set, as ``divray.selection`` defines it; to six decimals."""
    count = len(correctness)
    vectors = embeddings.astype(np.float64)
    _, determinant = np.linalg.slogdet(np.eye(count) + SHARPNESS * vectors @ vectors.T)
    return round(float((1 - weight) * np.mean(correctness) + weight * determinant / (count * np.log1p(SHARPNESS))), 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seed = secrets.randbits(32)
    correctness, vectors = candidates(arguments.rows, seed)
    rng = np.random.default_rng(seed)
    by_correctness = np.argsort(-correctness, kind="stable")
    found: list[dict[str, Any]] = []
    for k in SIZES:
        for weight in WEIGHTS:
            started = time.perf_counter()
            rows = greedy_selection(correctness, vectors, k, weight)
            took = time.perf_counter() - started
            draws = [rng.choice(arguments.rows, k, replace=False) for _ in range(20)]
            entry = {
                "k": k,
                "diversity_weight": weight,
                "seconds": round(took, 3),
                "greedy": objective(correctness[rows], vectors[rows], weight),
                "top_k_by_correctness": objective(correctness[by_correctness[:k]], vectors[by_correctness[:k]], weight),
                "best_of_20_random": max(objective(correctness[draw], vectors[draw], weight) for draw in draws),
            }
            found.append(entry)
            print(json.dumps(entry), flush=True)
    if arguments.out:
        whole = {"rows": arguments.rows, "dimension": 384, "seed": seed, "cores": 1, "results": found}
        arguments.out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
