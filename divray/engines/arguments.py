"""What vLLM is told: engine arguments for the device, sampling parameters of a request, an engine's environment on a CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from divray.config import Config
from divray.model_checks import context_length
from divray.resources import cpu_precision
from divray.schemas import PAIRS_A_COMPLETION, PAIRS_STRATEGY, TUNED

CPU_ENGINE_ARGUMENTS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    # A seeded request whose prefill is split kills vLLM's CPU engine (0.29 to 0.32).
    "enable_chunked_prefill": False,
    # vLLM's own 128 leaves most of a short prompt out of the prefix cache, which holds whole blocks; the kernels want 32.
    "block_size": 32,
    # One process less to start, and none that spins while it waits for another.
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
}
GPU_ENGINE_ARGUMENTS: dict[str, Any] = {"max_model_len": -1}
"""The model's own context, or what fits in the GPU's memory; vLLM chooses the batch by that memory, too."""

COMMON_ENGINE_ARGUMENTS: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True, "trust_remote_code": False}

MOST_DOUBLED = 2 << 30
"""Bytes of weights that may take twice the memory."""

TOKENS_A_PAIR = 16

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``max_lora_rank``."""


def engine_arguments(config: Config, gpu: bool, largest_machine: int = 0) -> dict[str, Any]:
    """vLLM's engine arguments: the defaults for the device, the user's own over them.

    Args:
        largest_machine: The most GPUs on one machine; 0: not known. A larger model is spread by Ray, any other one by processes.
    """
    device = dict(GPU_ENGINE_ARGUMENTS if gpu else CPU_ENGINE_ARGUMENTS)
    if not gpu:
        device["max_model_len"] = context_length(config.models.llm, device["max_model_len"])
    found = {**COMMON_ENGINE_ARGUMENTS, **device, "seed": config.seed}
    if not gpu:
        found["dtype"] = cpu_dtype(config.models.llm)
        if gpus_of(config) > 1:
            found["distributed_executor_backend"] = "mp"
    elif gpus_of(config) > 1:
        found["distributed_executor_backend"] = "ray" if 0 < largest_machine < gpus_of(config) else "mp"
    return {**found, **config.engine.vllm}


def gpus_of(config: Config) -> int:
    """GPUs, or processes on CPUs, of one engine."""
    return int(config.engine.vllm.get("tensor_parallel_size", 1)) * int(config.engine.vllm.get("pipeline_parallel_size", 1))


def lora_arguments(config: Config, gpu: bool) -> dict[str, Any]:
    """Of an engine that takes adapters; on a CPU the model alone is one, too."""
    rank = next(rank for rank in LORA_RANKS if rank >= config.alignment.lora_rank)
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1 if gpu else 2}


def cpu_dtype(reference: str) -> str:
    """bfloat16, or float32 for a model of at most :data:`MOST_DOUBLED` bytes where this CPU multiplies that faster."""
    size = sum(file.stat().st_size for file in Path(reference).expanduser().glob("*.safetensors"))
    small = reference.startswith("embedded:") or 0 < size <= MOST_DOUBLED
    return "float32" if small and cpu_precision() == "fp32" else "bfloat16"


def sampling_parameters(config: Config, row: dict[str, Any], greedy: bool) -> dict[str, Any]:
    """vLLM's sampling parameters of one request row."""
    sampling = config.sampling
    sentences = row.get("sentences") or 1
    parameters: dict[str, Any] = {"max_tokens": sampling.max_tokens * sentences}
    if row["strategy"] == PAIRS_STRATEGY:
        parameters["max_tokens"] = PAIRS_A_COMPLETION * TOKENS_A_PAIR
    if config.prompts.style == "completion" and not row["pattern"] and sentences == 1:
        # A chat's answer and a list of records end by themselves; a list of pairs and a record of three lines with an empty one.
        parameters["stop"] = ["\n"] if row["head"] else ["\n\n"]
    if greedy:
        parameters["temperature"] = 0.0
    else:
        factor = sampling.tuned_temperature_factor if row.get("policy") == TUNED else 1.0
        parameters |= {"temperature": sampling.temperature * factor, "min_p": sampling.min_p}
    if row["pattern"]:
        parameters["structured_outputs"] = {"json" if row["pattern"].startswith("{") else "regex": row["pattern"]}
    return parameters


def cpu_environment() -> dict[str, str]:
    """Of an engine on a CPU. Its threads are bound to no cores: the engines of a machine would all be bound to the same ones."""
    defaults = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def engine_threads(config: Config) -> int:
    """CPU threads of an engine on this node: the engines share its cores, from four on less one for vLLM's scheduler and Ray."""
    cores = len(os.sched_getaffinity(0))
    return max(1, (cores - (cores >= 4)) // config.engine.pool[1])
