"""A run on a cluster that starts with a head without CPUs, loses a machine on the way, and gives the data set of one machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from begun_runs import begin
from conftest import FASTER, Head, growing

from divray import cluster, pipeline
from divray.config import Config, load_config
from divray.datasets.stage import read_relations
from divray.extraction.sets import examples_of
from divray.layout import TEST
from divray.prompts.record import completion_of
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.sampling import run as sample

SMALL = [
    *FASTER,
    "rounds=1",
    "engine.device=cpu",
    "sampling.candidates_per_relation=12",
    "sampling.naive_candidates_per_relation=4",
    "correctness.threshold=0.0",
    "selection.k=4",
    "extraction.trials=2",
    "evaluation.llm=false",
    "evaluation.draws=1",
]


def written(config: Config, run: RunFolder) -> Any:
    """An engine that writes the task's own test sentences, for each request the same."""
    relations = {relation.name: relation for relation in read_relations(run)}
    examples = examples_of(run, TEST)

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        own = [example for example in examples if example.relation == row["relation"]]
        example = own[int(hashlib.sha256(row["candidate_id"].encode()).hexdigest(), 16) % len(own)]
        text = completion_of(relations[row["relation"]], example, bool(row["head"]), False).rstrip("\n")
        return {"completion": text, "generated_tokens": 9, "prompt_tokens": 40, "cached_tokens": 0, "finish_reason": "stop"}

    return answer


def lose_a_machine(head: Head) -> None:
    """Kill the raylet of a machine that the autoscaler has started."""
    started = [process for process in psutil.Process(head.pid).children(recursive=True) if process.name() == "raylet"]
    machines = [process for process in started if any("monitor" in word for parent in process.parents() for word in parent.cmdline())]
    assert machines
    machines[0].kill()


def whole(config: Config, uri: str, head: Head | None = None) -> pa.Table:
    """Every stage, with ``score`` on a cluster that has just lost a machine; returns the data set."""
    run = begin(config, uri)
    for stage, round_ in pipeline.schedule(config):
        if stage.name == "sample":
            cluster.prepare_cluster(config, run, [stage.name])
            counts = sample(config, run, round_, answer=written(config, run))
            assert counts["candidates"] == 6 * (12 + 4)
            run.finish(pipeline.record_name(stage, round_), 1.0, counts)
            if head:
                lose_a_machine(head)
        else:
            pipeline.run_stage(config, run, stage, round_)
    return run.read_table("dataset/data")


@pytest.mark.slow
@pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="two whole runs take minutes: set DIVRAY_TEST_LOOP=1")
def test_a_growing_cluster_gives_the_data_set_of_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    gpu = {"resources": {"CPU": 4.0, "GPU": 1.0}, "max_workers": 2}
    with growing(tmp_path, cpu={"resources": {"CPU": 2.0}, "max_workers": 2}, gpu=gpu) as head:
        config = load_config(folder() / "quickstart.yaml", [*SMALL, f"cluster.address={head.address}"])
        grown = whole(config, str(tmp_path / "grown"), head)
        assert not any(node["Resources"].get("GPU") for node in ray.nodes())  # nothing asked for one
        ray.shutdown()
    assert grown.num_rows >= 6 * 4
    assert grown == whole(load_config(folder() / "quickstart.yaml", SMALL), str(tmp_path / "one"))
    ray.shutdown()
