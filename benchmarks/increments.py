"""A new batch beside what earlier batches kept: by an index on disk, and by reading the kept rows again.

    python benchmarks/increments.py [--rows 1000000] [--batches 1000 10000 100000] [--out benchmarks/results/increments.json]

``--rows`` texts are deduplicated and indexed, then batches of the same corpus follow, each added to the index.  Each call
is a process of its own on one core (``taskset``), from Parquet files to Parquet files, without its imports; both ways must
give the same files.  A new seed each run.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from corpus import make_corpus
from machine import machine

from divray.dedup.files import deduplicate_files
from divray.dedup.tables import DedupSettings

SETTINGS = DedupSettings(id_column="id")


def call(source: str, out: str, way: str, there: str) -> None:
    """One call, once everything is compiled and in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = pq.read_table(source)
        for turn in range(2):
            few = f"{scratch}/{turn}.parquet"
            pq.write_table(texts.slice(100 * turn, 100), few)
            given = f"{scratch}/index" if way == "index" else f"{scratch}/0.parquet"
            deduplicate_files(few, f"{scratch}/out-{turn}", SETTINGS, **{way: given})
    began, cpu = time.perf_counter(), time.process_time()
    counts = deduplicate_files(source, out, SETTINGS, **{way: there})
    spent = {"seconds": round(time.perf_counter() - began, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    # Not getrusage's: that begins with what the parent held when it forked.
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({**counts, **spent, "peak_mib": round(peak)}))


def measured(*arguments: str) -> dict[str, Any]:
    command = ["taskset", "-c", "0", sys.executable, __file__, "--call", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "NUMBA_NUM_THREADS": "1"})
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--call", nargs=4, metavar=("SOURCE", "OUT", "WAY", "THERE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        call(*arguments.call)
        return
    seed = secrets.randbits(32)
    made: dict[str, Any] = {"benchmark": "increments", "machine": machine(), "seed": seed, "rows": arguments.rows, "batches": []}
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(arguments.rows + sum(arguments.batches), seed)
        index, kept = Path(folder, "index"), Path(folder, "kept")
        kept.mkdir()
        start = 0
        for number, rows in enumerate([arguments.rows, *arguments.batches]):
            source, outs = f"{folder}/{number}.parquet", {way: f"{folder}/{number}-{way}" for way in ("index", "earlier")}
            pq.write_table(corpus.slice(start, rows), source)
            start += rows
            entry: dict[str, Any] = {"rows": rows}
            if number:
                entry["earlier"] = measured(source, outs["earlier"], "earlier", str(kept))
            entry["index"] = measured(source, outs["index"], "index", str(index))
            entry["index_mib"] = round(sum(part.stat().st_size for part in index.iterdir()) / 2**20)
            if number:
                entry["ratio"] = round(entry["earlier"]["seconds"] / entry["index"]["seconds"], 2)
                for name in ("kept.parquet", "clusters.parquet"):
                    if not pq.read_table(f"{outs['index']}/{name}").equals(pq.read_table(f"{outs['earlier']}/{name}")):
                        raise SystemExit(f"{name} of {rows} rows differs between the two ways")
            Path(outs["index"], "kept.parquet").rename(kept / f"{number:03d}.parquet")
            entry["kept_mib"] = round(sum(part.stat().st_size for part in kept.iterdir()) / 2**20)
            made["batches"].append(entry)
            print(json.dumps(entry), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
