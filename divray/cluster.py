"""Connect to Ray without its output on the terminal; where no cluster is at an address, the error is one line."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from divray.config import Config
from divray.errors import InputError, ResourceError
from divray.resources import provide
from divray.run_folder import RunFolder

LOG_BYTES, LEAST_LOG_BYTES = 1 << 20, 200
"""What is kept of a log; a smaller log holds only the lines that Ray begins every log with."""

_native_output: IO[bytes] | None = None

WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A task that holds no GPU sees none: CUDA_VISIBLE_DEVICES is empty in it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
"""Set in every worker unless the user's own environment says otherwise."""

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # At Ray's default of 15, its dashboard and the driver take the core from the model whenever they wake.
    "RAY_worker_niceness": "0",
    # At Ray's default of one second, idle workers end before the engine has started, and start again beside the model.
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
    # Despite `log_to_driver`, Ray prints the raylet's messages (retries, dead workers) to stdout. It drops lines that match: here, all.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
}
"""Set before Ray is imported and starts on this machine, unless the user's own environment says otherwise."""
for _name, _value in RAY_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

PASSED_ON = ("HF_", "DIVRAY_", "VLLM_", "AWS_", "DS_", "TORCH_EXTENSIONS_DIR")
"""Prefixes of the driver's variables that the workers of a cluster get too; workers that the driver starts itself inherit all."""

NEVER_UNASKED = re.compile("TOKEN|SECRET|KEY|PASSWORD|CREDENTIAL|^AWS_PROFILE$|^AWS_CONFIG_FILE$")
"""Passed on only if the user names them: secrets, since the dashboard shows a runtime env, and what refers to the driver's disk."""

LOCAL = "local"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0


def connect(config: Config) -> None:
    """Join the cluster, or start one on this machine; does nothing where already connected.

    Raises:
        InputError: A driver cannot join the address.
        ResourceError: There is no cluster at the address, or Ray does not start on this machine.
    """
    import ray

    if ray.is_initialized():
        return
    defaults, own = dict(WORKER_ENVIRONMENT), config.correctness
    models = (config.models.llm, config.models.encoder, own.reader, own.fluency, own.llm)
    if all(reference is None or reference.startswith(("embedded:", "endpoint")) for reference in models):
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    address = _address(config)
    if address not in (LOCAL, "auto"):
        _answers(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address != LOCAL:
        options["runtime_env"] = {"env_vars": passed_on(config.cluster.environment)}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray's timeout has no exception type of its own
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address != LOCAL:
            hint = "Start one with `ray start --head`; if it asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN as on the head."
            raise ResourceError(f"no Ray cluster that can be joined at cluster.address {address} ({why}). {hint}") from None
        hint = "Try again; HOME and RAY_TMPDIR must be folders that can be written, RAY_TMPDIR a short path."
        raise ResourceError(f"Ray did not start ({why}); its logs lie in {ray_temp_folder()}/session_latest/logs. {hint}") from error
    quiet_ray_data()


def _address(config: Config) -> str:
    """The user's address, else :data:`LOCAL`: Ray joins no cluster only because it runs, or ran, on this machine."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS") or LOCAL


def _answers(address: str) -> None:
    """Raise unless something that may be Ray listens: Ray itself would try for minutes and say nothing."""
    import grpc

    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        fix = "Give one such as 10.0.0.1:6379, or `auto`; from elsewhere: `ray job submit --address … -- python jobs/pipeline.py …`."
        raise InputError("cluster.address", address, "a driver joins a cluster by HOST:PORT, from a machine of the cluster", fix)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        if not os.environ.get("RAY_USE_TLS"):
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
    except (OSError, OverflowError, grpc.FutureTimeoutError) as error:
        why = "what listens there is no Ray head" if isinstance(error, grpc.FutureTimeoutError) else error
        hint = "Start one with `ray start --head`, or drop the address."
        raise ResourceError(f"no Ray cluster at cluster.address {address} ({why}). {hint}") from None


def passed_on(more: Sequence[str] = ()) -> dict[str, str]:
    """The driver's variables that workers on other machines get: no secret unless ``more`` names it, and none that the job has already."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    there = (job.get("runtime_env") or {}).get("env_vars") or {}
    own = {name for name in os.environ if (name in WORKER_ENVIRONMENT or name.startswith(PASSED_ON)) and not NEVER_UNASKED.search(name)}
    return {name: value for name, value in os.environ.items() if name in own.union(more) and name not in there}


def prepare_cluster(config: Config, run: RunFolder, stages: Iterable[str]) -> None:
    """Connect, then check that the cluster has what the stages ask for and that each machine sees the run folder.

    Raises:
        InputError: A driver cannot join the address, or the run folder is a path that another machine does not share.
        ResourceError: There is no cluster, or it can't give what a stage asks for.
    """
    connect(config)
    try:
        require_shared(run)  # before machines are waited for
        provide(config, stages, grows=_address(config) != LOCAL)
        require_shared(run)
    except BaseException:
        release_cluster(config)
        raise


def release_cluster(config: Config) -> None:
    """Release the machines that a stage of this driver asked for."""
    import ray
    from ray.autoscaler.sdk import request_resources

    if ray.is_initialized() and _address(config) != LOCAL:
        request_resources(bundles=[])


def require_shared(run: RunFolder) -> None:
    """If the run folder is a path, have every other machine look for a marker in it; :class:`InputError` if one does not see it."""
    if run.fs.type_name != LOCAL or not _others():
        return
    marker = f".marker-{uuid.uuid4().hex}"
    run.write_text(marker, "")
    try:
        for address, seen in _on_others(os.path.exists, run.path(marker)):
            if not seen:
                fix = "Give a URI (s3://…, gs://…), or a path on a shared disk; to preview, --folder."
                raise InputError(run.uri, "", f"the machine {address} of the cluster does not see this folder", fix)
    finally:
        run.delete(marker)


def _others() -> dict[str, str]:
    """Id of each other live machine -> its address."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here}


def _on_others(function: Callable[..., Any], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """Call a function on every other machine; yield address and result of each, but none of one that has left or is too busy to answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: str) -> Any:
        place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=place).remote(*arguments)

    for address, answer in [(address, ask(node)) for node, address in _others().items()]:
        with suppress(ray.exceptions.RayError):
            yield address, ray.get(answer, timeout=ANSWER_SECONDS)


def quiet_ray_data() -> None:
    """Keep Ray Data's bars and lines off the terminal, and leave a worker's error as it is."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else a worker's error comes as "UDF failed"
    for name in ("ray", "ray.data", "ray.tune", "ray.train", "vllm", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:  # an error also raises; Ray Data's log file has all lines
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)


def divert_native_output() -> None:
    """Redirect file descriptor 2, where C++ code and child processes write, to a file that :func:`save_logs` keeps.

    Python's own ``sys.stderr`` stays where it was.  Ray's core uses no logger: it writes to the descriptor.
    """
    global _native_output
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    _native_output = tempfile.TemporaryFile()  # noqa: SIM115 - without a name, so that nothing is left of it
    os.dup2(_native_output.fileno(), 2)


def save_logs(run: RunFolder) -> None:
    """Copy the output of Ray's and vLLM's processes to ``logs/`` in the run folder, that of another machine to ``logs/<address>/``."""
    import ray

    if not ray.is_initialized():
        return
    if _native_output is not None and (size := os.fstat(_native_output.fileno()).st_size):
        run.write_bytes("logs/driver.err", os.pread(_native_output.fileno(), LOG_BYTES, max(size - LOG_BYTES, 0)))
    session, own = ray.get_runtime_context().get_session_name(), ray.util.get_node_ip_address()
    for address, tails in [(own, _log_tails(session)), *_on_others(_log_tails, session)]:
        for name, data in tails.items():
            run.write_bytes(f"logs/{name}" if address == own else f"logs/{address}/{name}", data)


def _log_tails(session: str) -> dict[str, bytes]:
    """The ends of the logs of a Ray session on this machine, by file name."""
    folder, found = Path(ray_temp_folder()) / session / "logs", {}
    for file in sorted(file for name in ("worker-*", "raylet.*", "python-core-driver-*", "ray-data/*.log") for file in folder.glob(name)):
        with suppress(OSError):
            found[file.name] = file.read_bytes()[-LOG_BYTES:]
    return {name: data for name, data in found.items() if len(data) > LEAST_LOG_BYTES}


def ray_temp_folder() -> str:
    """Where Ray keeps its sessions on this machine."""
    return os.environ.get("RAY_TMPDIR", "/tmp") + "/ray"
