"""The sampling path's figures, one after the other in one run: what Ray Data costs, what the prompts save.

    python benchmarks/sampling.py CONFIG [section.key=value ...] --figures plain,naive,plumbing \\
        --requests 256 --runs 5 --rows 1000000 --out benchmarks/results/sampling.json

plain     generated tokens a second, Ray Data -> vLLM actors over a plain `AsyncLLM`: the same requests, engine
          arguments, sampling parameters and seeds, alternating, each run with engines of its own.  Start-up
          is left out of both: on Ray's side by the rows' own times (first request in, last answer out), on the
          plain side by timing the requests alone.
naive     accepted samples (valid, unique, correct by the loop's own score) an engine-second over the naive
          prompt's: fixed demonstrations, free decoding, parse and drop; drawn by divray's sampler and by vLLM's own.
plumbing  rows a second through the whole path with a function in the engine's place that answers at once; the
          driver's memory meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from machine import machine
from sampling_sides import plain, ray_data, write_requests

from divray.config import Config, load_config
from divray.engines import pool, vllm
from divray.pipeline import versions

FIGURES = ("plain", "naive", "plumbing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--figures", default="plain")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the plumbing")
    parser.add_argument("--threads", type=int, help="of each engine on a CPU, on both sides; default: as divray chooses")
    parser.add_argument("--store", metavar="URI", help="an empty folder for the plumbing, such as s3://bucket/folder; default: on the disk")
    parser.add_argument("--out")
    parser.add_argument("--plain-step", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if (threads := arguments.threads) is not None:
        for module in (pool, vllm):  # where divray's engines and the plain one look it up
            setattr(module, "engine_threads", lambda engines: threads)  # noqa: B010
    if arguments.plain_step:
        print(json.dumps(plain(config, arguments.plain_step)))
        return
    figures = arguments.figures.split(",")
    if unknown := set(figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")

    own = {} if config.engine.device == "gpu" else vllm.cpu_environment()  # the C library reads it as the process starts

    def without_ray(folder: str) -> dict[str, Any]:
        command = [sys.executable, __file__, arguments.config, *arguments.overrides, "--plain-step", folder]
        command += [] if threads is None else ["--threads", str(threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **own})
        return dict(json.loads(done.stdout.splitlines()[-1]))

    result: dict[str, Any] = {
        "benchmark": "sampling",
        "command": " ".join(["python", "benchmarks/sampling.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "engine_arguments": vllm.engine_arguments(config, gpu=config.engine.device == "gpu"),
        "requests": arguments.requests,
        "threads": threads,
    }
    for figure in figures:
        with tempfile.TemporaryDirectory() as folder:
            if figure == "plain":
                found = against_plain(config, folder, arguments.requests, arguments.runs, without_ray)
            elif figure == "naive":
                found = against_naive(config, folder, arguments.runs, warm="plain" in result)
            else:
                found = plumbing(config, arguments.store or folder, arguments.rows)
        result[figure] = found
        print(json.dumps({figure: found}, indent=2), flush=True)
        if arguments.out:
            Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n")


def against_plain(config: Config, folder: str, requests: int, count: int, without_ray: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The pass through Ray and the same requests without it, in turn; the ratios of their tokens a second."""
    write_requests(config, folder, requests)
    runs: list[dict[str, Any]] = []
    for number in range(count):
        runs.append({"ray_data": ray_data(config, folder, "prompts", f"completions-{number}"), "plain": without_ray(folder)})
        print(json.dumps(runs[-1]), flush=True)
    ratios = [run["ray_data"]["tokens_per_second"] / run["plain"]["tokens_per_second"] for run in runs]
    return {"median_ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios], "runs": runs}


def against_naive(config: Config, folder: str, count: int, warm: bool) -> dict[str, Any]:
    """Round 0 of the loop beside the naive prompt, each with ``candidates_per_relation`` candidates and engines of its own, in turn.

    Both are sampled by vLLM with the same parameters and judged by the same judge: the prompts alone differ.
    """
    candidates = config.sampling.candidates_per_relation
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"naive_candidates_per_relation": candidates})})
    few = config.model_copy(update={"sampling": config.sampling.model_copy(update={"naive_candidates_per_relation": 4})})
    if not warm:
        round_zero(few, f"{folder}/warm-up", True)  # vLLM compiles its sampler once a machine
    turns: list[dict[str, Any]] = []
    for turn in range(count):
        views = {name: round_zero(config, f"{folder}/{name}-{turn}", name == "naive") for name in ("loop", "naive")}
        turns.append(views)
        print(json.dumps(views), flush=True)
    both = [[turn[name]["accepted_per_engine_second"] for name in ("loop", "naive")] for turn in turns]
    ratios = [loop / naive for loop, naive in both if naive]
    return {"median_ratio": round(statistics.median(ratios), 2) if ratios else None, "ratios": ratios, "turns": turns}


def round_zero(config: Config, folder: str, naive: bool) -> dict[str, Any]:
    """The loop's own or the naive candidates of round 0, sampled and scored by the loop's stages; their account."""
    import ray

    from divray.cluster import connect
    from divray.datasets.stage import load_task
    from divray.datasets.stage import run as prepare
    from divray.prompts import request_rows, write_prompts
    from divray.report.account import account
    from divray.run_folder import RunFolder
    from divray.sampling import run as sample
    from divray.schemas import NAIVE
    from divray.scoring.stage import run as score

    task, run = load_task(config), RunFolder(folder)
    connect(config)
    prepare(config, run)
    rows = (row for row in request_rows(config, task.relations, task.seeds, 0) if (row["strategy"] == NAIVE) == naive)
    write_prompts(run, "round-00/prompts", rows)
    sample(config, run, 0)
    score(config, run, 0)
    ray.shutdown()
    book = account(config, run)
    view = book.view(book.cells)
    return {"accepted_per_engine_second": view["correct"] / view["engine_seconds"], **view}


def plumbing(config: Config, folder: str, count: int) -> dict[str, Any]:
    import ray

    from divray.cluster import connect
    from divray.datasets.stage import load_task
    from divray.engines.complete import complete
    from divray.prompts import request_rows, write_prompts
    from divray.run_folder import RunFolder

    task, run = load_task(config), RunFolder(folder)
    some, began = list(request_rows(config, task.relations, task.seeds, 0)), time.time()
    write_prompts(run, "prompts", ({**some[n % len(some)], "candidate_id": f"p-{n:09d}"} for n in range(count)))
    written = time.time() - began
    connect(config)
    with Memory() as memory:
        began = time.time()
        complete(config, run, "prompts", "completions", "", answer=lambda row: {"completion": " A [b] c {d}."})
        seconds = time.time() - began
    (record,) = (run.read_json(name) for name in run.files("completions.engines"))
    ready = min(engine["ready_at"] for engine in record["engines"].values())
    ray.shutdown()
    return {
        "rows": count,
        "prompts_seconds": round(written, 2),
        "files": len(run.files("")),
        "rows_per_second": round(count / (began + seconds - ready), 1),
        "seconds": round(seconds, 2),
        "driver_mib": {
            "before": mib(memory.driver[0]),
            "half-way": mib(memory.driver[len(memory.driver) // 2]),
            "peak": mib(max(memory.driver)),
        },
    }


class Memory:
    """The driver's own memory (bytes; without the object store's pages) each second while the block runs."""

    def __enter__(self) -> Memory:
        self.driver = [own_memory()]
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.done.wait(1.0):
            self.driver.append(own_memory())


def own_memory() -> int:
    info = psutil.Process().memory_info()
    return int(info.rss - info.shared)


def mib(size: int) -> int:
    return round(size / 2**20)


if __name__ == "__main__":
    main()
