"""The pass of request rows through vLLM engine actors, streamed by Ray Data.

``complete`` reads request rows from Parquet, gives each to an engine, and writes what came back.
Ray's job checkpoint makes it resumable: a row whose completion lies in the target is never asked
again.  Engines report to :class:`EngineHealth`, so that one which dies at every start or on every
batch is given up with its own cause instead of being restarted for ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divray.config import Config
from divray.errors import EngineError
from divray.runs import RunFolder

Progress = Callable[[int, int, str], None]
"""Called with (rows done, rows in all, a word on what goes on)."""

CPU_ENGINE_ARGUMENTS: dict[str, Any] = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 4096,
    # A seeded request whose prefill is split kills vLLM's CPU engine (0.29 to 0.32).
    "enable_chunked_prefill": False,
}
GPU_ENGINE_ARGUMENTS: dict[str, Any] = {"max_model_len": 4096}
COMMON_ENGINE_ARGUMENTS: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True, "trust_remote_code": False}


MODEL_NAME = "/divray/llm"
"""What Ray is told; each engine makes the model it was really asked for local by itself."""


class EngineHealth:
    """What the engines of one pass say of themselves (a Ray actor).

    Args:
        max_starts: Starts without one finished batch after which :meth:`started` refuses.
    """

    def __init__(self, max_starts: int) -> None:
        self.max_starts = max_starts
        self.starts_in_vain = 0
        self.ready = 0
        self.rows = 0
        self.cause = ""
        self.given_up = False

    def started(self) -> bool:
        """An engine is about to start; ``False`` means: don't."""
        self.given_up = self.given_up or self.starts_in_vain >= self.max_starts
        self.starts_in_vain += 1
        return not self.given_up

    def is_ready(self) -> None:
        self.ready += 1

    def finished(self, rows: int) -> None:
        self.starts_in_vain = 0
        self.rows += rows

    def failed(self, cause: str) -> None:
        self.cause = cause
        self.given_up = self.given_up or self.starts_in_vain >= self.max_starts

    def state(self) -> dict[str, Any]:
        return {"ready": self.ready, "rows": self.rows, "cause": self.cause, "given_up": self.given_up}


def _engine_class() -> type:
    import ray
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF
    from ray.llm._internal.common.errors import VLLM_FATAL_ERRORS

    class Engine(vLLMEngineStageUDF):
        """Ray's vLLM stage, with the model made local first and its fate reported."""

        def __init__(self, *args: Any, reference: str, health: str, **kwargs: Any) -> None:
            from divray.models import local_model

            self.health: Any = ray.get_actor(health)
            if not ray.get(self.health.started.remote()):
                raise RuntimeError("the engine died at every try")
            self.name: str = f"{ray.util.get_node_ip_address()}:{os.getpid()}"
            try:
                super().__init__(*args, **{**kwargs, "model": local_model(reference)})
            except BaseException as error:
                ray.get(self.health.failed.remote(engine_cause(error)))
                raise
            self.generate_unreported: Any = self.llm.generate_async
            self.llm.generate_async = self._generate
            self.health.is_ready.remote()

        async def _generate(self, row: dict[str, Any]) -> Any:
            try:
                return await self.generate_unreported(row)
            except VLLM_FATAL_ERRORS as error:  # the caller ends this process next
                await self.health.failed.remote(engine_cause(error))
                raise

        async def _generate_with_error_handling(self, row: dict[str, Any], batch_uuid: uuid.UUID) -> dict[str, Any]:
            started = time.time()
            output = await super()._generate_with_error_handling(row, batch_uuid)
            return {**output, "started_at": started, "finished_at": time.time(), "engine": self.name}

        async def udf(self, batch: list[dict[str, Any]]) -> Any:
            async for response in super().udf(batch):
                yield response
            self.health.finished.remote(len(batch))

    return Engine


def engine_cause(error: BaseException) -> str:
    """The engine's own last words: from its process's logs where the exception says only that it died."""
    said: list[str] = []
    for descriptor in (1, 2):
        log = Path(f"/proc/self/fd/{descriptor}")
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace")[-200_000:].splitlines() if log.is_file() else []
            said += [line.split("ERROR", 1)[-1].strip() for line in lines if "Error" in line and "EngineDead" not in line]
    own = [line for line in said if any(mark in line for mark in ("Error: ", "Exception: ")) and "Engine core init" not in line]
    return own[-1][-500:] if own else f"{type(error).__name__}: {error}"


def engine_arguments(config: Config, gpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments: the defaults for the device, the user's own over them."""
    device = GPU_ENGINE_ARGUMENTS if gpu else CPU_ENGINE_ARGUMENTS
    return {**COMMON_ENGINE_ARGUMENTS, **device, "seed": config.seed, **config.engine.vllm}


def sampling_parameters(config: Config, row: dict[str, Any], greedy: bool) -> dict[str, Any]:
    """vLLM's sampling parameters of one request row."""
    sampling = config.sampling
    parameters: dict[str, Any] = {"max_tokens": sampling.max_tokens, "stop": ["\n"], "seed": row["seed"]}
    if greedy:
        parameters["temperature"] = 0.0
    else:
        parameters |= {name: getattr(sampling, name) for name in ("temperature", "min_p", "top_p", "top_k", "repetition_penalty")}
    if row["pattern"]:
        parameters["structured_outputs"] = {"regex": row["pattern"]}
    return parameters


def complete(
    config: Config, run: RunFolder, source: str, target: str, model: str, *, greedy: bool = False, on_progress: Progress | None = None
) -> int:
    """Have the LLM complete every request row of table ``source`` into table ``target``.

    Args:
        config: ``sampling``, ``engine`` and ``seed`` count here.
        run: Folder of both tables.
        source: Table of ``schemas.PROMPTS`` in small files.
        target: Table of ``schemas.COMPLETIONS``; what lies there already is kept and not asked again.
        model: Reference that :func:`divray.models.local_model` understands, resolved by each engine.
        greedy: Decode at temperature 0 instead of ``config.sampling``'s.
        on_progress: Told about progress about once a second; rows that were there before don't count.

    Returns:
        How many rows ``target`` holds.

    Raises:
        EngineError: The engine died at every try; the message is its own cause.
    """
    import ray

    files = run.files(source, ".parquet")
    total = _rows(run, source)
    there = _rows(run, target)
    if there == total:
        return total  # and no engine is started
    health_name = f"divray-engine-health-{uuid.uuid4().hex[:8]}"
    health: Any = ray.remote(num_cpus=0)(EngineHealth).options(name=health_name).remote(config.engine.max_starts)
    watch = _Watch(health, total - there, on_progress)
    try:
        with watch:
            _stream(config, run, source, target, model, health_name, len(files), greedy)
    except Exception as error:
        state: dict[str, Any] = ray.get(health.state.remote())
        if state["cause"]:
            raise EngineError(f"the LLM engine failed at every try; its own words: {state['cause']}") from error
        raise
    finally:
        ray.kill(health)
    return _rows(run, target)


def _rows(run: RunFolder, table: str) -> int:
    """Rows in the whole files of a table; one that a kill cut short counts for nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    for file in run.files(table, ".parquet"):
        with contextlib.suppress(pa.ArrowInvalid):
            rows += pq.read_metadata(run.path(file), filesystem=run.fs).num_rows
    return rows


def _stream(config: Config, run: RunFolder, source: str, target: str, model: str, health: str, blocks: int, greedy: bool) -> None:
    import ray.data
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from divray.cluster import uses_gpu

    gpu = uses_gpu(config)
    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config, context.max_consecutive_actor_init_deaths
    context.max_consecutive_actor_init_deaths = config.engine.max_starts - 1
    context.checkpoint_config = CheckpointConfig(
        "candidate_id",
        run.path(f"{target}.checkpoint"),
        delete_checkpoint_on_success=False,
        override_filesystem=run.fs,
    )
    try:
        processor = build_processor(
            vLLMEngineProcessorConfig(
                model_source=MODEL_NAME,
                engine_kwargs=engine_arguments(config, gpu),
                concurrency=config.engine.concurrency,
                batch_size=config.engine.batch_size,
                max_concurrent_batches=config.engine.concurrent_batches,
                placement_group_config=None if gpu else {"bundles": [{"CPU": config.engine.cpus, "GPU": 0}]},
                should_continue_on_error=True,
                log_engine_metrics=False,
                runtime_env={"env_vars": {} if gpu else _cpu_environment()},
                chat_template_stage=False,
                tokenize_stage=False,
                detokenize_stage=False,
            ),
            preprocess=lambda row: {**row, "sampling_params": sampling_parameters(config, row, greedy)},
            preprocess_map_kwargs={"num_cpus": 0.05},
        )
        stage = processor.get_stage_by_name("vLLMEngineStage")
        # Not by assignment: that runs the stage's validator again, which then asks for a GPU.
        processor.stages["vLLMEngineStage"] = type(stage).model_construct(
            fn=_engine_class(),
            fn_constructor_kwargs={**stage.fn_constructor_kwargs, "reference": model, "health": health},
            map_batches_kwargs=stage.map_batches_kwargs,
        )
        processor.postprocess = _completion_row
        requests = run.dataset(source, override_num_blocks=blocks, num_cpus=0.1)
        processor.postprocess_map_kwargs = {"num_cpus": 0.05}
        processor(requests).write_parquet(run.path(target), filesystem=run.fs, ray_remote_args={"num_cpus": 0.1})
    finally:
        context.checkpoint_config, context.max_consecutive_actor_init_deaths = before


def _completion_row(row: dict[str, Any]) -> dict[str, Any]:
    # In place of Ray's own wrapper, which lets error rows through with other columns than successes have.
    data = row["__data"]
    kept = {name: data[name] for name in ("candidate_id", "relation", "round", "strategy", "prompt_id", "prompt", "pattern", "seed")}
    return {
        **kept,
        "demonstrations": list(data["demonstrations"]),
        "completion": data.get("generated_text", ""),
        "prompt_tokens": data.get("num_input_tokens", 0),
        "generated_tokens": data.get("num_generated_tokens", 0),
        "started_at": data.get("started_at", 0.0),
        "finished_at": data.get("finished_at", 0.0),
        "engine": data.get("engine", ""),
        "error": data.get("__inference_error__", ""),
    }


def _cpu_environment() -> dict[str, str]:
    # Without V1 multiprocessing the model runs in the engine's own process; otherwise a second process
    # waits for it in a busy loop on the one core that vLLM binds both to.
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


class _Watch:
    """Tells about progress, and ends a pass whose engines have been given up."""

    def __init__(self, health: Any, total: int, on_progress: Progress | None) -> None:
        self.health, self.total, self.on_progress = health, total, on_progress
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(timeout=10)
        self._tell()

    def _follow(self) -> None:
        while not self.done.wait(1.0):
            self._tell()

    def _tell(self) -> None:
        import ray

        if self.on_progress is None:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            state = ray.get(self.health.state.remote(), timeout=10)
            self.on_progress(state["rows"], self.total, "" if state["ready"] else "engine starting")
