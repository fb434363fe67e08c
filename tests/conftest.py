"""Fixtures shared by the tests: the quick-start task, a Ray of two CPUs, a run folder on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
