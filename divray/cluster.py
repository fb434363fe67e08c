"""Connecting to Ray: quietly, on loopback, and with an early word where resources can't suffice."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from divray.errors import ResourceError
from divray.starting import starting_ray

if TYPE_CHECKING:
    from divray.config import Config
    from divray.runs import RunFolder

LOG_BYTES = 1 << 20
LEAST_LOG_BYTES = 200
"""Smaller logs hold only the lines that Ray begins each with."""

_native_output: IO[bytes] | None = None

WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""Set in every worker unless the user's own environment says otherwise."""

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own 15 lets its dashboard and the driver take the core from the model whenever they wake.
    "RAY_worker_niceness": "0",
    # After Ray's own second the workers would be gone by when the engine has started, and start again beside the model.
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
}
"""Set before Ray starts on this machine unless the user's own environment says otherwise."""

PASSED_ON = ("HF_", "DIVRAY_", "VLLM_", "AWS_", "DS_", "TORCH_EXTENSIONS_DIR", "PYTHONPATH")
"""Prefixes of the driver's variables that workers get too."""


def connect(config: Config) -> None:
    """Join the cluster, or start one on this machine; does nothing where already connected.

    Raises:
        ResourceError: A stage asks for more than the cluster can ever give.
    """
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for name, value in (RAY_ENVIRONMENT | WORKER_ENVIRONMENT).items():
            os.environ.setdefault(name, value)
        if config.models.llm.startswith(("embedded:", "endpoint")) and config.models.encoder.startswith("embedded:"):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        passed = {k: v for k, v in os.environ.items() if k in WORKER_ENVIRONMENT or k.startswith(PASSED_ON)}
        shown = config.cluster.show_logs
        if not shown:
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
            for name in ("ray", "ray.llm", "vllm", "deepspeed"):
                logging.getLogger(name).setLevel(logging.ERROR)
            logging.getLogger("ray.llm").addHandler(logging.NullHandler())  # else it adds one for the terminal
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        with starting_ray():
            ray.init(
                # Never one that merely happens to be, or to have been, on this machine.
                address=config.cluster.address or os.environ.get("RAY_ADDRESS") or "local",
                log_to_driver=shown,
                logging_level=logging.INFO if shown else logging.ERROR,
                configure_logging=shown,
                runtime_env={"env_vars": passed},
            )
        quiet_ray_data(shown)
        if not shown:
            _divert_messages()
    check_resources(config, ray.cluster_resources())


def join_ray(address: str) -> None:
    """Connect to Ray for a command that has no run settings; ``local`` starts a cluster of this machine's own."""
    import ray

    if not ray.is_initialized():
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        with starting_ray():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": passed})


def check_machine(config: Config) -> None:
    """Without connecting: what a cluster of this machine's own could never give, say so now.

    Raises:
        ResourceError: See :func:`check_resources`; only where the run would start Ray on this machine.
    """
    import ray

    if ray.is_initialized():
        check_resources(config, ray.cluster_resources())
    elif (config.cluster.address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        from ray._private.accelerators import NvidiaGPUAcceleratorManager

        gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
        check_resources(config, {"CPU": os.cpu_count() or 1, "GPU": gpus})


def quiet_ray_data(shown: bool) -> None:
    """Keep Ray Data's bars and lines off the terminal unless asked for."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = shown
    context.print_on_execution_start = shown
    if not shown:
        for name in ("ray", "ray.data", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)


def uses_gpu(config: Config) -> bool:
    """Whether the LLM engine runs on a GPU here: by configuration, else by what the cluster has."""
    if config.engine.device != "auto":
        return config.engine.device == "gpu"
    import ray

    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1


def check_resources(config: Config, total: dict[str, float]) -> None:
    """Compare what each stage asks for with ``total`` (resource name -> amount).

    Raises:
        ResourceError: names the setting, what it asks for and what there is.
    """
    if total.get("autoscaler", 0):
        return
    cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
    gpu_engine = config.engine.device == "gpu" or (config.engine.device == "auto" and gpus >= 1)
    least = config.engine.pool[0]
    size = int(config.engine.vllm.get("tensor_parallel_size", 1)) * int(config.engine.vllm.get("pipeline_parallel_size", 1))
    if size > 1 and not gpu_engine:
        raise ResourceError("engine.vllm spreads the model over several GPUs (tensor or pipeline parallel), the cluster has none. Drop it.")
    # Tasks of Ray's own hold one whole CPU here and there; engines must leave it free.
    asked = [
        ("engine.cpus", 1 + (0 if gpu_engine else config.engine.cpus * least), "CPU", cpus),
        ("engine.concurrency", least * size if gpu_engine else 0, "GPU", gpus),
        ("cluster.cpus_per_worker", config.cluster.train_workers * config.cluster.cpus_per_worker, "CPU", cpus),
        ("cluster.gpus_per_worker", config.cluster.train_workers * config.cluster.gpus_per_worker, "GPU", gpus),
        ("cluster.worker_cpus", config.cluster.worker_cpus, "CPU", cpus),
    ]
    for setting, wanted, resource, there in asked:
        if wanted > there:
            raise ResourceError(f"{setting} needs {wanted:g} {resource}, the cluster has {there:g}. Lower it, or use a larger cluster.")


def divert_native_output() -> None:
    """Send what C++ code and child processes write to descriptor 2 to a file, which :func:`save_logs` keeps.

    Python's own ``sys.stderr`` stays where it was.  Ray's core writes to the descriptor past every logger.
    """
    global _native_output
    if _native_output is not None:
        return
    import tempfile

    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    _native_output = tempfile.NamedTemporaryFile(prefix="divray-", suffix=".err")  # noqa: SIM115
    os.dup2(_native_output.fileno(), 2)


def _divert_messages() -> None:
    """Send what the raylet tells every driver (retries, dead workers) the way of :func:`divert_native_output`.

    Ray prints it to ``stdout`` whatever ``log_to_driver`` says, and has no setting for it.
    """
    from ray._private import worker

    def divert(data: dict[str, Any], print_file: Any, ignore_prefix: bool = False) -> None:
        if _native_output is not None:
            os.write(2, "".join(f"{line}\n" for line in data["lines"]).encode())

    worker.print_worker_logs = divert


def save_logs(run: RunFolder) -> None:
    """Copy what Ray's and vLLM's processes on this machine said into ``logs/`` of the run folder."""
    import ray

    if not ray.is_initialized():
        return
    if _native_output is not None and (said := Path(_native_output.name).read_bytes()):
        run.write_bytes("logs/driver.err", said[-LOG_BYTES:])
    folder = Path(ray_temp_folder()) / ray.get_runtime_context().get_session_name() / "logs"
    for file in sorted([*folder.glob("worker-*.err"), *folder.glob("worker-*.out"), *folder.glob("ray-data/*.log")]):
        try:
            data = file.read_bytes()[-LOG_BYTES:]
        except OSError:
            continue
        if len(data) > LEAST_LOG_BYTES:
            run.write_bytes(f"logs/{file.name}", data)


def ray_temp_folder() -> str:
    """Where Ray keeps its sessions on this machine."""
    return os.environ.get("RAY_TMPDIR", "/tmp") + "/ray"
