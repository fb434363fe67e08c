"""Generated tokens a second: Ray Data -> vLLM actors against plain vLLM, on the same requests.

    python benchmarks/sampling.py CONFIG [section.key=value ...] --requests 256 --runs 3 --out benchmarks/results/sampling.json

Both sides get the same request rows, engine arguments, sampling parameters and seeds.  Start-up is left
out of both: on Ray's side by the rows' own times (first request in, last answer out), on the plain
side by timing `generate` alone.  The sides alternate;
each run starts both engines anew.
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
from itertools import islice
from pathlib import Path
from typing import Any

from divray.config import Config, load_config
from divray.pipeline import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.plain:
        print(json.dumps(plain(config, arguments.plain)))
        return

    from divray.sampling.engine import engine_arguments

    with tempfile.TemporaryDirectory() as folder:
        write_requests(config, folder, arguments.requests)
        again = [sys.executable, __file__, arguments.config, *arguments.overrides, "--plain", folder]
        runs: list[dict[str, Any]] = []
        for number in range(arguments.runs):
            through_ray = ray_data(config, folder, number)
            own = subprocess.run(again, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            runs.append({"ray_data": through_ray, "plain": json.loads(own)})
            print(json.dumps(runs[-1]), flush=True)
    ratios = [run["ray_data"]["tokens_per_second"] / run["plain"]["tokens_per_second"] for run in runs]
    result = {
        "benchmark": "sampling",
        "command": " ".join(["python", "benchmarks/sampling.py", *sys.argv[1:]]),
        "machine": {"cpus": os.cpu_count(), "processor": processor(), "load_before": os.getloadavg()[0]},
        "versions": versions(),
        "engine_arguments": engine_arguments(config, gpu=config.engine.device == "gpu"),
        "requests": arguments.requests,
        "runs": runs,
        "median_ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps({key: result[key] for key in ("requests", "ratios", "median_ratio")}, indent=2))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n")


def write_requests(config: Config, folder: str, count: int) -> None:
    from divray.datasets import load_task
    from divray.prompts import request_rows, write_prompts
    from divray.runs import RunFolder

    task = load_task(config)
    rows = request_rows(config, task.relations, task.seeds, 0)
    write_prompts(RunFolder(folder), "prompts", islice(rows, count))


def ray_data(config: Config, folder: str, number: int) -> dict[str, float]:
    import ray

    from divray.cluster import connect
    from divray.runs import RunFolder
    from divray.sampling.engine import complete

    run, target = RunFolder(folder), f"completions-{number}"
    began = time.time()
    connect(config)
    complete(config, run, "prompts", target, config.models.llm)
    table = run.read_table(target, ["generated_tokens", "started_at", "finished_at"])
    ray.shutdown()
    first, last = min(table["started_at"].to_pylist()), max(table["finished_at"].to_pylist())
    tokens = sum(table["generated_tokens"].to_pylist())
    return {"tokens": tokens, "seconds": last - first, "tokens_per_second": tokens / (last - first), "start_up_seconds": first - began}


def plain(config: Config, folder: str) -> dict[str, float]:
    from divray.runs import RunFolder
    from divray.sampling.engine import _cpu_environment, engine_arguments, sampling_parameters

    gpu = config.engine.device == "gpu"
    if not gpu:
        os.environ.update(_cpu_environment())
    began = time.time()
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from divray.models import local_model

    rows = RunFolder(folder).read_table("prompts").to_pylist()
    llm = LLM(local_model(config.models.llm), **engine_arguments(config, gpu))
    parameters = []
    for row in rows:
        values = sampling_parameters(config, row, greedy=False)
        pattern = values.pop("structured_outputs", None)
        parameters.append(SamplingParams(**values, structured_outputs=StructuredOutputsParams(**pattern) if pattern else None))
    started = time.time()
    outputs = llm.generate([row["prompt"] for row in rows], parameters, use_tqdm=False)
    seconds = time.time() - started
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "start_up_seconds": started - began}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
