"""The sampling pass while an engine's actor and its node are killed; for vLLM's own process see ``test_engine.py``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from begun_runs import Strike, begun, engine_actor, quickstart_with
from conftest import FASTER

from divray.config import Config
from divray.run_folder import RunFolder
from divray.sampling import run as sample
from divray.schemas import COMPLETIONS

SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=5",
    "sampling.naive_candidates_per_relation=0",
    "sampling.max_tokens=64",
    "engine.batch_size=8",
    "engine.vllm={max_num_seqs: 8}",
]
TOTAL = 6 * 5
PLAYED = ["completion", "generated_tokens", "prompt_tokens", "cached_tokens", "finish_reason", "error"]
settings = partial(quickstart_with, *SMALL)


def engine_starts(run: RunFolder) -> int:
    (record,) = (run.read_json(name) for name in run.files("round-00/completions.engines"))
    return len(record["engines"])


def undisturbed(config: Config, run: RunFolder, uri: str) -> pa.Table:
    """The samples of a pass without faults in which the engine gives the completions of ``run``."""
    rows = {row["candidate_id"]: row for row in run.read_table("round-00/completions").to_pylist()}
    answers = {name: {column: row[column] for column in PLAYED} for name, row in rows.items()}
    other = begun(config, uri)
    sample(config, other, 0, answer=lambda row: answers[row["candidate_id"]])
    return other.read_table("round-00/samples")


def check(config: Config, run: RunFolder, counts: dict[str, Any], uri: str) -> None:
    """No candidate is lost or there twice, none failed, and the table is that of an undisturbed pass."""
    completions = run.read_table("round-00/completions")
    assert completions.schema.names == COMPLETIONS.names
    asked = sorted(run.read_table("round-00/prompts", ["candidate_id"])["candidate_id"].to_pylist())
    assert sorted(completions["candidate_id"].to_pylist()) == asked
    assert len(asked) == TOTAL
    assert set(completions["error"].to_pylist()) == {""}
    assert counts["candidates"] == TOTAL
    assert not counts["rejections"].keys() & {"engine_error", "rejected_request", "empty"}
    assert undisturbed(config, run, uri) == run.read_table("round-00/samples")


def test_actor_killed(ray_two_cpus: None, uri: str) -> None:
    """With a slow function in it: how an actor ends and is started again has nothing to do with what it holds."""
    config = settings()
    run = begun(config, uri)

    def slow(row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.5)
        return dict(zip(PLAYED, (f" {row['candidate_id']} storm\nTail: flood", 9, 40, 0, "stop", ""), strict=True))

    counts = sample(config, run, 0, on_progress=Strike(run, engine_actor), answer=slow)
    check(config, run, counts, f"{uri}-undisturbed")
    assert engine_starts(run) == 2


@pytest.fixture
def three_nodes() -> Iterator[None]:
    """A head that is too small for an engine, and two nodes beside it."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")  # while the head is the only node to join
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="minutes of work: set DIVRAY_TEST_LOOP=1")
def test_node_killed(three_nodes: None, uri: str) -> None:
    from divray.cluster import connect

    config = settings("engine.cpus=1.5")
    connect(config)
    run = begun(config, uri)
    killed: list[int] = []

    def strike(done: int, total: int, note: str) -> None:
        if not killed and done >= TOTAL // 3 and not note:
            raylet = engine_actor(run).parent()
            assert raylet is not None
            assert "raylet" in raylet.name()
            raylet.kill()
            killed.append(raylet.pid)

    counts = sample(config, run, 0, on_progress=strike)
    assert len(killed) == 1
    check(config, run, counts, f"{uri}-undisturbed")
