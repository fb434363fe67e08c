"""A run on the machines of ``cluster.yaml``, which come as they are needed, with one lost on the way: the data set of one machine."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from begun_runs import begin, losing_a_machine
from conftest import FASTER, growing

from divray import cluster, pipeline, resources
from divray.config import Config, load_config
from divray.datasets.stage import read_relations
from divray.extraction.sets import examples_of
from divray.layout import TEST
from divray.prompts.record import completion_of
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.sampling import run as sample

TYPES: dict[str, Any] = yaml.safe_load((Path(__file__).parent.parent / "cluster.yaml").read_text())["available_node_types"]
SMALL = [
    *FASTER,
    "engine.device=cpu",
    "sampling.candidates_per_relation=8",
    "sampling.naive_candidates_per_relation=4",
    "correctness.threshold=0.0",
    "preferences.max_pairs_per_relation=2",
    "selection.k=4",
    "extraction.trials=1",
    "evaluation.llm=false",
    "evaluation.draws=1",
]
SPREAD = ["engine.concurrency=3", "engine.cpus=5", "cluster.cpus_per_worker=5", "cluster.worker_cpus=2"]
"""Three engines and two DPO workers, each of which takes more than half of a machine."""


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


def whole(config: Config, uri: str, lose: str = "") -> pa.Table:
    """Every stage, and the machine on which ``lose`` begins is lost in the first ``score``; without ``lose``, every stage up to the data
    set.  Returns the data set."""
    run = begin(config, uri)
    for stage, round_ in pipeline.schedule(config):
        if stage.name == "sample":
            cluster.prepare_cluster(config, run, [stage.name])
            assert len(resources.machines_there()) > config.engine.pool[1] or not lose
            counts = sample(config, run, round_, answer=written(config, run))
            assert counts["candidates"] == 6 * (8 + (0 if round_ else 4))
            run.finish(pipeline.record_name(stage, round_), 1.0, counts)
        else:
            lost = lose and (stage.name, round_) == ("score", 0)
            with losing_a_machine(lose) if lost else nullcontext():
                pipeline.run_stage(config, run, stage, round_)
        if not lose and stage.name == "select":
            break
    return run.read_table("dataset/data")


@pytest.mark.slow
@pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="two whole runs take minutes: set DIVRAY_TEST_LOOP=1")
def test_a_growing_cluster_gives_the_data_set_of_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    machines = {name: {key: kind[key] for key in ("resources", "max_workers")} for name, kind in TYPES.items() if name != "head"}
    assert TYPES["head"]["resources"] == {"CPU": 0}  # as that of the tests
    settings = [*SMALL, f"models.llm={tiny_model}"]
    with growing(tmp_path, **machines) as head:
        config = load_config(folder() / "quickstart.yaml", [*settings, *SPREAD, f"cluster.address={head.address}"])
        cluster.connect(config)
        assert len(resources.machines_there()) == 1
        grown = whole(config, str(tmp_path / "grown"), lose="_Features")
        assert not any(node["Resources"].get("GPU") for node in ray.nodes())  # nothing asked for one
        deadline = time.monotonic() + 90
        while len(resources.machines_there()) > 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(resources.machines_there()) == 1
        ray.shutdown()
    assert grown.num_rows >= 6 * 4
    assert grown == whole(load_config(folder() / "quickstart.yaml", settings), str(tmp_path / "one"))
    ray.shutdown()
