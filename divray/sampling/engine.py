"""The pass of request rows through vLLM engine actors, streamed by Ray Data.

``complete`` reads request rows from Parquet, gives each to an engine, and writes what came back.
Ray's job checkpoint makes it resumable: a row whose completion lies in the target is never asked
again.  Engines report to :class:`~divray.sampling.actors.EngineHealth`, so that one which dies at every
start or on every batch is given up with its own cause instead of being restarted for ever.  What they
report also stands in ``<target>.engines/``, one JSON file a pass, from which the report tells why an
engine was idle.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from divray.config import Config
from divray.errors import EngineError
from divray.runs import RunFolder
from divray.sampling.actors import Answer, EngineHealth, stand_in_class, vllm_class
from divray.sampling.arguments import LORA_RANKS, cpu_environment, engine_arguments, engine_threads, sampling_parameters
from divray.sampling.ledger import whole_rows
from divray.schemas import COMPLETIONS, PROMPTS

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Progress = Callable[[int, int, str], None]
"""Called with (rows done, rows in all, a word on what goes on)."""

ENDPOINT = "endpoint"
"""Value of ``models.llm`` that stands for the server of ``engine.endpoint``."""

MODEL_NAME = "/divray/llm"
"""What Ray is told; each engine makes the model it was really asked for local by itself."""


def complete(
    config: Config,
    run: RunFolder,
    source: str,
    target: str,
    model: str,
    *,
    adapter: str = "",
    greedy: bool = False,
    on_progress: Progress | None = None,
    answer: Answer | None = None,
) -> int:
    """Have the LLM complete every request row of table ``source`` into table ``target``.

    Args:
        config: ``sampling``, ``engine`` and ``seed`` count here.
        run: Folder of both tables.
        source: Table of ``schemas.PROMPTS`` in small files.
        target: Table of ``schemas.COMPLETIONS``; what lies there already is kept and not asked again.
        model: Reference that :func:`divray.models.local_model` understands, resolved by each engine, or
            ``endpoint``: the server that ``engine.endpoint`` names.
        adapter: Folder or URI of a LoRA adapter of ``model`` through which rows go whose ``policy`` is ``tuned``.
        greedy: Decode at temperature 0 instead of ``config.sampling``'s.
        on_progress: Told about progress about once a second; rows that were there before don't count.
        answer: A function that takes the engine's place on the same path: recorded completions, or a
            measurement of everything but the engine.

    Returns:
        How many rows ``target`` holds.

    Raises:
        EngineError: The engine died at every try; the message is its own cause.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    gc.collect()  # a pass that failed leaves its actors in reference cycles, and with them the CPUs they hold
    files = run.files(source, ".parquet")
    total = whole_rows(run, source)
    there = whole_rows(run, target)
    if there == total:
        return total  # and no engine is started
    health_name = f"divray-engine-health-{uuid.uuid4().hex[:8]}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # the one node that the pass can't lose
    made = ray.remote(num_cpus=0)(EngineHealth).options(name=health_name, scheduling_strategy=here)
    health: Any = made.remote(config.engine.max_starts, config.engine.pool[1])
    watch = _Watch(health, total - there, on_progress, run, f"{target}.engines/{time.time():.3f}.json")
    try:
        with watch:
            asked = _Asked(model, adapter, greedy, answer, health_name)
            written = _stream(config, run, source, target, asked, len(files))
            watch.backpressure = backpressure_seconds(written)
    except Exception as error:
        state: dict[str, Any] = ray.get(health.state.remote())
        if state["cause"] or state["given_up"]:
            words = f"its own words: {state['cause']}" if state["cause"] else "it said nothing (killed, or out of memory?)"
            raise EngineError(f"the LLM engine failed at every try; {words}") from error
        raise
    finally:
        ray.kill(health)
    return whole_rows(run, target)


class _Asked(NamedTuple):
    """Who answers a pass, and how; ``health`` names its :class:`~divray.sampling.actors.EngineHealth`."""

    model: str
    adapter: str
    greedy: bool
    answer: Answer | None
    health: str


def _stream(config: Config, run: RunFolder, source: str, target: str, asked: _Asked, blocks: int) -> ray.data.Dataset:
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

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
        if asked.model == ENDPOINT and asked.answer is None:
            from divray.sampling.endpoint import endpoint_processor

            processor = endpoint_processor(config, asked.health, asked.greedy)
        else:
            processor = _vllm_processor(config, asked)
        processor.postprocess = _completion_row
        processor.preprocess_map_kwargs = {"num_cpus": 0.05}
        processor.postprocess_map_kwargs = {"num_cpus": 0.05}
        requests = run.dataset(source, override_num_blocks=blocks, num_cpus=0.1)
        completions: ray.data.Dataset = processor(requests).map_batches(_typed, batch_format="pyarrow", num_cpus=0.05)
        completions.write_parquet(run.path(target), filesystem=run.fs, ray_remote_args={"num_cpus": 0.1})
        return completions
    finally:
        context.checkpoint_config, context.max_consecutive_actor_init_deaths = before


def _vllm_processor(config: Config, asked: _Asked) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from divray.cluster import uses_gpu

    gpu, greedy = uses_gpu(config), asked.greedy  # what a row's function holds goes to every worker
    arguments = engine_arguments(config, gpu)
    if asked.adapter:
        slots = 1 if gpu else 2  # see `actors.adapters`
        rank = next(rank for rank in LORA_RANKS if rank >= config.alignment.lora_rank)
        arguments = {"enable_lora": True, "max_lora_rank": rank, "max_loras": slots, **arguments}
    context = int(arguments["max_model_len"])
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=MODEL_NAME,
            engine_kwargs=arguments,
            concurrency=config.engine.pool,
            batch_size=config.engine.batch_size,
            max_concurrent_batches=config.engine.concurrent_batches,
            placement_group_config=None if gpu else {"bundles": [{"CPU": config.engine.cpus, "GPU": 0}]},
            should_continue_on_error=True,
            log_engine_metrics=False,
            runtime_env={"env_vars": {} if gpu else cpu_environment()},
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        ),
        preprocess=lambda row: {**refused(row, context), "sampling_params": sampling_parameters(config, row, greedy)},
    )
    stage = processor.get_stage_by_name("vLLMEngineStage")
    threads = None if gpu else partial(engine_threads, config)
    in_process = not gpu if config.engine.in_process is None else config.engine.in_process
    own = {"reference": asked.model, "adapter": asked.adapter, "threads": threads, "in_process": in_process}
    # Not by assignment: that runs the stage's validator again, which then asks for a GPU.
    processor.stages["vLLMEngineStage"] = type(stage).model_construct(
        fn=stand_in_class() if asked.answer else vllm_class(),
        fn_constructor_kwargs={
            **stage.fn_constructor_kwargs,
            **({"answer": asked.answer} if asked.answer else own),
            "health": asked.health,
        },
        map_batches_kwargs=stage.map_batches_kwargs,
    )
    return processor


def refused(row: dict[str, Any], context: int) -> dict[str, Any]:
    """The row as the engine's stage takes it; one whose prompt leaves no room in ``context`` tokens goes past it as an error row."""
    length = row.get("length") or 0
    problem = f"the prompt of {length} tokens is longer than the context of {context}" if length >= context else ""
    return {**row, "__inference_error__": problem}


def _completion_row(row: dict[str, Any]) -> dict[str, Any]:
    # In place of Ray's own wrapper, which lets error rows through with other columns than successes have.
    data = row["__data"]
    return {
        **{name: data.get(name) for name in PROMPTS.names},
        "demonstrations": list(data["demonstrations"]),
        "completion": data.get("generated_text") or "",
        "prompt_tokens": data.get("num_input_tokens") or 0,
        "cached_tokens": data.get("cached_tokens") or 0,
        "generated_tokens": data.get("num_generated_tokens") or 0,
        "finish_reason": data.get("finish_reason") or "",
        "started_at": data.get("started_at") or 0.0,
        "finished_at": data.get("finished_at") or 0.0,
        "engine": data.get("engine") or "",
        "error": data.get("__inference_error__") or "",
    }


def _typed(batch: pa.Table) -> pa.Table:
    return batch.select(COMPLETIONS.names).cast(COMPLETIONS)


def backpressure_seconds(written: ray.data.Dataset) -> float:
    """How long Ray Data let the engines' answers wait because what follows them was full, by its own statistics."""
    summary: Any = written.get_stats_summary()
    pending, seconds = [summary], 0.0
    while pending:
        stats = pending.pop()
        pending += stats.parents
        if any(name in (stats.base_name or "") for name in ("(Engine)", "(Endpoint)", "(StandIn)")):
            seconds += float(stats.extra_metrics.get("task_output_backpressure_time") or 0.0)
    return seconds


class _Watch:
    """Tells about progress, and keeps the record of the pass's engines in the run folder."""

    def __init__(self, health: Any, total: int, on_progress: Progress | None, run: RunFolder, record: str) -> None:
        self.health, self.total, self.on_progress = health, total, on_progress
        self.run, self.record = run, record
        self.began_at, self.backpressure = time.time(), 0.0
        self.known: dict[str, Any] = {}
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

        with contextlib.suppress(ray.exceptions.RayError, OSError):
            state = ray.get(self.health.state.remote(), timeout=10)
            if self.on_progress is not None:
                self.on_progress(state["rows"], self.total, "" if state["ready"] else "engine starting")
            if state["engines"] != self.known or self.done.is_set():
                self.known = state["engines"]
                ended = time.time() if self.done.is_set() else None
                self.run.write_json(
                    self.record,
                    {"began_at": self.began_at, "ended_at": ended, "backpressure_seconds": self.backpressure, "engines": self.known},
                )
