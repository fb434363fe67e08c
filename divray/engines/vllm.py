"""vLLM as the engine: its arguments for a device and a request, and its ``AsyncLLM``, which loads adapters while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import itertools
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from divray.config import Config
from divray.engines import Engine, EngineDied, Request, Row
from divray.errors import InputError
from divray.models import context_length, local_model
from divray.resources import cpu_precision, engine_bundles, gpus_of
from divray.schemas import PAIRS_A_COMPLETION, PAIRS_STRATEGY
from divray.sections import VllmArguments

CPU_ENGINE_ARGUMENTS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    # A seeded request whose prefill is split kills vLLM's CPU engine (0.29 to 0.32).
    "enable_chunked_prefill": False,
    # vLLM's own 128 leaves most of a short prompt out of the prefix cache, which holds whole blocks; the kernels want 32.
    "block_size": 32,
    # This saves the start of a process, and no process spins while it waits for another.
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
}
GPU_ENGINE_ARGUMENTS: dict[str, Any] = {"max_model_len": -1, "gpu_memory_utilization": 0.92}
"""The model's own context, or what fits in the GPU's memory, by which vLLM chooses the batch, too; and vLLM's own share of that memory."""

COMMON_ENGINE_ARGUMENTS: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True, "trust_remote_code": False}


def engine_arguments(config: Config, gpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments: the defaults for the device, overridden by ``engine.vllm``.  A model on several GPUs of one machine is
    split over processes; for more GPUs than a machine has, set ``distributed_executor_backend: ray``."""
    found = {**COMMON_ENGINE_ARGUMENTS, **(GPU_ENGINE_ARGUMENTS if gpu else CPU_ENGINE_ARGUMENTS), "seed": config.seed}
    if not gpu:
        found["max_model_len"] = context_length(config.models.llm, found["max_model_len"])
        found["dtype"] = "bfloat16" if cpu_precision() == "bf16" else "float32"
    elif config.rounds > 1 and config.alignment.method == "lora":  # the engine stays while the adapters are trained
        found |= {"enable_lora": True, "max_lora_rank": config.alignment.lora_rank, "max_loras": 1}
    if gpu:
        found["gpu_memory_utilization"] *= min(1, engine_bundles(config)[0].get("GPU", 1))
    if gpus_of(config.engine.vllm) > 1:
        found["distributed_executor_backend"] = "mp"
    return {**found, **config.engine.vllm}


def check_arguments(config: Config) -> None:
    """Refuse copies of the model, and arguments that vLLM does not have; it is imported only for those not in ``VllmArguments``."""
    given = config.engine.vllm.keys() - VllmArguments.__annotations__.keys()
    if parallel := [name for name in given if name.startswith("data_parallel")]:
        raise InputError("config", f"engine.vllm.{min(parallel)}", "an engine is one copy of the model", "For more set engine.concurrency.")
    if not given or importlib.util.find_spec("vllm") is None:
        return
    with contextlib.redirect_stdout(io.StringIO()):  # the import prints what is missing
        from vllm import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)} - {"model"}
    for name in sorted(given - known):
        problem = "vLLM's engine has no such argument, or divray sets it"
        raise InputError("config", f"engine.vllm.{name}", problem, "See `vllm serve --help=all`.")


def sampling_parameters(config: Config, row: dict[str, Any], greedy: bool) -> dict[str, Any]:
    """vLLM's sampling parameters of one request row."""
    sampling, sentences = config.sampling, row.get("sentences") or 1
    most = PAIRS_A_COMPLETION * 16 if row["strategy"] == PAIRS_STRATEGY else sampling.max_tokens * sentences
    parameters: dict[str, Any] = {"max_tokens": most}
    if config.prompts.style == "completion" and not row["pattern"] and sentences == 1:
        # A chat's answer and a list of records end by themselves.  The sentence for a given pair ends with its line; a list of pairs
        # and a record of three lines end with an empty line.
        parameters["stop"] = ["\n"] if row["head"] else ["\n\n"]
    if greedy:
        parameters["temperature"] = 0.0
    else:
        parameters |= {"temperature": sampling.temperature, "min_p": sampling.min_p}
    if row["pattern"]:
        parameters["structured_outputs"] = {"json" if row["pattern"].startswith("{") else "regex": row["pattern"]}
    return parameters


def cpu_environment() -> dict[str, str]:
    """Environment of a CPU engine.  Threads are not bound to cores: vLLM would bind all engines of a machine to the same ones."""
    defaults = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def engine_threads(engines: int) -> int:
    """CPU threads of each of so many engines on this node, which share its cores; of four or more, one is left for scheduler and Ray."""
    cores = len(os.sched_getaffinity(0))
    return max(1, (cores - (cores >= 4)) // engines)


class VllmEngine(Engine):
    """One model, loaded when this object is made, with the arguments of ``vllm.AsyncEngineArgs``; ``threads``, called on the
    machine of a CPU engine, returns its number of threads (``None``: a GPU engine)."""

    def __init__(self, reference: str, arguments: dict[str, Any], threads: Callable[[], int] | None = None) -> None:
        if threads is not None:  # read by the model's process; Ray sets it to 1
            os.environ["OMP_NUM_THREADS"] = str(threads())
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            settings = AsyncEngineArgs(model=local_model(reference), **arguments)
            # LLM_CLASS: vLLM's limits for batch work, by the GPU's memory; without a usage context vLLM takes those of a small machine.
            self.llm = AsyncLLM.from_engine_args(settings, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:
            raise EngineDied(cause_of(error)) from error
        # Twice what vLLM runs at a time: a batch comes back as a whole, so some of its requests are done before others.
        self.slots: int = 2 * self.llm.vllm_config.scheduler_config.max_num_seqs
        self.numbers = itertools.count(1)
        self.loading = asyncio.Lock()
        self.adapters: dict[str, Any] = {}

    async def complete(self, request: Request) -> list[Row]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError

        first, parameters = request.rows[0], dict(request.parameters)
        try:
            adapter = await self._adapter(request.adapter)
        except EngineDeadError as error:
            raise EngineDied(cause_of(error)) from error
        try:
            if form := parameters.get("structured_outputs"):
                parameters["structured_outputs"] = StructuredOutputsParams(**form)
            settings = SamplingParams(**parameters, n=len(request.rows), output_kind=RequestOutputKind.FINAL_ONLY)
            name = f"{first['candidate_id']}-{next(self.numbers)}"
            async for output in self.llm.generate(first["prompt"], settings, name, lora_request=adapter):
                answered = output
        except EngineDeadError as error:
            raise EngineDied(cause_of(error)) from error
        except Exception as error:
            cause = error.__cause__ or error
            return [{"error": f"{type(cause).__name__}: {cause}"}] * len(request.rows)
        prompt = {"prompt_tokens": len(answered.prompt_token_ids or ()), "cached_tokens": answered.num_cached_tokens or 0}
        return [
            {**prompt, "completion": one.text, "generated_tokens": len(one.token_ids), "finish_reason": one.finish_reason or ""}
            for one in answered.outputs
        ]

    async def _adapter(self, adapter: str) -> Any:
        """vLLM's name of ``adapter``, which joins the live engine at its first request; ``None``: the model alone."""
        async with self.loading:
            if adapter and adapter not in self.adapters:
                from vllm.lora.request import LoRARequest

                number = next(self.numbers)
                loaded = LoRARequest(f"adapter-{number}", number, await asyncio.to_thread(local_model, adapter))
                await self.llm.add_lora(loaded)
                self.adapters[adapter] = loaded
        return self.adapters.get(adapter)

    def close(self) -> None:
        self.llm.shutdown()


def cause_of(error: BaseException) -> str:
    """The engine's last error in this process's logs, else ``error``, which may say only that the engine died."""
    said: list[str] = []
    for descriptor in (1, 2):
        log = Path(f"/proc/self/fd/{descriptor}")
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace")[-200_000:].splitlines() if log.is_file() else []
            said += [line.split("ERROR", 1)[-1].strip() for line in lines if "Error" in line and "EngineDead" not in line]
    own = [line for line in said if any(mark in line for mark in ("Error: ", "Exception: ")) and "Engine core init" not in line]
    return own[-1][-500:] if own else f"{type(error).__name__}: {error}"
