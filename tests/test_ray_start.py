from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from divray import cluster
from divray.cli import main
from divray.cluster import starting_ray
from divray.errors import DivrayError, InputError, ResourceError, own_error
from divray.models import local_model
from divray.quickstart import folder


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NotADirectoryError(20, "Not a directory", "/nowhere/.ray"), "HOME: /nowhere/.ray: Not a directory"),
        (PermissionError(13, "Permission denied", "/nowhere/a/b"), "HOME: /nowhere/a/b: Permission denied"),
        (OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x"), "RAY_TMPDIR is too long a path"),
        (PermissionError(13, "Permission denied", "/sealed/ray"), "RAY_TMPDIR: /sealed/ray: Permission denied"),
        (OSError(28, "No space left on device"), "RAY_TMPDIR: Ray: No space left on device"),
    ],
)
def test_the_variable_at_fault_is_named(error: OSError, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ResourceError, match=line) as caught, starting_ray():
        raise error
    assert "Set it to" in str(caught.value) and caught.value.exit_code == 3


def test_ray_s_own_words_are_one_line() -> None:
    with pytest.raises(ResourceError, match=r"^Ray did not start .The node timed out.*logs.*again.$"), starting_ray():
        raise Exception("The node timed out.\nIts raylet …")
    with pytest.raises(InputError), starting_ray():
        raise InputError("cluster.address", "x", "is none", "Give another.")


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
    assert capsys.readouterr().err.startswith("error: RAY_TMPDIR is too long a path")
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
