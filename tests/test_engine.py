"""The sampling pass on the real vLLM under the real Ray, with two CPUs."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from begun_runs import Strike, engine_process, quickstart_with
from conftest import FASTER

from divray.datasets.stage import examples_table, load_task
from divray.datasets.stage import run as prepare
from divray.engines import EngineDied
from divray.engines.actor import EngineHealth
from divray.engines.complete import complete, requests_of
from divray.engines.vllm import engine_arguments, engine_threads, sampling_parameters
from divray.errors import EngineError
from divray.layout import Round
from divray.models import local_model
from divray.prompts import request_rows, write_prompts
from divray.prompts.parsing import form_of
from divray.run_folder import RunFolder
from divray.sampling import forget_failed, parse_batch, policy_model
from divray.sampling import run as sample
from divray.schemas import COMPLETIONS, SAMPLES

SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=5",
    "sampling.naive_candidates_per_relation=0",
    "sampling.max_tokens=48",
    "engine.batch_size=8",
]
settings = partial(quickstart_with, *SMALL)


def test_a_pool_may_start_all_at_once_and_an_overcome_cause_is_forgotten() -> None:
    health = EngineHealth(pool=4)
    assert [health.started(f"e{number}") for number in range(5)] == [True] * 5
    health.failed("RuntimeError: a bad moment")
    health.is_ready("e4")
    assert health.state()["cause"] == ""
    assert [health.started(f"e{number}") for number in range(5, 12)] == [True] * 6 + [False]
    health.failed("RuntimeError: the last word")
    health.is_ready("e5")
    assert health.state()["cause"] == "RuntimeError: the last word"


def test_health_gives_up_after_starts_in_vain() -> None:
    health = EngineHealth()
    assert health.started("a")
    health.is_ready("a")
    health.finished(8)
    assert health.started("b")
    assert health.started("c")
    assert health.started("d")
    health.failed("the cause")
    assert not health.started("e")
    state = health.state()
    assert (state["ready"], state["rows"], state["cause"], state["given_up"]) == (1, 8, "the cause", True)
    assert state["engines"]["a"]["ready_at"] >= state["engines"]["a"]["created_at"]

    ready = EngineHealth()
    for number in range(12):  # each dies of what it is asked
        assert ready.started(f"e{number}")
        ready.is_ready(f"e{number}")
    assert not ready.started("e12")


def test_an_engine_on_a_cpu_stays_only_for_what_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from divray.engines import pool

    stopped: list[str] = []
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": 4.0})
    monkeypatch.setattr(pool, "machines_there", lambda: [{"CPU": 8.0, "GPU": 4.0}])
    monkeypatch.setattr(pool, "_pool", SimpleNamespace(bundles=[{"CPU": 1.0}]))
    monkeypatch.setattr(pool, "stop", lambda: stopped.append("engine"))
    for stage, stays in (("classify", True), ("report", True), ("score", False), ("mine", False), ("align", False)):
        stopped.clear()
        pool.make_room(settings(), stage)
        assert bool(stopped) != stays, stage
    stopped.clear()
    pool.make_room(settings(), "score", back_soon=True)
    pool.make_room(settings("engine.device=gpu"), "score")
    assert not stopped and pool.held() == {"CPU": 1.0, "GPU": 0}


@pytest.mark.parametrize(
    ("stage", "machines", "stays"),
    [
        ("align", [{"CPU": 16.0, "GPU": 4.0}], True),
        ("align", [{"CPU": 16.0, "GPU": 2.0}] * 2, False),  # an engine on each: no machine has two GPUs left
        ("score", [{"CPU": 16.0, "GPU": 2.0}] * 2, True),
        ("align", [{"CPU": 9.0, "GPU": 4.0}, {"CPU": 64.0}], False),  # of the free CPUs too few lie beside the GPUs
    ],
)
def test_engines_leave_where_a_machine_may_have_too_little_beside_them(
    monkeypatch: pytest.MonkeyPatch, stage: str, machines: list[dict[str, float]], stays: bool
) -> None:
    import ray

    from divray.engines import pool

    stopped: list[str] = []
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": sum(machine.get("GPU", 0) for machine in machines) - 2})
    monkeypatch.setattr(pool, "machines_there", lambda: machines)
    monkeypatch.setattr(pool, "_pool", SimpleNamespace(bundles=[{"CPU": 4.0, "GPU": 1.0}] * 2))
    monkeypatch.setattr(pool, "stop", lambda: stopped.append("engines"))
    pool.make_room(
        settings("engine.device=gpu", "cluster.train_workers=1", "cluster.gpus_per_worker=2", "cluster.cpus_per_worker=2"), stage
    )
    assert bool(stopped) != stays


def test_the_users_engine_arguments_win() -> None:
    config = settings("engine.vllm={max_num_seqs: 3, dtype: float32}")
    arguments = engine_arguments(config, gpu=False)
    assert (arguments["max_num_seqs"], arguments["dtype"], arguments["trust_remote_code"]) == (3, "float32", False)
    assert "enforce_eager" not in engine_arguments(config, gpu=True)


ROW = {"strategy": "independent", "pattern": "", "head": "", "seed": 5}


def test_sampling_parameters_of_a_row() -> None:
    drawn = sampling_parameters(settings(), {**ROW, "pattern": "a+"}, greedy=False)
    assert drawn["structured_outputs"] == {"regex": "a+"}
    assert (drawn["temperature"], drawn["min_p"], drawn["max_tokens"]) == (0.9, 0.1, 48) and "seed" not in drawn
    greedy = sampling_parameters(settings(), ROW, greedy=True)
    assert greedy["temperature"] == 0.0
    assert "structured_outputs" not in greedy and "min_p" not in greedy


def test_candidates_of_one_prompt_are_one_request() -> None:
    config = settings("prompts.candidates_per_prompt=8", "sampling.candidates_per_relation=16")
    task = load_task(config)
    rows = list(request_rows(config, task.relations, task.seeds, 0))
    requests = requests_of(config, rows, "adapter", greedy=False)
    assert [len(request.rows) for request in requests] == [8] * (2 * len(task.relations))
    assert [row for request in requests for row in request.rows] == rows
    assert {request.adapter for request in requests} == {"adapter"}
    assert len(requests_of(config, [*rows[:4], {**rows[4], "pattern": "a+"}, *rows[5:8]], "", greedy=False)) == 3
    assert len(requests_of(config, rows[:8], "", greedy=True)) == 8


def test_an_engine_leaves_one_core_and_shares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(9)))
    assert engine_threads(settings().engine.pool[1]) == 8
    assert engine_threads(settings("engine.concurrency=3").engine.pool[1]) == 2
    assert engine_threads(settings("engine.concurrency=[1, 4]").engine.pool[1]) == 2
    for cores, threads in ((4, 3), (2, 2), (1, 1)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert engine_threads(settings().engine.pool[1]) == threads


@pytest.mark.slow
def test_every_request_comes_back_once_though_vllm_is_killed_and_a_second_call_asks_only_for_the_rest(ray_two_cpus: None, uri: str) -> None:
    config, run = settings("engine.vllm={max_num_seqs: 6}"), RunFolder(uri)
    prepare(config, run)
    task = load_task(config)
    rows = list(request_rows(config, task.relations, task.seeds, 0))
    rows[3] = {**rows[3], "prompt": "word " * 5000}
    for number, pattern in ((5, "("), (6, r"\n"), (7, " ([a-z]+ ){300}")):  # refused, empty, cut by its limit
        rows[number] = {**rows[number], "pattern": pattern}
    reasons = {3: "rejected_request", 5: "rejected_request", 6: "empty", 7: "truncated"}
    spoilt = {rows[number]["candidate_id"]: reason for number, reason in reasons.items()}
    write_prompts(run, "round-00/prompts", iter(rows[:20]))
    strike = Strike(run, engine_process)
    complete(config, run, "round-00/prompts", "round-00/completions", config.models.llm, on_progress=strike)
    assert strike.struck
    first = run.read_table("round-00/completions").sort_by("candidate_id")
    by_id = {row["candidate_id"]: row for row in first.to_pylist()}
    assert set(by_id) == {row["candidate_id"] for row in rows[:20]} and first.num_rows == 20
    refused = [by_id.pop(rows[number]["candidate_id"]) for number in (3, 5)]
    assert all(row["error"] for row in refused)
    assert all(row["error"] == "" and row["generated_tokens"] > 0 and row["engine"] for row in by_id.values())
    assert all(row["finished_at"] > row["started_at"] > 0 for row in by_id.values())

    # As after a kill: the rest of the requests is there, and part of the answers.
    write_prompts(run, "round-00/prompts", iter(rows))
    told: list[tuple[int, int]] = []
    counts = sample(config, run, 0, on_progress=lambda done, total, note: told.append((done, total)))
    second = run.read_table("round-00/completions")
    assert sorted(second["candidate_id"].to_pylist()) == sorted(row["candidate_id"] for row in rows)
    kept = {row["candidate_id"]: row for row in second.to_pylist()}
    assert all(kept[name]["started_at"] == row["started_at"] for name, row in by_id.items())
    assert told[-1] == (len(rows) - 20, len(rows) - 20)

    samples = run.read_table("round-00/samples")
    assert samples.schema.equals(SAMPLES)
    assert samples["candidate_id"].to_pylist() == sorted(row["candidate_id"] for row in rows)
    assert counts["candidates"] == len(rows)
    assert counts["valid"] + sum(counts["rejections"].values()) == len(rows)
    assert counts["rejections"]["rejected_request"] == 2
    assert all(row["cached_tokens"] < row["prompt_tokens"] for row in by_id.values())
    assert any(row["cached_tokens"] > 0 for row in by_id.values())
    rejected = {row["candidate_id"]: row["rejection"] for row in samples.to_pylist()}
    assert {name: rejected[name] for name in spoilt} == spoilt
    passes = [run.read_json(name) for name in run.files("round-00/completions.engines")]
    assert [len(record["engines"]) for record in passes] == [2, 2]  # the second outlived the first pass
    assert all(engine["ready_at"] >= engine["created_at"] for record in passes for engine in record["engines"].values())
    assert counts["valid"] >= len(rows) // 10  # what a small LLM writes is chance

    # What comes after the engine is a function of its completions alone, however they are partitioned.
    run.write_table("round-00/completions", second.sort_by([("completion", "descending")]), rows_per_file=5)
    sample(config, run, 0)
    assert run.read_table("round-00/samples") == samples

    # A request that the engine failed is tried again, under its own seed, and no other.
    lost = next(row for row in kept.values() if row["finish_reason"] == "stop" and row["completion"].strip())
    failed = {**lost, "completion": "", "generated_tokens": 0, "finish_reason": "", "error": "RuntimeError: a bad moment"}
    run.write_table("round-00/completions", pa.Table.from_pylist([*(kept | {lost["candidate_id"]: failed}).values()], COMPLETIONS))
    forget_failed(run, Round.of(0))
    assert set(kept) - set(run.read_table("round-00/completions")["candidate_id"].to_pylist()) == {lost["candidate_id"]}
    assert "engine_error" not in sample(config, run, 0)["rejections"]
    mended = {row["candidate_id"]: row for row in run.read_table("round-00/completions").to_pylist()}
    assert [name for name in kept if mended[name] != kept[name]] == [lost["candidate_id"]]
    assert mended[lost["candidate_id"]]["error"] == "" and mended[lost["candidate_id"]]["generated_tokens"] > 0


@pytest.mark.slow
def test_an_engine_that_dies_at_its_start_is_given_up_with_its_cause(
    ray_two_cpus: None, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(EngineHealth):
        """Gives up after the first start in vain, not the third."""

        def __init__(self, pool: int) -> None:
            super().__init__(pool)
            self.max_starts = 1

    monkeypatch.setattr("divray.engines.pool.EngineHealth", Impatient)
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"], "model_type": "llama"}')
    (broken / "model.safetensors").write_bytes(b"not a model")
    config, run = settings(), RunFolder(uri)
    task = load_task(config)
    write_prompts(run, "prompts", islice(request_rows(config, task.relations, task.seeds, 0), 8))
    with pytest.raises(EngineError, match="own words") as caught:
        complete(config, run, "prompts", "completions", str(broken))
    assert str(broken) in str(caught.value) or "NoSuch" in str(caught.value) or "tokenizer" in str(caught.value).lower()


def test_a_request_that_ends_engines_is_found_and_the_others_are_answered(ray_two_cpus: None, uri: str) -> None:
    def answer(row: dict[str, Any]) -> dict[str, Any]:
        if row["prompt"] in poison:
            raise EngineDied("out of shared memory")
        return {"completion": row["prompt"], "finish_reason": "stop"}

    config, run = settings("engine.batch_size=16"), RunFolder(uri)
    task = load_task(config)
    rows = [{**row, "prompt": f"prompt {n}"} for n, row in enumerate(islice(request_rows(config, task.relations, task.seeds, 0), 30))]
    poison = {"prompt 0", "prompt 1", "prompt 9", "prompt 20"}  # several in one batch, also side by side
    write_prompts(run, "prompts", iter(rows))
    complete(config, run, "prompts", "completions", "any", answer=answer)
    found = {row["prompt"]: row for row in run.read_table("completions").to_pylist()}
    assert {prompt for prompt, row in found.items() if row["error"]} == poison and len(found) == 30
    assert all(row["completion"] == prompt for prompt, row in found.items() if prompt not in poison)


def test_parsing_is_row_by_row() -> None:
    base = dict.fromkeys(("candidate_id", "strategy", "prompt_id", "prompt"), "x") | {"round": 0, "relation": "r", "error": ""}
    base |= {"head": "", "tail": "", "finish_reason": "stop"}
    rows = [
        {**base, "completion": " storm\nTail: flood\nSentence: The storm caused a flood."},
        {**base, "completion": " storm\nTail: flood\nSentence: The storm", "finish_reason": "length"},
        {**base, "head": "storm", "tail": "flood", "completion": " A flood came after the storm."},
    ]
    parsed = parse_batch(pa.Table.from_pylist(rows), {"r": ("event", "event")}, form_of([], [])).to_pylist()
    assert [row["rejection"] for row in parsed] == ["", "truncated", ""]
    for row in parsed[::2]:
        assert row["text"][row["tail_start"] : row["tail_end"]] == "flood"
    assert parsed[0]["head_type"] == "event"
    assert examples_table([]).num_rows == 0


@pytest.mark.slow
def test_an_adapter_joins_the_live_engine(ray_two_cpus: None, uri: str, tmp_path: Path) -> None:
    """As on a GPU: on a CPU an engine takes adapters only where vLLM's own arguments say so."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    taking = "engine.vllm={enable_lora: true, max_lora_rank: 8, max_loras: 1}"
    config = settings(taking, "sampling.max_tokens=12", "sampling.candidates_per_relation=8")
    run = RunFolder(uri)
    prepare(config, run)
    base = AutoModelForCausalLM.from_pretrained(local_model(config.models.llm), dtype=torch.bfloat16)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    run.upload(tmp_path / "adapter", "round-01/policy/adapter")
    run.write_json("round-01/policy/config.json", {})
    assert policy_model(config, run, 1) == (run.full_uri("round-01/policy"), "")
    model, adapter = policy_model(settings("engine.device=gpu"), run, 1)
    assert (model, adapter) == (config.models.llm, run.full_uri("round-01/policy/adapter"))

    task, engines, texts = load_task(config), [], []
    prompt = next(iter(request_rows(config, task.relations, task.seeds, 0)))["prompt"]
    for round_, policy in enumerate(("base", "tuned")):
        own, rows = Round.of(round_), list(islice(request_rows(config, task.relations, task.seeds, round_), 4))
        assert {row["policy"] for row in rows} == {policy}
        write_prompts(run, own.prompts, iter({**row, "prompt": prompt} for row in rows))
        complete(config, run, own.prompts, own.completions, model, adapter=adapter if round_ else "", greedy=True)
        answered = run.read_table(own.completions).to_pylist()
        assert not any(row["error"] for row in answered)
        engines.append({row["engine"] for row in answered})
        texts.append({row["completion"] for row in answered})
    assert engines[0] == engines[1] and len(engines[0]) == 1
    assert len(texts[0]) == len(texts[1]) == 1 and texts[0] != texts[1]
