"""Fixtures shared by the tests: the quick-start task, a Ray of two CPUs, a run folder on disk, a head that takes jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from divray.config import Config, load_config
from divray.quickstart import folder

# A loaded machine is no failure.
settings.register_profile("divray", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("divray")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RAY = str(Path(sys.executable).parent / "ray")
FASTER = ["models.llm=embedded:smollm2", "correctness.fluency=null", "correctness.reader=embedded:smollm2"]
"""Settings of runs that are about something else than what they write."""
Submit = Callable[..., "subprocess.CompletedProcess[str]"]
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin while they wait take the cores of the tests beside them
os.environ["RAY_AUTH_MODE"] = "disabled"  # a process keeps the mode that its first cluster had
# Autoscaler v2 as `ray up` and KubeRay set it; a process keeps the version that its first cluster had.
os.environ.update(RAY_metrics_report_interval_ms="1000", RAY_enable_autoscaler_v2="1")
os.environ["RAY_ADDRESS"] = "local"  # a cluster of the tests' own, whatever else runs on the machine


@pytest.fixture(scope="session")
def quickstart() -> Config:
    """The quick-start settings, with the faster of its LLMs."""
    return load_config(folder() / "quickstart.yaml", FASTER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files whose tests share one Ray come first: those after them start clusters of their own."""
    sharing = {item.path for item in items if "ray_two_cpus" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in sharing)


@pytest.fixture(scope="module")
def ray_two_cpus(quickstart: Config) -> Iterator[None]:
    """A local Ray of two CPUs, connected to as the command does, but without a dashboard; modules share it, and leave no engine."""
    import ray

    from divray.cluster import connect
    from divray.engines.pool import stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", partial(ray.init, num_cpus=2, include_dashboard=False))
        connect(quickstart)
    yield
    stop()


@pytest.fixture
def four_gpus() -> Iterator[None]:
    """A Ray that takes this machine to have them."""
    import ray

    from divray.cluster import WORKER_ENVIRONMENT, quiet_ray_data

    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WORKER_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        quiet_ray_data()
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLM of two layers, with a real tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from divray.models import local_model

    target = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(local_model("embedded:smollm2"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URI of an empty bucket on an S3 server on loopback, which child processes reach, too."""
    server_module = pytest.importorskip("moto.server")
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1")):
            patch.setenv(name, value)
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="divray")
        yield f"s3://divray/runs/1?endpoint_override={host}:{port}&scheme=http"
        server.stop()


def missing_metrics(told: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those of ``told`` whose words no line of Ray's Prometheus endpoint holds together; Ray exports every now and then."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 240
    while True:
        lines: list[str] = []
        with suppress(OSError), urllib.request.urlopen(address, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        missing = [words for words in told if not any(all(word in line for word in words) for line in lines)]
        if not missing or time.monotonic() > end:
            return missing
        time.sleep(0.5)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """End the driver as ``kill -9`` does, and the Ray that it had started, which would end by itself more slowly."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        if child.is_running():
            child.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


@dataclass(frozen=True)
class Head:
    """A running ``ray start --head``: its process, where drivers and where jobs go, and the environment of clients."""

    pid: int
    address: str
    dashboard: str
    environment: dict[str, str]


@contextmanager
def ray_head(folder: Path, *options: str, port: int = 0, **variables: str) -> Iterator[Head]:
    """A head of its own on loopback, started in ``folder``; gone at the end with all that it started."""
    import psutil

    port, dashboard = port or free_port(), free_port()
    # A token that lies on a machine would otherwise be asked of the clients.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **variables}
    for name in ("RAY_ADDRESS", "PYTHONPATH"):
        environment.pop(name, None)
    start = [RAY, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", *options]
    start += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    start += [f"--dashboard-agent-listen-port={free_port()}"]  # the default one belongs to any other Ray on this machine
    # A job joins the cluster that started last of those that share this folder.
    temporary = environment["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray")
    said = folder / "head.log"
    with said.open("wb") as log:
        head = subprocess.Popen(start, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and head.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        else:
            pytest.fail(f"no Ray head: {said.read_text()[-2000:]}")
        yield Head(head.pid, f"127.0.0.1:{port}", address, environment)
    finally:
        whole = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)] if head.poll() is None else []
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
        for process in whole:
            with suppress(psutil.Error):
                process.kill()
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def growing(folder: Path, **machines: dict[str, Any]) -> Iterator[Head]:
    """A head without CPUs that starts machines (name -> resources and max_workers) as they are asked for."""
    port = free_port()
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "head_node_id": HEAD_ID, "launch_multiple": True}
    provider |= {"gcs_address": f"127.0.0.1:{port}", "use_node_id_as_ip": True, "disable_node_updaters": True}
    types = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    types |= {name: {"node_config": {}, "min_workers": 0, **machine} for name, machine in machines.items()}
    plan: dict[str, Any] = {"cluster_name": "growing", "max_workers": 8, "idle_timeout_minutes": 0.1, "upscaling_speed": 20.0}
    plan |= {"provider": {**provider, "disable_launch_config_check": True}, "available_node_types": types}
    plan |= {"head_node_type": "ray.head.default", "auth": {}, "file_mounts": {}, "cluster_synced_files": []}
    commands = [f"{kind}setup_commands" for kind in ("", "head_", "worker_")] + [
        f"{kind}_start_ray_commands" for kind in ("head", "worker")
    ]
    plan |= {name: [] for name in ("rsync_exclude", "rsync_filter", "initialization_commands", *commands)}
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(plan))
    variables = {"RAY_FAKE_CLUSTER": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    variables |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_worker_niceness": "0"}
    with ray_head(folder, "--num-cpus=0", f"--autoscaling-config={file}", port=port, **variables) as head:
        yield head


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    """``ray job submit`` to a head of its own, which was started in another folder than the project's."""
    with ray_head(tmp_path_factory.mktemp("head"), "--num-cpus=2") as head:

        def run(
            *arguments: str, timeout: float = 300, options: Sequence[str] = (), cwd: Path | None = None
        ) -> subprocess.CompletedProcess[str]:
            command = [RAY, "job", "submit", "--address", head.dashboard, *options, "--", sys.executable, *arguments]
            for _ in range(40):
                done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd)
                if "No available agent" not in done.stdout + done.stderr:  # the head answers before it takes jobs
                    break
                time.sleep(0.5)
            return done

        yield run
