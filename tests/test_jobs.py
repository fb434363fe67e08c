"""The entry scripts under ``ray job submit`` against a local head, and the cluster file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from conftest import Submit

from divray.quickstart import folder
from divray.runs import RunFolder

ROOT = Path(__file__).parent.parent


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
