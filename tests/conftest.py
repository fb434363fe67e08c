"""Fixtures shared by the tests: the quick-start task, a Ray of two CPUs, a run folder on disk, a head that takes jobs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

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
Submit = Callable[..., "subprocess.CompletedProcess[str]"]
os.environ["RAY_ADDRESS"] = "local"  # a cluster of the tests' own, whatever else runs on the machine


@pytest.fixture(scope="session")
def quickstart() -> Config:
    """The quick-start settings as they ship."""
    return load_config(folder() / "quickstart.yaml")


@pytest.fixture(scope="module")
def ray_two_cpus(quickstart: Config) -> Iterator[None]:
    """A local Ray of two CPUs, connected to as the command does; gone at the end of the module."""
    import ray

    from divray.cluster import connect

    if ray.is_initialized():
        ray.shutdown()
    connect(quickstart)
    yield
    ray.shutdown()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def exported(words: str) -> list[str]:
    """Divray's lines on Ray's Prometheus endpoint, once one of them holds ``words``; Ray exports every few seconds."""
    import ray

    (node,) = ray.nodes()
    lines: list[str] = []
    for _ in range(80):
        with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=5) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_divray_")]
        if any(words in line for line in lines):
            break
        time.sleep(1)
    return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    """``ray job submit`` to a head of its own on loopback."""
    port, dashboard = free_port(), free_port()
    # A token that lies on a machine would otherwise be asked of the clients.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    start = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--node-ip-address=127.0.0.1"]
    start += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    start += [f"--dashboard-agent-listen-port={free_port()}"]  # the default one belongs to any other Ray on this machine
    said = tmp_path_factory.mktemp("head") / "log"
    with said.open("wb") as log:
        head = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5)
            break
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    else:
        head.kill()
        pytest.fail(f"no Ray head: {said.read_text()[-2000:]}")

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--address", address, "--", sys.executable, *arguments]
        for _ in range(40):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
            if "No available agent" not in done.stdout + done.stderr:  # the head answers before it takes jobs
                break
            time.sleep(3)
        return done

    yield run
    import psutil

    children = psutil.Process(head.pid).children(recursive=True)
    os.killpg(head.pid, signal.SIGTERM)
    for child in [*children, psutil.Process(head.pid)]:
        if child.is_running():
            child.kill()
    head.wait()
    current = Path("/tmp/ray/ray_current_cluster")
    if current.is_file() and current.read_text().strip().endswith(f":{port}"):
        current.unlink()
