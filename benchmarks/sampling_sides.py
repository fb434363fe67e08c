"""Two ways of the same requests through the same engine: Ray Data and plain vLLM.

Each returns ``tokens``, ``seconds`` from the first request to the last answer, and ``tokens_per_second``.
"""

from __future__ import annotations

import os
import time
from itertools import islice

from divray.config import Config


def write_requests(config: Config, folder: str, count: int) -> None:
    from divray.datasets.stage import load_task
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
        threads = None if gpu else partial(engine_threads, config.engine.pool[1])
        engine = VllmEngine(config.models.llm, engine_arguments(config, gpu), threads)
        started = time.time()
        answers = await asyncio.gather(*map(engine.complete, requests))
        seconds = time.time() - started
        engine.close()
        tokens = sum(row["generated_tokens"] for answer in answers for row in answer)
        return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "start_up_seconds": started - began}

    return asyncio.run(run())
