"""Stages while a machine that works for them is lost: its raylet and workers are killed.  For ``sample`` see ``test_faults.py``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from begun_runs import losing_a_machine, quickstart_with
from test_alignment import EPOCHS, LATE, align, curve, folder_with, pairs_table
from test_alignment import settings as dpo_settings
from test_extraction_stages import settings as re_settings
from test_extraction_stages import small_run
from test_scoring import prepare, samples_of, score

from divray.extraction import evaluation, search
from divray.run_folder import RunFolder
from divray.stages import Progress

Made = tuple[Any, Any]
"""What a stage gives: what is the same each time, and numbers that rounding may change."""
ANSWERED = ["set", "draw", "example_id", "gold", "predicted"]
"""Not the probabilities: which sentences a trainer encodes together changes their last digits, also where no machine is lost."""
LOOP = pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="minutes of work: set DIVRAY_TEST_LOOP=1")


class Machines:
    """A Ray of a head without CPUs, which is not lost, and two machines with two CPUs each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        from divray.cluster import connect

        self.missing = 2
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        connect(quickstart_with(f"cluster.address={self.cluster.address}"))  # while the head is the only node to join
        self.fill()

    def fill(self) -> None:
        for _ in range(self.missing):
            self.cluster.add_node(num_cpus=2)
        self.missing = 0


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    import ray

    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "500")  # a lost machine is missed sooner
        there = Machines()
        yield there
        ray.shutdown()
        there.cluster.shutdown()


def scored(path: Path, model: Path, told: Progress | None) -> Made:
    config, run = quickstart_with("correctness.fluency=null"), RunFolder(str(path))
    prepare(config, run)
    run.write_table("round-00/samples", samples_of(config))
    return (score(config, run, 0, told), run.read_table("round-00/scores")), []


def aligned(path: Path, model: Path, told: Progress | None) -> Made:
    from safetensors.numpy import load_file

    run = folder_with(path, pairs_table(24))
    counts = align(dpo_settings(model, epochs=EPOCHS), run, 1, told)
    weights = load_file(run.path("round-01/policy/model.safetensors"))
    return (counts["steps"], list(weights)), np.concatenate([curve(run, "loss"), *(weight.ravel() for weight in weights.values())])


def tuned(path: Path, model: Path, told: Progress | None) -> Made:
    run = small_run(path)
    return (search.run(re_settings(), run, 0, told), run.read_json("search.json")), []


def evaluated(path: Path, model: Path, told: Progress | None) -> Made:
    run = small_run(path)
    counts = evaluation.run(re_settings(), run, 0, told)
    return (counts, run.read_json("evaluation.json"), run.read_table("evaluation/predictions", ANSWERED)), []


@pytest.fixture(scope="module")
def undisturbed() -> dict[Any, Made]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "work", "least"),
    [
        pytest.param(scored, "_Features", 0, marks=LOOP),
        (scored, "_scored_pool", 0),
        pytest.param(aligned, "RayTrainWorker", LATE, marks=LOOP),
        pytest.param(tuned, "_answers", 0, marks=LOOP),
        pytest.param(evaluated, "_Trainer", 1, marks=LOOP),
    ],
)
def test_a_stage_that_loses_a_machine_gives_what_it_gives_otherwise(
    machines: Machines,
    undisturbed: dict[Any, Made],
    tmp_path: Path,
    tiny_model: Path,
    stage: Callable[[Path, Path, Progress | None], Made],
    work: str,
    least: int,
) -> None:
    machines.fill()
    if stage not in undisturbed:
        undisturbed[stage] = stage(tmp_path / "undisturbed", tiny_model, None)
    machines.missing = 1
    with losing_a_machine(work, least) as told:
        made = stage(tmp_path / "run", tiny_model, told)
    (exact, near), (as_exact, as_near) = made, undisturbed[stage]
    assert exact == as_exact
    np.testing.assert_allclose(near, as_near, rtol=0, atol=1e-5)
