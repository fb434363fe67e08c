"""The actors of a sampling pass: the engine itself, its stand-in, and the one that they report to."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divray.relations import metric_tag
from divray.schemas import BASE, TUNED

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From a request row to columns of its completion: ``generated_text``, ``num_generated_tokens``, …"""


class EngineHealth:
    """What the engines of one pass say of themselves (a Ray actor).

    Args:
        max_starts: Starts without one finished batch after which an engine is given up.
        pool: How many engines start at once, at most.
    """

    def __init__(self, max_starts: int, pool: int = 1) -> None:
        self.max_starts = max_starts + pool - 1
        self.starts_in_vain = 0
        self.rows = 0
        self.cause = ""
        self.given_up = False
        self.engines: dict[str, dict[str, float | None]] = {}

    def started(self, engine: str) -> bool:
        """An engine is about to start; ``False`` means: don't."""
        self.given_up = self.given_up or self.starts_in_vain >= self.max_starts
        self.starts_in_vain += 1
        self.engines[engine] = {"created_at": time.time(), "ready_at": None}
        return not self.given_up

    def is_ready(self, engine: str) -> None:
        """An engine has started, so whatever ended one before it is overcome."""
        self.engines[engine]["ready_at"] = time.time()
        if not self.given_up:
            self.cause = ""

    def finished(self, rows: int) -> None:
        self.starts_in_vain = 0
        self.rows += rows

    def failed(self, cause: str) -> None:
        self.cause = cause
        self.given_up = self.given_up or self.starts_in_vain >= self.max_starts

    def state(self) -> dict[str, Any]:
        ready = sum(engine["ready_at"] is not None for engine in self.engines.values())
        return {"ready": ready, "rows": self.rows, "cause": self.cause, "given_up": self.given_up, "engines": self.engines}


class Reporter:
    """One engine's voice: to :class:`EngineHealth`, and to Prometheus by Ray's metrics.

    Raises:
        RuntimeError: Too many engines have died before this one.
    """

    def __init__(self, health: str) -> None:
        import ray
        from ray.util import metrics

        self.health: Any = ray.get_actor(health)
        self.engine: str = f"{ray.util.get_node_ip_address()}:{os.getpid()}"
        if not ray.get(self.health.started.remote(self.engine)):
            raise RuntimeError("the engine died at every try")
        self.inside: int = 0
        self.since: float = time.monotonic()
        tags = ("engine",)
        self.in_flight: Any = metrics.Gauge("divray_requests_in_flight", "Requests inside the engine.", tags)
        self.seconds: Any = metrics.Counter("divray_engine_seconds", "Seconds by state: start_up, busy, idle.", (*tags, "state"))
        own = (*tags, "relation")
        self.answered: Any = metrics.Counter("divray_requests", "Requests that came back.", (*own, "outcome"))
        self.tokens: Any = metrics.Counter("divray_tokens", "Tokens by kind: prompt, cached (of the prompt), generated.", (*own, "kind"))

    def ready(self) -> None:
        self._spent("start_up")
        self.health.is_ready.remote(self.engine)

    def _spent(self, state: str) -> None:
        now = time.monotonic()
        if now > self.since:
            self.seconds.inc(now - self.since, {"engine": self.engine, "state": state})
        self.since = now

    async def failed(self, cause: str) -> None:
        await self.health.failed.remote(cause)

    def enter(self, change: int) -> None:
        """``change`` requests more (or, negative, fewer) are inside the engine."""
        self._spent("busy" if self.inside else "idle")
        self.inside += change
        self.in_flight.set(self.inside, {"engine": self.engine})

    def batch(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        """A batch has come back: relation and output of each request."""
        self.health.finished.remote(len(rows))
        counts: Counter[tuple[str, str]] = Counter()
        tokens: Counter[tuple[str, str]] = Counter()
        for relation, row in rows:
            counts[relation, "error" if row.get("__inference_error__") else "ok"] += 1
            for kind, column in (("prompt", "num_input_tokens"), ("cached", "cached_tokens"), ("generated", "num_generated_tokens")):
                tokens[relation, kind] += row.get(column) or 0
        for (relation, outcome), count in counts.items():
            self.answered.inc(count, {"engine": self.engine, "relation": metric_tag(relation), "outcome": outcome})
        for (relation, kind), count in (+tokens).items():
            self.tokens.inc(count, {"engine": self.engine, "relation": metric_tag(relation), "kind": kind})


def vllm_class() -> type:
    """Ray's vLLM stage as a class that reports; made here so that only engines import it."""
    import ray
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF
    from ray.llm._internal.common.errors import VLLM_FATAL_ERRORS
    from vllm.sampling_params import RequestOutputKind

    class Engine(vLLMEngineStageUDF):
        """The model is made local first; each row gets its times and what else vLLM knows of it."""

        def __init__(
            self,
            *args: Any,
            reference: str,
            adapter: str,
            threads: Callable[[], int] | None,
            in_process: bool,
            health: str,
            **kwargs: Any,
        ) -> None:
            from divray.models import local_model
            from divray.sampling.in_process import InProcessEngine

            self.reporter = Reporter(health)
            if in_process:
                InProcessEngine.in_place_of_vllms(threads)
            elif threads is not None:  # on a CPU; the process with the model, started below, reads it
                os.environ["OMP_NUM_THREADS"] = str(threads())
            try:
                self.adapters = adapters(local_model(adapter), blank=threads is not None) if adapter else {}
                super().__init__(*args, **{**kwargs, "model": local_model(reference)})
            except BaseException as error:
                ray.get(self.reporter.health.failed.remote(engine_cause(error)))
                raise
            self.seen: dict[int, dict[str, Any]] = {}
            llm: Any = self.llm
            llm._maybe_get_lora_request = self._adapter
            self.answer, self.generate = llm._generate_async, llm.generate_async
            llm._generate_async, llm.generate_async = self._answer, self._generate
            self.reporter.ready()

        async def _adapter(self, row: dict[str, Any]) -> Any:
            return self.adapters.get(row["policy"])

        async def _answer(self, request: Any) -> Any:
            started = time.time()
            self.reporter.enter(1)
            # Otherwise every token of every request wakes this process, which shares its cores with the model.
            request.params.output_kind = RequestOutputKind.FINAL_ONLY
            try:
                output = await self.answer(request)
            finally:
                self.reporter.enter(-1)
            self.seen[request.request_id] = {
                "started_at": started,
                "finished_at": time.time(),
                "cached_tokens": output.num_cached_tokens,
                "finish_reason": output.outputs[0].finish_reason or "",
            }
            return output

        async def _generate(self, row: dict[str, Any]) -> Any:
            try:
                request, output, seconds = await self.generate(row)
            except VLLM_FATAL_ERRORS as error:  # the caller ends this process next
                await self.reporter.failed(engine_cause(error))
                raise
            return request, {**output, **self.seen.pop(request.request_id)}, seconds

        async def _generate_with_error_handling(self, row: dict[str, Any], batch_uuid: uuid.UUID) -> dict[str, Any]:
            asked, prompt = time.time(), row["prompt"]  # which Ray's own error rows have only the beginning of
            output = await super()._generate_with_error_handling(row, batch_uuid)
            return {"started_at": asked, "finished_at": asked, **output, "prompt": prompt, "engine": self.reporter.engine}

        async def udf(self, batch: list[dict[str, Any]]) -> Any:
            relations = {row[self.IDX_IN_BATCH_COLUMN]: row["relation"] for row in batch}
            outputs = []
            async for output in super().udf(batch):
                outputs.append((relations[output[self.IDX_IN_BATCH_COLUMN]], output))
                yield output
            self.reporter.batch(outputs)

    return Engine


def adapters(folder: str, blank: bool) -> dict[str, Any]:
    """Policy -> vLLM's request for its adapter; rows of another policy go without.

    Args:
        folder: Of the tuned policy's adapter.
        blank: Give the base model an adapter as well, one whose product is zero: vLLM's CPU kernels (to 0.32) put the
            last adapter into every row that has none.
    """
    from safetensors.torch import load_file, save_file
    from vllm.lora.request import LoRARequest

    found = {TUNED: LoRARequest("tuned", 1, folder)}
    if blank:
        copy = Path(tempfile.mkdtemp(prefix="divray-adapter-"))
        shutil.copy(Path(folder, "adapter_config.json"), copy)
        weights = load_file(Path(folder, "adapter_model.safetensors"))
        save_file(
            {name: weight * 0 if "lora_B" in name else weight for name, weight in weights.items()}, copy / "adapter_model.safetensors"
        )
        found[BASE] = LoRARequest("base", 2, str(copy))
    return found


def stand_in_class() -> type:
    """A stage that takes the engine's place: every row is answered at once by a plain function."""
    from ray.llm._internal.batch.stages.base import StatefulStageUDF

    class StandIn(StatefulStageUDF):
        def __init__(self, data_column: str, expected_input_keys: list[str], answer: Answer, health: str, **_: Any) -> None:
            super().__init__(data_column, expected_input_keys)
            self.answer, self.reporter = answer, Reporter(health)
            self.reporter.ready()

        async def udf(self, rows: list[dict[str, Any]]) -> Any:
            outputs = []
            for row in rows:
                now = time.time()
                self.reporter.enter(1)
                answered = {"started_at": now, "finished_at": now, "engine": self.reporter.engine, **self.answer(row)}
                outputs.append((row["relation"], {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], **answered}))
                self.reporter.enter(-1)
            for _, output in outputs:
                yield output
            self.reporter.batch(outputs)

    return StandIn


def engine_cause(error: BaseException) -> str:
    """The engine's own last words: from its process's logs where the exception says only that it died."""
    if error.__cause__ is not None:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"
    said: list[str] = []
    for descriptor in (1, 2):
        log = Path(f"/proc/self/fd/{descriptor}")
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace")[-200_000:].splitlines() if log.is_file() else []
            said += [line.split("ERROR", 1)[-1].strip() for line in lines if "Error" in line and "EngineDead" not in line]
    own = [line for line in said if any(mark in line for mark in ("Error: ", "Exception: ")) and "Engine core init" not in line]
    return own[-1][-500:] if own else f"{type(error).__name__}: {error}"
