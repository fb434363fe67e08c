"""The entry scripts under ``ray job submit`` from a clean clone, against a head that was started elsewhere."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Submit

from divray.config import Config, dump_config, load_config
from divray.errors import InputError
from divray.pipeline import open_run
from divray.quickstart import folder
from divray.run_folder import RunFolder

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's files as they are under version control, and nothing else."""
    files = subprocess.run(["git", "ls-files", "-z", "divray", "jobs", "pyproject.toml"], cwd=ROOT, capture_output=True, check=True)
    for name in files.stdout.decode().split("\0")[:-1]:
        if (source := ROOT / name).is_file():
            target = tmp_path / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path / "clone"


@pytest.mark.slow
def test_the_documented_line_runs_from_a_clone_and_a_failed_job_ends_non_zero(submit: Submit, clone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # The same variables that a driver passes on: Ray takes each from one of the two only.
    variables = {"HF_TOKEN": "t", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    options = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables})]
    with ThreadPoolExecutor(2) as jobs:
        stage = ["jobs/stage.py", "prepare", str(out), "--config", "divray/quickstart/quickstart.yaml"]
        wrong = ["jobs/pipeline.py", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "other")]
        good, bad = jobs.map(lambda arguments: submit(*arguments, options=options, cwd=clone), (stage, wrong))
    assert good.returncode == 0, good.stdout + good.stderr
    assert RunFolder(str(out)).record("prepare")["counts"]["seeds"] == 30  # type: ignore[index]
    assert "/working_dir_files/" in (out / "config.yaml").read_text()  # the data that the job brought with it
    assert bad.returncode == 1
    assert "no such file" in bad.stdout + bad.stderr
    assert not (tmp_path / "other").exists()


def test_data_that_a_job_brings_may_lie_elsewhere_when_it_is_submitted_again(tmp_path: Path) -> None:
    def brought(session: str, package: str) -> Config:
        place = f"/tmp/ray/{session}/runtime_resources/working_dir_files/_ray_pkg_{package}/mine"
        return load_config(folder() / "quickstart.yaml", [f"task.data={place}", f"task.relations={place}/relations.yaml"])

    first = brought("session_1", "0a")
    RunFolder(str(tmp_path)).write_text("config.yaml", dump_config(first))
    assert open_run(brought("session_2", "0b"), str(tmp_path)).exists("config.yaml")
    with pytest.raises(InputError, match=r"task\.(data|relations): the run was begun with"):
        open_run(load_config(folder() / "quickstart.yaml", ["task.relations=/other/relations.yaml"]), str(tmp_path))
