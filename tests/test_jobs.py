"""The entry scripts under ``ray job submit`` against a local head, and the cluster file."""

from __future__ import annotations

import copy
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
import yaml

from divray.quickstart import folder
from divray.runs import RunFolder

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
Submit = Callable[..., "subprocess.CompletedProcess[str]"]


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

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--address", address, "--", sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

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


@pytest.mark.slow
def test_a_job_runs_a_stage_and_a_failed_job_ends_non_zero(submit: Submit, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good = submit(str(ROOT / "jobs" / "stage.py"), "prepare", str(out), "--config", str(folder() / "quickstart.yaml"))
    assert good.returncode == 0, good.stdout + good.stderr
    assert RunFolder(str(out)).record("prepare")["counts"]["seeds"] == 30  # type: ignore[index]
    bad = submit(str(ROOT / "jobs" / "pipeline.py"), str(tmp_path / "none.yaml"), "--out", str(tmp_path / "other"))
    assert bad.returncode != 0
    assert "no such file" in bad.stdout + bad.stderr
    assert not (tmp_path / "other").exists()


def test_the_cluster_file_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
