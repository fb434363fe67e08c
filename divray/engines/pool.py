"""The run's engines: Ray actors that outlive the passes which use them.

They belong to the driver's job.  Ray restarts an engine that dies, on another machine if necessary, and ends all of them with the
driver.  (A Ray Serve deployment would survive a killed driver and keep its GPUs.)  Passes that ask for the same model use the same
engines, unless a stage between them needs the room (see :func:`make_room`).  Adapters are added while the engines run.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import SecretStr

from divray.config import Config
from divray.engines import ENDPOINT, Answer, FunctionEngine
from divray.engines.actor import EngineActor, EngineHealth
from divray.engines.openai import OpenAIEngine
from divray.engines.vllm import VllmEngine, cpu_environment, engine_arguments, engine_threads
from divray.resources import Bundle, engine_bundles, lacking, machines_there, needs, uses_gpu
from divray.stages import STAGES

CLOSING_SECONDS = 30


@dataclass(frozen=True)
class Pool:
    """Engines that run or are starting."""

    key: Any  # what they were started with
    engines: list[Any]  # handles of EngineActor
    health: Any  # handle of EngineHealth
    groups: list[Any]  # placement groups of engines that are spread over several machines
    bundles: list[Bundle]  # what the engines hold


_pool: Pool | None = None


def engines_for(config: Config, model: str, answer: Answer | None = None) -> Pool:
    """The engines of ``model`` (a model or ``endpoint``), or of the function ``answer`` if given.  Returns the live engines if they were
    started with the same settings; else stops them and starts new ones."""
    global _pool
    import ray
    from ray.util import placement_group
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

    gpu = uses_gpu(config)
    arguments = engine_arguments(config, gpu)
    endpoint = config.engine.endpoint if model == ENDPOINT and answer is None else None
    secret = SecretStr(os.environ.get(endpoint.key_variable) or "none" if endpoint else "")
    key = (_job(), answer or (model, endpoint or arguments, secret), config.prompts.style, config.engine.pool)
    if _pool is not None and _pool.key == key:
        return _pool
    stop()
    count, bundles, groups = 1 if endpoint else config.engine.pool[1], [{"CPU": 0.1}] if endpoint else engine_bundles(config), []
    if answer is not None:
        make: Any = partial(FunctionEngine, answer)
    elif endpoint:
        make = partial(OpenAIEngine, endpoint, secret, config.prompts.style == "chat")
    else:
        make = partial(VllmEngine, model, arguments, None if gpu else partial(engine_threads, count))
    places: list[Any] = ["DEFAULT"] * count
    options: dict[str, Any] = {"num_cpus": bundles[0]["CPU"], "num_gpus": bundles[0].get("GPU", 0)}
    if not gpu and not endpoint:
        options["runtime_env"] = {"env_vars": cpu_environment()}
    elif arguments.get("distributed_executor_backend") == "ray" and not endpoint:  # an engine is larger than a machine
        options["num_gpus"] = 0  # vLLM's own workers hold them
        groups = [placement_group(bundles) for _ in range(count)]
        places = [PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True) for group in groups]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # the one node that can't be lost
    health: Any = ray.remote(num_cpus=0)(EngineHealth).options(scheduling_strategy=here).remote(count)
    actor: Any = ray.remote(EngineActor)
    engines = [actor.options(max_restarts=-1, scheduling_strategy=place, **options).remote(make, health) for place in places]
    _pool = Pool(key, engines, health, groups, bundles * count)
    return _pool


def _job() -> tuple[str, str]:
    """Id of this driver's connection to Ray; the engines of an earlier connection are gone."""
    import ray

    context = ray.get_runtime_context()
    return context.get_session_name(), context.get_job_id()


def held() -> Bundle:
    """What live engines hold."""
    return {kind: sum(bundle.get(kind, 0) for bundle in _pool.bundles) if _pool else 0 for kind in ("CPU", "GPU")}


def make_room(config: Config, stage: str, back_soon: bool = False) -> None:
    """Stop the engines before ``stage`` if both do not fit the cluster.  On CPUs, where engines hold cores and memory, stop them before
    every stage that asks for anything but an engine, unless they are needed again at once (``back_soon``)."""
    work = STAGES[stage].work(config)
    if _pool is None or work in ("", "engine"):
        return
    import ray

    machines, asked = machines_there(), needs(config, stage)
    gpus = sum(bundle.get("GPU", 0) for bundles in asked.values() for bundle in bundles)
    # All that a machine has counts, since Ray reports freed CPUs too late; but of the GPUs those free now, since other jobs may hold some.
    short = lacking({"engines": _pool.bundles, **asked}, machines) or gpus > ray.available_resources().get("GPU", 0)
    # Ray does not say what is free on each machine and GPU: parts of GPUs, and GPUs of several machines, may lie apart.
    sizes = [machine["GPU"] for machine in machines if machine.get("GPU")]
    apart = work == "training" and (_pool.bundles[0].get("GPU", 0) % 1 > 0 or (len(sizes) > 1 and max(sizes) > 1))
    if short or apart or not (back_soon or uses_gpu(config)):
        stop()


def stop() -> None:
    """End the engines, if there are any."""
    global _pool
    import ray
    from ray.util import remove_placement_group

    pool, _pool = _pool, None
    if pool is None or not ray.is_initialized() or pool.key[0] != _job():
        return
    closing = [engine.close.remote() for engine in pool.engines]
    with contextlib.suppress(ray.exceptions.RayError):
        if ready := ray.get(pool.health.state.remote(), timeout=CLOSING_SECONDS)["ready"]:  # the others have nothing to close
            ray.wait(closing, num_returns=min(ready, len(closing)), timeout=CLOSING_SECONDS)
    for actor in (*pool.engines, pool.health):
        ray.kill(actor)
    for group in pool.groups:
        remove_placement_group(group)
