"""Engines on GPUs that are not there: vLLM's own configuration, and Ray's books."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from begun_runs import begun
from conftest import FASTER

from divray.config import Config, load_config
from divray.engines import Answer
from divray.engines.complete import complete
from divray.engines.pool import engines_for, make_room, stop
from divray.engines.vllm import engine_arguments
from divray.quickstart import folder
from divray.resources import engine_bundles
from divray.run_folder import RunFolder
from divray.scoring.stage import encoder_pool

SMALL = [*FASTER, "sampling.candidates_per_relation=8", "sampling.naive_candidates_per_relation=2", "engine.device=gpu", "engine.cpus=2"]


QUICKSTART = str(folder() / "quickstart.yaml")
H100 = ("NVIDIA H100", 80, QUICKSTART, ["models.llm=embedded:smollm2"])
SPREAD = ["models.llm=embedded:smollm2", "engine.vllm={tensor_parallel_size: 3, max_model_len: 1024}", "alignment.lora_rank=32"]
L4 = ("NVIDIA L4", 24, QUICKSTART, SPREAD)
PRESETS = sorted((Path(__file__).parent.parent / "examples" / "gpu").glob("*.yaml"))
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064}
QWEN |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768}
"""The shape of the presets' LLM, Qwen2.5-7B."""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """vLLM's configuration of an engine on an H100, an L4, and of each preset on a GPU of 48 GB."""
    model = tmp_path_factory.mktemp("qwen")
    (model / "config.json").write_text(json.dumps(QWEN | {"dtype": "bfloat16"}))
    cases = [H100, L4, *(("NVIDIA L40S", 48, str(preset), [f"models.llm={model}"]) for preset in PRESETS)]
    command = [sys.executable, str(Path(__file__).with_name("faked_gpu.py")), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_vllm_takes_the_arguments_and_sizes_the_batch(configured: list[dict[str, Any]]) -> None:
    common = {"device": "cuda", "trust": False, "memory": 0.92}
    large = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384, "backend": "uni", "max_model_len": 8192}
    small = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "backend": "mp", "world_size": 3, "max_model_len": 1024, "lora_rank": 32}
    for found, expected in zip(configured, (large, small), strict=False):
        assert found == {**found, **common, **expected}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_vllm_takes_the_presets(configured: list[dict[str, Any]]) -> None:
    made = {"device": "cuda", "max_num_seqs": 256, "max_model_len": 4096, "world_size": 1, "lora_rank": 16, "dtype": "torch.bfloat16"}
    assert len(configured) == 2 + len(PRESETS) == 5
    for found in configured[2:]:
        assert found == {**found, **made, "memory": 0.9, "trust": False}


def free(wanted: float, kind: str = "GPU") -> float:
    """GPUs or CPUs that Ray has to give, once they are as many as ``wanted``; Ray tells a second late."""
    import ray

    for _ in range(100):
        if ray.available_resources().get(kind, 0) == wanted:
            break
        time.sleep(0.2)
    return float(ray.available_resources().get(kind, 0))


def answering() -> Answer:
    """A function that goes to the engine as a whole: workers do not know the tests' folder."""

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        return {"completion": " A [b] c {d}.", "generated_tokens": 3, "finish_reason": "stop"}

    return answer


def passed(config: Config, run: RunFolder, target: str, answer: Answer) -> set[str]:
    """The engines of a pass over the first prompts."""
    complete(config, run, "round-00/prompts", target, config.models.llm, answer=answer)
    return set(run.read_table(target, ["engine"])["engine"].to_pylist())


def test_an_engine_of_two_gpus_outlives_its_passes_and_makes_room(four_gpus: None, uri: str) -> None:
    from ray.util import placement_group_table

    tensor_parallel = "engine.vllm={tensor_parallel_size: 2}"
    config = load_config(QUICKSTART, [*SMALL, tensor_parallel, "cluster.train_workers=1", "cluster.gpus_per_worker=2"])
    run, answer = begun(config, uri), answering()
    first = passed(config, run, "one", answer)
    assert free(2) == 2 and free(2, "CPU") == 2
    make_room(config, "align")  # it fits beside it
    assert passed(config, run, "two", answer) == first and len(first) == 1
    make_room(load_config(QUICKSTART, [*SMALL, tensor_parallel, "cluster.worker_gpus=3"]), "score")
    assert free(4) == 4
    assert passed(config, run, "three", answer).isdisjoint(first)
    assert not placement_group_table()


def test_engines_over_several_machines_have_placement_groups_until_they_end(four_gpus: None, uri: str) -> None:
    from ray.util import placement_group_table

    spread = ["engine.concurrency=2", "engine.cpus=1", "engine.vllm={tensor_parallel_size: 2, distributed_executor_backend: ray}"]
    config = load_config(QUICKSTART, [*SMALL, *spread])
    assert passed(config, begun(config, uri), "one", answering())
    groups = placement_group_table().values()
    assert [group["state"] for group in groups] == ["CREATED"] * 2
    assert [list(group["bundles"].values()) for group in groups] == [[{"CPU": 1, "GPU": 1}, {"GPU": 1}]] * 2
    assert free(2, "CPU") == 2 and free(0) == 0
    stop()
    assert free(4) == 4 and free(4, "CPU") == 4
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


def test_engines_leave_a_part_of_each_gpu_to_the_scores_of_a_wave_and_none_to_dpo(four_gpus: None, uri: str) -> None:
    small = [*SMALL, "engine.concurrency=4", "engine.cpus=0.25", "cluster.worker_cpus=0.25", "cluster.train_workers=1"]
    config = load_config(QUICKSTART, [*small, "sampling.quota=2"])
    start = partial(engines_for, config, config.models.llm, answering())
    pool = start()
    assert free(1) == 1
    make_room(config, "score", back_soon=True)
    assert start() is pool
    assert encoder_pool(config, RunFolder(uri), 10**6)[1]["compute"].max_size == 4
    make_room(config, "align")
    assert free(4) == 4
    assert engine_arguments(config, gpu=True)["gpu_memory_utilization"] == pytest.approx(0.75 * 0.92)
    whole = [load_config(QUICKSTART, [*small, *one]) for one in ([], ["sampling.quota=2", "cluster.worker_gpus=0.5"])]
    whole.append(load_config(QUICKSTART, [*small, "sampling.quota=2", "engine.vllm.gpu_memory_utilization=0.9"]))
    assert all(engine_bundles(one) == [{"CPU": 0.25, "GPU": 1}] for one in whole)


def test_an_engine_that_has_no_place_is_not_waited_for_at_the_end(four_gpus: None, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from divray.engines import pool

    config = load_config(QUICKSTART, [*SMALL, "engine.concurrency=[1, 2]", "engine.vllm={tensor_parallel_size: 3}"])
    passed(config, begun(config, uri), "one", answering())
    waited: list[tuple[int, int]] = []

    def wait(references: list[Any], *, num_returns: int, timeout: float) -> Any:
        done, left = real(references, num_returns=num_returns, timeout=timeout)
        waited.append((num_returns, len(done)))
        return done, left

    real = ray.wait
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(pool, "CLOSING_SECONDS", 10)
    pool.stop()
    assert waited == [(1, 1)]
    assert free(4) == 4
