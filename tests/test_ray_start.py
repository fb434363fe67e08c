from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from divray import cluster
from divray.cli import main
from divray.config import load_config
from divray.errors import DivrayError, InputError, ResourceError, own_error
from divray.models import local_model
from divray.quickstart import folder


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NotADirectoryError(20, "Not a directory", "/nowhere/.ray"), "[Errno 20] Not a directory: '/nowhere/.ray'"),
        (Exception("The node timed out.\nIts raylet …"), "The node timed out."),
        (Exception(), "Exception"),
    ],
)
def test_where_ray_does_not_start_one_line_says_why_and_what_to_do(error: Exception, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**options: Any) -> None:
        raise error

    import ray

    ray.shutdown()
    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    line = rf"^Ray did not start \({re.escape(why)}\); its logs lie in \S+ Try again; HOME and RAY_TMPDIR must be folders"
    with pytest.raises(ResourceError, match=line) as caught:
        cluster.connect(load_config(folder() / "quickstart.yaml"))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("environment", "printed"), [(cluster.RAY_ENVIRONMENT, ""), ({}, "A worker died")])
def test_what_the_raylet_tells_a_driver_is_not_printed(environment: dict[str, str], printed: str) -> None:
    from ray._private import worker

    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    told = {"lines": ["A worker died"], "pid": "raylet", "is_err": False}
    code = f"from ray._private import worker; worker.print_to_stdstream({told}, ignore_prefix=False)"
    own = {name: value for name, value in os.environ.items() if name not in cluster.RAY_ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], env=own | environment, capture_output=True, text=True, timeout=60, check=True)
    assert printed in done.stdout and bool(done.stdout) == bool(printed)


@pytest.mark.parametrize("error", [InputError("a.jsonl", "line 2", "is wrong", "Mend it."), ResourceError("HOME is sealed.")])
def test_an_error_in_ray_data_is_the_one_line_that_it_was(
    error: DivrayError, ray_two_cpus: None, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray.data

    def fails(row: dict[str, Any]) -> dict[str, Any]:
        raise error

    with pytest.raises(Exception, match=str(error)) as caught:
        ray.data.range(1).map(fails).materialize()
    own = own_error(caught.value)
    assert type(own) is type(error) and str(own) == str(error)
    assert "ERROR" not in capfd.readouterr().err


def test_a_home_that_is_no_folder_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    monkeypatch.setenv("DIVRAY_CACHE", "/dev/null/cache")
    with pytest.raises(ResourceError, match="DIVRAY_CACHE: /dev/null/cache/models: "):
        local_model("embedded:smollm2")
    monkeypatch.delenv("DIVRAY_CACHE")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 110)))
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "local")
    assert main(["preview", str(folder() / "quickstart.yaml")]) == 3
    assert capsys.readouterr().err.startswith("error: Ray did not start (validate_socket_filename failed: AF_UNIX path length")
    assert not ray.is_initialized() and cluster.ray_temp_folder().startswith(str(tmp_path))


def test_a_workers_error_is_the_one_line_that_it_was() -> None:
    from ray.exceptions import RayTaskError, UserCodeException

    inner = InputError("a.jsonl", "line 2", "is wrong", "Mend it.")
    wrapped = RayTaskError("f", "Traceback …", inner)
    assert own_error(wrapped) is inner and own_error(wrapped.as_instanceof_cause()) is inner
    user = UserCodeException("UDF failed")
    user.__cause__ = inner
    assert own_error(RayTaskError("f", "Traceback …", user)) is inner
    other = ValueError("x")
    assert own_error(other) is other
