"""Seconds per DPO step of the align stage, by workers, precision and ZeRO stage.

    python benchmarks/dpo.py [--pairs 16] [--model embedded:smollm2] [--settings workers:precision:zero ...]

Pairs are random words: prompts of about 150 tokens, completions of about 30.  A step is four pairs
in all, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time

import pyarrow as pa

from divray.alignment import run as align
from divray.cluster import connect
from divray.config import parse_config
from divray.run_folder import RunFolder
from divray.schemas import PAIRS

WORDS = ["company", "city", "river", "member", "born", "music", "school", "author", "bridge", "team", "of", "the", "in", "was", "a"]


def make_pairs(count: int) -> pa.Table:
    """Random preference pairs; every one has its own prompt."""
    generator = random.Random(0)

    def words(number: int) -> str:
        return " ".join(generator.choices(WORDS, k=number))

    texts = [
        ("\n".join([*(f"{j}. {words(18)}." for j in range(1, 8)), "8:"]), f" {words(28)}.\n", f" {words(28)}.\n") for _ in range(count)
    ]
    names = dict.fromkeys(("relation", "kind", "chosen_id", "rejected_id"), "")
    rows = [{**names, "pair_id": f"{i:05d}", "prompt": p, "chosen": c, "rejected": r} for i, (p, c, r) in enumerate(texts)]
    return pa.Table.from_pylist(rows, PAIRS)


def measure(model: str, pairs: pa.Table, workers: int, precision: str, zero: int) -> str:
    """One row of the table."""
    config = parse_config(
        {
            "task": {"name": "benchmark", "relations": "none"},
            "models": {"llm": model},
            "alignment": {"precision": precision, "zero_stage": zero, "pairs_per_step": 4},
            "cluster": {"train_workers": workers},
        },
        "benchmark",
    )
    connect(config)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.write_table("round-00/pairs", pairs)
        started = time.perf_counter()
        align(config, run, 1)
        wall = time.perf_counter() - started
        report = run.read_json("round-01/alignment.json")
    step = statistics.median(row["seconds"] for row in report["curve"][1:])
    parts = report["seconds"]
    return (
        f"| {workers} | {report['precision']} | {zero} | {step:.2f} | {parts['startup']:.0f} | {parts['training']:.0f} "
        f"| {parts['merging']:.0f} | {wall:.0f} | {os.getloadavg()[0]:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--settings", nargs="+", default=["1:bf16:2", "1:bf16:0", "1:fp32:2", "2:bf16:2", "2:bf16:0"])
    arguments = parser.parse_args()
    pairs = make_pairs(arguments.pairs)
    print(f"{arguments.model}, LoRA r 16, {arguments.pairs} pairs, 4 pairs a step, {os.cpu_count()} CPUs", flush=True)
    print("| workers | precision | ZeRO | s/step | start-up s | training s | merging s | stage s | load |")
    print("|---" * 9 + "|", flush=True)
    for setting in arguments.settings:
        workers, precision, zero = setting.split(":")
        print(measure(arguments.model, pairs, int(workers), precision, int(zero)), flush=True)


if __name__ == "__main__":
    main()
