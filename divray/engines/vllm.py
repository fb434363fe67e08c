"""vLLM's ``AsyncLLM``: several candidates of a prompt are one request, adapters join while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divray.engines.face import EngineDied, Request, Row
from divray.models import local_model


class VllmEngine:
    """One model, loaded when this object is made.

    Args:
        reference: Model that :func:`divray.models.local_model` understands.
        arguments: Of ``vllm.AsyncEngineArgs``.
        threads: Says, on the machine of a CPU engine, how many threads the model gets; ``None``: a GPU.
    """

    def __init__(self, reference: str, arguments: dict[str, Any], threads: Callable[[], int] | None = None) -> None:
        if threads is not None:  # read by the model's process; Ray sets it to 1
            os.environ["OMP_NUM_THREADS"] = str(threads())
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            settings = AsyncEngineArgs(model=local_model(reference), **arguments)
            # vLLM's own limits for batch work, by the GPU's memory; without a context it takes those of a small machine.
            self.llm = AsyncLLM.from_engine_args(settings, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:
            raise EngineDied(cause_of(error)) from error
        # A batch of requests comes back as a whole, so that some of those taken in are done before others.
        self.slots: int = 2 * self.llm.vllm_config.scheduler_config.max_num_seqs
        self.on_cpu = threads is not None
        self.numbers = itertools.count(1)
        self.loading = asyncio.Lock()
        self.adapters: dict[str, Any] = {}

    async def complete(self, request: Request) -> list[Row]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError

        first, parameters = request.rows[0], dict(request.parameters)
        form = parameters.pop("structured_outputs", None)
        try:
            adapter = await self._adapter(request.adapter)
        except EngineDeadError as error:
            raise EngineDied(cause_of(error)) from error
        try:
            settings = SamplingParams(
                **parameters,
                n=len(request.rows),
                structured_outputs=StructuredOutputsParams(**form) if form else None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
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
                folder = await asyncio.to_thread(local_model, adapter)
                if self.on_cpu:
                    # vLLM's CPU kernels (to 0.32) put the last adapter into every row that has none.
                    self.adapters[""] = await self._load(await asyncio.to_thread(without_effect, folder))
                self.adapters[adapter] = await self._load(folder)
        return self.adapters.get(adapter)

    async def _load(self, folder: str) -> Any:
        from vllm.lora.request import LoRARequest

        number = next(self.numbers)
        loaded = LoRARequest(f"adapter-{number}", number, folder)
        await self.llm.add_lora(loaded)
        return loaded

    def close(self) -> None:
        self.llm.shutdown()


def without_effect(folder: str) -> str:
    """A copy of an adapter's folder whose product is zero."""
    from safetensors.torch import load_file, save_file

    copy = Path(tempfile.mkdtemp(prefix="divray-adapter-"))
    shutil.copy(Path(folder, "adapter_config.json"), copy)
    weights = load_file(Path(folder, "adapter_model.safetensors"))
    save_file({name: weight * 0 if "lora_B" in name else weight for name, weight in weights.items()}, copy / "adapter_model.safetensors")
    return str(copy)


def cause_of(error: BaseException) -> str:
    """The engine's own last words: from this process's logs where the exception says only that it died."""
    said: list[str] = []
    for descriptor in (1, 2):
        log = Path(f"/proc/self/fd/{descriptor}")
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace")[-200_000:].splitlines() if log.is_file() else []
            said += [line.split("ERROR", 1)[-1].strip() for line in lines if "Error" in line and "EngineDead" not in line]
    own = [line for line in said if any(mark in line for mark in ("Error: ", "Exception: ")) and "Engine core init" not in line]
    return own[-1][-500:] if own else f"{type(error).__name__}: {error}"
