"""What vLLM is told: engine arguments for the device, sampling parameters of a request, an engine's environment on a CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from divray.config import Config
from divray.model_checks import context_length
from divray.precision import cpu_precision
from divray.prompts.pairs import LINES, TOKENS_A_LINE
from divray.prompts.pairs import STRATEGY as PAIRS
from divray.schemas import TUNED

CPU_ENGINE_ARGUMENTS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    # A seeded request whose prefill is split kills vLLM's CPU engine (0.29 to 0.32).
    "enable_chunked_prefill": False,
    # vLLM's own 128 leaves most of a short prompt out of the prefix cache, which holds whole blocks; the kernels want 32.
    "block_size": 32,
}
GPU_ENGINE_ARGUMENTS: dict[str, Any] = {"max_model_len": 4096}
COMMON_ENGINE_ARGUMENTS: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True, "trust_remote_code": False}

MOST_DOUBLED = 2 << 30
"""Bytes of weights that may take twice the memory."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``max_lora_rank``."""


def engine_arguments(config: Config, gpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments: the defaults for the device, the user's own over them."""
    device = dict(GPU_ENGINE_ARGUMENTS if gpu else CPU_ENGINE_ARGUMENTS)
    device["max_model_len"] = context_length(config.models.llm, device["max_model_len"])
    dtype = {} if gpu or "dtype" in config.engine.vllm else {"dtype": cpu_dtype(config.models.llm)}
    return {**COMMON_ENGINE_ARGUMENTS, **device, **dtype, "seed": config.seed, **config.engine.vllm}


def cpu_dtype(reference: str) -> str:
    """bfloat16, or float32 for a model of at most :data:`MOST_DOUBLED` bytes where this CPU multiplies that faster."""
    size = sum(file.stat().st_size for file in Path(reference).expanduser().glob("*.safetensors"))
    small = reference.startswith("embedded:") or 0 < size <= MOST_DOUBLED
    return "float32" if small and cpu_precision() == "fp32" else "bfloat16"


def sampling_parameters(config: Config, row: dict[str, Any], greedy: bool) -> dict[str, Any]:
    """vLLM's sampling parameters of one request row."""
    sampling = config.sampling
    sentences = row.get("sentences") or 1
    parameters: dict[str, Any] = {"max_tokens": sampling.max_tokens * sentences, "seed": row["seed"]}
    if row["strategy"] == PAIRS:
        parameters["max_tokens"] = LINES * TOKENS_A_LINE
    if config.prompts.style == "completion" and not row["pattern"] and sentences == 1:
        # A chat's answer and a list of records end by themselves; a list of pairs and a record of three lines with an empty one.
        parameters["stop"] = ["\n"] if row["head"] else ["\n\n"]
    if greedy:
        parameters["temperature"] = 0.0
    else:
        factor = sampling.tuned_temperature_factor if row.get("policy") == TUNED else 1.0
        others = {name: getattr(sampling, name) for name in ("min_p", "top_p", "top_k", "repetition_penalty")}
        parameters |= {"temperature": sampling.temperature * factor, **others}
    if row["pattern"]:
        parameters["structured_outputs"] = {"json" if row["pattern"].startswith("{") else "regex": row["pattern"]}
    return parameters


def cpu_environment() -> dict[str, str]:
    # Without V1 multiprocessing the model runs in the engine's own process; otherwise a second process
    # waits for it in a busy loop.  Bound to cores, the model would share its own with the engine's other threads, and
    # the engines of a machine would all be bound to the same ones.  glibc gives the memory of a step's tensors back after
    # each and faults it in again for the next, above all in the arena of a thread that is not the first.
    defaults = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


LEAST_CORES_TO_LEAVE_ONE = 4
"""Ray wakes often and works little: on two cores, two threads that it disturbs generate 1.4 times what one left alone does."""


def engine_threads(config: Config) -> int:
    """CPU threads of an engine on this node: one core of many is left to Ray and vLLM's scheduler, the others are shared by the engines."""
    cores = len(os.sched_getaffinity(0))
    left = cores - 1 if cores >= LEAST_CORES_TO_LEAVE_ONE else cores
    return config.engine.threads or max(1, left // config.engine.pool[1])
