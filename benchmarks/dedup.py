"""Near-duplicates against every tool that a user would pick instead: time, memory, recall and precision.

    python benchmarks/dedup.py --peers PEERS/bin/python [--text-dedup …/python] [--data-juicer …/python] [--datatrove …/python]

One core (``taskset``), each side in a process of its own, sides in turn, a new corpus with a new seed for every turn,
medians of the turns.  The peers live in virtual environments of their own (``pip install rensa duckdb datasketch pyarrow``
for ``--peers``; ``pip install text-dedup`` and so on for the others); one that is not given is left out and said so.
Truth: DuckDB's exact join on strings.  Peers are run at their recommended banding and at 32 bands of 4, the one
of 128 permutations with the best recall at the threshold that still tells pairs apart.

Seconds are the process's own from reading the corpus to knowing which rows stay; on a machine where other things run,
``cpu_seconds`` are the ones to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from corpus import make_corpus
from machine import machine

from divray.dedup.decide import components

HERE = Path(__file__).parent
QUICK = ("rensa-deduplicator", "rensa-deduplicator-32")
SLOW = ("duckdb", "datasketch", "datasketch-32")
OTHERS = ("text-dedup", "data-juicer", "datatrove")

VERSIONS = """
import importlib.metadata as m, json
names = "numpy numba pyarrow rensa duckdb datasketch text-dedup py-data-juicer datatrove".split()
print(json.dumps({d.metadata["Name"]: d.version for d in m.distributions() if d.metadata["Name"].lower() in names}))
"""


class Bench:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.corpus = folder / "corpus.parquet"
        self.python = dict.fromkeys(["divray", "divray-pairs"], sys.executable)
        self.python |= {} if not arguments.peers else dict.fromkeys([*QUICK, *SLOW], arguments.peers)
        given = vars(arguments)
        self.python |= {name: given[name.replace("-", "_")] for name in OTHERS if given[name.replace("-", "_")]}

    def run(self, side: str, threshold: float, shingles: str) -> tuple[dict[str, Any] | None, Any]:
        """Figures and answer of one side; ``None`` where it is missing or fails, which is said."""
        if side not in self.python:
            return None, None
        out = self.folder / "answer.npz"
        command = [self.python[side], str(HERE / "dedup_sides.py"), side, str(self.corpus), str(threshold), shingles, str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(
            ["taskset", "-c", str(self.arguments.core), *command], env=environment, capture_output=True, text=True, cwd=self.folder
        )
        if done.returncode:
            print(f"{side}: failed, left out: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            del self.python[side]
            return None, None
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{side:24s} {figures}", flush=True)
        return figures, dict(np.load(out))  # the next side writes to the same file


def row_pairs(answer: Any) -> np.ndarray:
    """Pairs of rows as ``smaller << 32 | larger``, sorted, from pairs of groups of equal rows, or from pairs of rows."""
    left, right = answer["left"].astype(np.int64), answer["right"].astype(np.int64)
    if "group" in answer:
        group = answer["group"]
        size = np.bincount(group)
        members, starts = np.argsort(group, kind="stable"), np.cumsum(size) - size
        twins = np.flatnonzero(size > 1)
        left, right = np.concatenate([left, twins]), np.concatenate([right, twins])
        count = size[left] * size[right]
        at = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        one, two = np.repeat(left, count), np.repeat(right, count)
        left, right = members[starts[one] + at // size[two]], members[starts[two] + at % size[two]]
        left, right = left[left != right], right[left != right]
    return np.unique(np.minimum(left, right) << 32 | np.maximum(left, right))


def agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    both = len(np.intersect1d(found, truth, assume_unique=True))
    return {"recall": round(both / max(len(truth), 1), 6), "precision": round(both / max(len(found), 1), 6), "pairs": len(truth)}


def cluster_agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Recall and precision of "these two rows are in one cluster" over all pairs of rows."""

    def together(labels: np.ndarray) -> float:
        counts = np.unique(labels, return_counts=True)[1].astype(np.float64)
        return float((counts * (counts - 1) / 2).sum())

    both = together(found.astype(np.int64) << 32 | truth.astype(np.int64))
    return {"recall": round(both / max(together(truth), 1), 6), "precision": round(both / max(together(found), 1), 6)}


def flag_agreement(kept: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """Of "this row has a near-duplicate among the earlier rows that stay", as the peers have it."""
    n, left, right = len(kept), pairs >> 32, pairs & 0xFFFFFFFF
    order = np.argsort(right, kind="stable")
    stays = np.ones(n, bool)
    for i, j in zip(left[order].tolist(), right[order].tolist(), strict=True):
        if stays[i]:
            stays[j] = False
    truth, said = ~stays, ~kept
    both = int((truth & said).sum())
    return {"recall": round(both / max(int(truth.sum()), 1), 4), "precision": round(both / max(int(said.sum()), 1), 4)}


def quality(bench: Bench, thresholds: list[float], shingles: str) -> tuple[dict[str, Any], dict[float, np.ndarray]]:
    """The project's pairs and clusters against DuckDB's, on the corpus that lies there."""
    found, truths = {}, {}
    for threshold in thresholds:
        _, truth = bench.run("duckdb", threshold, shingles)
        _, mine = bench.run("divray-pairs", threshold, shingles)
        if truth is None:
            return {}, {}
        pairs = row_pairs(truth)
        truths[threshold] = pairs
        clusters = components(len(mine["group"]), pairs >> 32, pairs & 0xFFFFFFFF)
        found[str(threshold)] = {"pairs": agreement(row_pairs(mine), pairs), "clusters": cluster_agreement(mine["cluster"], clusters)}
        print(threshold, found[str(threshold)], flush=True)
    return found, truths


def measure(bench: Bench, rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, list[dict[str, Any]]] = defaultdict(list)
    result: dict[str, Any] = {"seeds": []}
    for turn in range(arguments.runs):
        seed = arguments.seed + 1000 * turn + rows
        result["seeds"].append(seed)
        pq.write_table(make_corpus(rows, seed), bench.corpus)
        pairs = None
        if turn == 0:
            thresholds = arguments.thresholds if rows <= arguments.truth_rows else []
            result["quality"], truths = quality(bench, thresholds, arguments.shingles)
            pairs = truths.get(arguments.threshold)
        sides = ["divray", *QUICK]
        sides += SLOW[:1] if turn < arguments.slow_runs or rows <= arguments.slow_rows else ()
        sides += [*SLOW[1:], *OTHERS] if turn < arguments.slow_runs and rows <= arguments.slow_rows else ()
        sides = [side for side in sides if side not in arguments.without]
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            one, answer = bench.run(side, arguments.threshold, arguments.shingles)
            if one is None:
                continue
            if pairs is not None and side != "divray" and "kept" in answer:
                one["flags"] = flag_agreement(answer["kept"], pairs)
            figures[side].append(one)
    result["sides"] = {side: summary(runs) for side, runs in figures.items()}
    if "divray" in result["sides"]:
        result["ratios"] = ratios(result["sides"], rows)
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {key: round(statistics.median(run[key] for run in runs), 3) for key in ("seconds", "cpu_seconds", "peak_mib")}
    made["runs"] = [(run["seconds"], run["cpu_seconds"]) for run in runs]
    return made | ({"flags": runs[0]["flags"]} if "flags" in runs[0] else {})


def ratios(sides: dict[str, Any], rows: int) -> dict[str, Any]:
    """Each peer's CPU seconds ÷ the project's, and the project's peak memory ÷ the peer's."""
    base = sides["divray"]
    made: dict[str, Any] = {"sentences_per_cpu_second": round(rows / base["cpu_seconds"])}
    for side, one in sides.items():
        if side != "divray":
            made[side] = {
                "speed": round(one["cpu_seconds"] / base["cpu_seconds"], 2),
                "memory": round(base["peak_mib"] / one["peak_mib"], 2),
            }
    return made


def environment(bench: Bench) -> dict[str, Any]:
    versions: dict[str, str] = {}
    for python in sorted(set(bench.python.values())):
        done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True)
        versions |= {f"{name}{'' if python == sys.executable else ' (peers)'}": at for name, at in json.loads(done.stdout or "{}").items()}
    return {**machine(), "python": platform.python_version(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--slow-runs", type=int, default=1, help="turns in which the slow peers run, too (DuckDB: in all, where these are given the rows)"
    )
    parser.add_argument("--slow-rows", type=int, default=200_000, help="the most rows that the slowest peers are given")
    parser.add_argument("--truth-rows", type=int, default=10**9, help="the most rows at which recall and precision are measured")
    parser.add_argument("--shingles", default="word:3")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.6, 0.7, 0.8], help="where recall and precision are measured")
    parser.add_argument("--without", nargs="*", default=[], metavar="SIDE")
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peers", help="Python with rensa, duckdb and datasketch")
    for name in OTHERS:
        parser.add_argument(f"--{name}", help=f"Python with {name}")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "dedup.json")
    arguments = parser.parse_args()
    arguments.seed = int(time.time()) if arguments.seed is None else arguments.seed
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        for side in (*QUICK, *SLOW, *OTHERS):
            if side not in bench.python:
                print(f"{side}: no Python given for it, left out", flush=True)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        for rows in arguments.rows:
            key = f"{arguments.shingles}, {rows} rows, threshold {arguments.threshold}"
            result[key] = {"environment": environment(bench), "command": command, **measure(bench, rows, arguments)}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(result[key].get("ratios", {}), indent=1), flush=True)


if __name__ == "__main__":
    main()
