"""Three ways of the same requests through the same engine: Ray Data, plain vLLM, a peer over HTTP.

Each returns ``tokens``, ``seconds`` from the first request to the last answer, and ``tokens_per_second``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import psutil

from divray.config import Config


def write_requests(config: Config, folder: str, count: int) -> None:
    from divray.datasets import load_task
    from divray.prompts import request_rows, write_prompts
    from divray.run_folder import RunFolder

    task = load_task(config)
    rows = request_rows(config, task.relations, task.seeds, 0)
    write_prompts(RunFolder(folder), "prompts", islice(rows, count))


def ray_data(config: Config, folder: str, source: str, target: str) -> dict[str, float]:
    import ray

    from divray.cluster import connect
    from divray.engines.complete import complete
    from divray.run_folder import RunFolder

    run = RunFolder(folder)
    began = time.time()
    connect(config)
    complete(config, run, source, target, config.models.llm)
    table = run.read_table(target, ["prompt_tokens", "cached_tokens", "generated_tokens", "started_at", "finished_at"])
    ray.shutdown()
    first, last = min(table["started_at"].to_pylist()), max(table["finished_at"].to_pylist())
    tokens, prompt, cached = (sum(table[f"{kind}_tokens"].to_pylist()) for kind in ("generated", "prompt", "cached"))
    return {
        "tokens": tokens,
        "seconds": last - first,
        "tokens_per_second": tokens / (last - first),
        "prefix_hit_rate": cached / prompt,
        "start_up_seconds": first - began,
    }


def plain(config: Config, folder: str) -> dict[str, float]:
    """The same requests all at once to one engine in this process, without Ray."""
    import asyncio
    from functools import partial

    from divray.cluster import WORKER_ENVIRONMENT
    from divray.engines.complete import requests_of
    from divray.engines.vllm import VllmEngine, cpu_environment, engine_arguments, engine_threads
    from divray.run_folder import RunFolder

    gpu = config.engine.device == "gpu"
    os.environ.update(WORKER_ENVIRONMENT | ({} if gpu else cpu_environment()))
    requests = requests_of(config, RunFolder(folder).read_table("prompts").to_pylist(), "", greedy=False)

    async def run() -> dict[str, float]:
        began = time.time()
        engine = VllmEngine(config.models.llm, engine_arguments(config, gpu), None if gpu else partial(engine_threads, config))
        started = time.time()
        answers = await asyncio.gather(*map(engine.complete, requests))
        seconds = time.time() - started
        engine.close()
        tokens = sum(row["generated_tokens"] for answer in answers for row in answer)
        return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "start_up_seconds": started - began}

    return asyncio.run(run())


def over_http(config: Config, folder: str, peer: str) -> dict[str, float]:
    """The same requests to a `vllm serve` with the same engine arguments, as many in flight as the pass through Ray has."""
    import socket
    import urllib.request

    from divray.engines.vllm import cpu_environment, engine_arguments, engine_threads, sampling_parameters
    from divray.models import local_model
    from divray.run_folder import RunFolder

    gpu = config.engine.device == "gpu"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--host=127.0.0.1", f"--port={port}", "--served-model-name=policy"]
    for name, value in engine_arguments(config, gpu).items():
        flag = name.replace("_", "-")
        if name == "trust_remote_code":
            continue
        options.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}")
    payloads = Path(folder, "payloads.jsonl")
    with payloads.open("w") as lines:
        for row in RunFolder(folder).read_table("prompts").to_pylist():
            lines.write(json.dumps({"prompt": row["prompt"], **sampling_parameters(config, row, greedy=False)}) + "\n")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={local_model(config.models.llm)}", *options]
    environment = {**os.environ, **({} if gpu else {**cpu_environment(), "OMP_NUM_THREADS": str(engine_threads(config))})}
    in_flight = 2 * config.engine.vllm.get("max_num_seqs", 128)  # of the pass through Ray
    with Path(folder, "serve.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                except OSError:
                    if server.poll() is not None:
                        raise RuntimeError(Path(folder, "serve.log").read_text()[-2000:]) from None
                    time.sleep(0.5)
            drive = [peer, str(Path(__file__).with_name("http_peer.py")), str(payloads), f"http://127.0.0.1:{port}", str(in_flight)]
            done = subprocess.run(drive, capture_output=True, text=True, check=True)
        finally:
            if server.poll() is None:
                for child in [*psutil.Process(server.pid).children(recursive=True), server]:
                    child.kill()
            server.wait()
    return dict(json.loads(done.stdout.splitlines()[-1]))
