"""The run's engines: Ray actors that outlive the passes which use them.

They belong to the driver's job: Ray restarts one that dies, on another machine where need be, and ends all with the driver.
(A Ray Serve deployment would live on when the driver is killed, and keep its GPUs.)  All passes that ask for the same model
share one start, unless scoring between waves needs their room; adapters join while the engines run.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import SecretStr

from divray.config import Config
from divray.engines import ENDPOINT, Answer, FunctionEngine
from divray.engines.actor import EngineActor, EngineHealth
from divray.engines.openai import OpenAIEngine
from divray.engines.vllm import VllmEngine, cpu_environment, engine_arguments, engine_threads, lora_arguments
from divray.resources import READING, Bundle, gpus_of, machines_there, needs, uses_gpu
from divray.stages import STAGES

CLOSING_SECONDS = 30
GPU_ENGINE_CPUS = 4.0


@dataclass(frozen=True)
class Pool:
    """Engines that are there or on their way: what they were started with, whether they take LoRA adapters, the handles of
    :class:`EngineActor` and :class:`EngineHealth`, the placement groups of engines that are spread over several machines, and what each
    engine holds."""

    key: Any
    adapters: bool
    engines: list[Any]
    health: Any
    groups: list[Any]
    held: list[Bundle]


_pool: Pool | None = None


def engines_for(config: Config, model: str, adapter: bool, answer: Answer | None = None) -> Pool:
    """The engines of ``model``, or of ``endpoint``, or ``answer`` in their place: the live ones, or new ones in the place of those of
    another model; ``adapter``: whether the pass has one."""
    global _pool
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    gpu = uses_gpu(config)
    arguments = engine_arguments(config, gpu)
    endpoint = config.engine.endpoint if model == ENDPOINT and answer is None else None
    secret = SecretStr(os.environ.get(endpoint.key_variable) or "none" if endpoint else "")
    key = (_job(), answer or (model, endpoint or arguments, secret), config.prompts.style, config.engine.pool)
    if _pool is not None and _pool.key == key and (_pool.adapters or not adapter):
        return _pool
    stop()
    # An engine on a GPU stays while the adapters are trained; on a CPU it makes room for that.
    adapters = adapter or (gpu and config.rounds > 1 and config.alignment.method == "lora")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # the one node that can't be lost
    count, groups = 1 if endpoint else config.engine.pool[1], []
    options: list[dict[str, Any]] = [{"num_cpus": 0.1}] * count
    if endpoint:
        make: Any = partial(OpenAIEngine, endpoint, secret, config.prompts.style == "chat")
    else:
        if adapters:
            arguments = {**lora_arguments(config, gpu), **arguments}
        make = partial(VllmEngine, model, arguments, None if gpu else partial(engine_threads, config))
        if not gpu:
            options = [{"num_cpus": config.engine.cpus, "runtime_env": {"env_vars": cpu_environment()}}] * count
        elif arguments.get("distributed_executor_backend") == "ray":
            options = [_spread(config) for _ in range(count)]
            groups = [one["scheduling_strategy"].placement_group for one in options]
        else:
            options = [{"num_gpus": gpus_of(config), "num_cpus": gpu_engine_cpus(config)}] * count
    if answer is not None:
        make = partial(FunctionEngine, answer)
    name = f"divray-engine-health-{uuid.uuid4().hex[:8]}"
    made: Any = ray.remote(num_cpus=0)(EngineHealth).options(name=name, scheduling_strategy=here)
    health = made.remote(count)
    each: Bundle = {"CPU": options[0]["num_cpus"], "GPU": options[0].get("num_gpus", 0)}
    held = [bundle for group in groups for bundle in group.bundle_specs] or [each] * count
    actor: Any = ray.remote(EngineActor)
    _pool = Pool(key, adapters, [actor.options(max_restarts=-1, **own).remote(make, name) for own in options], health, groups, held)
    return _pool


def _job() -> tuple[str, str]:
    """This driver's connection: engines of an earlier one are gone."""
    import ray

    context = ray.get_runtime_context()
    return context.get_session_name(), context.get_job_id()


def _spread(config: Config) -> dict[str, Any]:
    """Actor options of an engine that is larger than a machine, with a placement group of its own."""
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"GPU": 1, "CPU": 1}] * gpus_of(config), strategy="PACK")
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    return {"num_gpus": 0, "num_cpus": 1, "scheduling_strategy": strategy}


def gpu_engine_cpus(config: Config) -> float:
    """CPUs of a GPU engine: :data:`GPU_ENGINE_CPUS`, or its GPUs' share of the smallest machine's, less :data:`READING`."""
    shares = [machine.get("CPU", 0) / machine["GPU"] for machine in machines_there() if machine.get("GPU")]
    rest = sum(bundle["CPU"] for bundle in READING)
    return max(0.0, min(GPU_ENGINE_CPUS, min(shares, default=GPU_ENGINE_CPUS + rest) * gpus_of(config) - rest))


def make_room(config: Config, stage: str) -> None:
    """Stop the engines where the cluster has no room for what a stage asks for beside them; on a CPU it has no memory for DPO."""
    work = STAGES[stage].work(config)
    if _pool is None or work in ("", "engine"):
        return
    import ray

    asked = [bundle for bundles in needs(config, stage).values() for bundle in bundles]
    cpus, gpus = (sum(one.get(kind, 0) for one in bundles) for kind, bundles in (("CPU", [*_pool.held, *asked]), ("GPU", asked)))
    # Others' GPUs count; CPUs are said to be free too late for that.
    short = cpus > ray.cluster_resources().get("CPU", 0) + 1e-9 or gpus > ray.available_resources().get("GPU", 0)
    if short or (work == "training" and not uses_gpu(config)):
        stop()


def stop() -> None:
    """End the engines; nothing where there are none."""
    global _pool
    import ray
    from ray.util import remove_placement_group

    pool, _pool = _pool, None
    if pool is None or not ray.is_initialized() or pool.key[0] != _job():
        return
    closing = [engine.close.remote() for engine in pool.engines]
    with contextlib.suppress(ray.exceptions.RayError):
        ray.wait(closing, num_returns=len(closing), timeout=CLOSING_SECONDS)
    for actor in (*pool.engines, pool.health):
        ray.kill(actor)
    for group in pool.groups:
        remove_placement_group(group)
