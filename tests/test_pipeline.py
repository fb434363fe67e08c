from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from begun_runs import begin

from divray import resources
from divray.cli import build_parser, main, parse
from divray.config import Config, dump_config, load_config
from divray.errors import InputError, ResourceError
from divray.pipeline import STAGES, due_round, open_run, record_name, run_all, schedule
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.schemas import COMPLETIONS
from divray.stages import Stage

QUICKSTART = str(folder() / "quickstart.yaml")


def test_the_stages_of_two_rounds_in_order(quickstart: Config) -> None:
    names = [record_name(stage, round_) for stage, round_ in schedule(quickstart)]
    assert names == [
        "prepare",
        *["round-00.prompt", "round-00.sample", "classify", "round-00.score", "round-00.mine"],
        *[f"round-01.{name}" for name in ("align", "prompt", "sample", "score")],
        *["select", "tune", "train", "evaluate", "report"],
    ]


def test_the_llm_classifies_only_where_it_is_asked_to(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(QUICKSTART, ["evaluation.llm=false", "rounds=1"])
    names = [record_name(stage, round_) for stage, round_ in schedule(config)]
    assert names[:4] == ["prepare", "round-00.prompt", "round-00.sample", "round-00.score"] and names[4] == "select"
    assert due_round(config, begin(config, uri), STAGES["classify"], None, True) is None
    assert "classify is no part of a run with these settings" in "".join(capsys.readouterr())


def test_a_folder_of_another_config_is_refused(uri: str) -> None:
    begin(load_config(QUICKSTART), uri)
    assert open_run(load_config(QUICKSTART, ["engine.batch_size=4"]), uri).exists("config.yaml")
    with pytest.raises(InputError, match=r"selection\.k: the run was begun with 16, now it is 8"):
        open_run(load_config(QUICKSTART, ["selection.k=8"]), uri)


def test_a_folder_with_something_else_is_refused(quickstart: Config, uri: str) -> None:
    RunFolder(uri).write_text("thesis.txt", "mine")
    with pytest.raises(InputError, match="not empty"):
        open_run(quickstart, uri)


def test_a_stage_waits_for_those_before_it(quickstart: Config, uri: str) -> None:
    run = begin(quickstart, uri)
    with pytest.raises(InputError, match="prepare: this stage comes first"):
        due_round(quickstart, run, STAGES["prompt"], None, False)
    run.finish("prepare", 1.0, {})
    assert due_round(quickstart, run, STAGES["prompt"], None, False) == 0
    run.finish("round-00.prompt", 1.0, {})
    with pytest.raises(InputError):
        due_round(quickstart, run, STAGES["prompt"], None, False)
    assert due_round(quickstart, run, STAGES["prompt"], 0, False) is None
    assert due_round(quickstart, run, STAGES["prompt"], 0, True) == 0
    with pytest.raises(InputError, match="no round 5"):
        due_round(quickstart, run, STAGES["prompt"], 5, False)


def test_engines_end_after_their_last_stage_and_where_a_run_fails(quickstart: Config, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def stage(config: Config, run: RunFolder, stage: Stage, round_: int) -> None:
        done.append(record_name(stage, round_))
        if stage.name == "tune":
            raise ResourceError("too little")

    monkeypatch.setattr("divray.pipeline.prepare_cluster", lambda *_: None)
    monkeypatch.setattr("divray.pipeline.run_stage", stage)
    monkeypatch.setattr("divray.pipeline.stop", lambda: done.append("stop"))
    with pytest.raises(ResourceError):
        run_all(quickstart, uri)
    assert done.index("stop") == done.index("round-01.sample") + 1
    assert done[-2:] == ["tune", "stop"]


def test_what_cannot_begin_again_stays_done(
    quickstart: Config, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise ResourceError("no Ray cluster")

    run = begin(quickstart, uri)
    for name in ("prepare", "round-00.prompt", "round-00.sample"):
        run.finish(name, 1.0, {})
    run.write_table("round-00/completions", COMPLETIONS.empty_table())
    monkeypatch.setattr("divray.pipeline.prepare_cluster", refuse)
    assert main(["sample", uri, "--round", "0", "--force"]) == 3
    assert "no Ray cluster" in capsys.readouterr().err
    assert run.record("round-00.sample") and run.files("round-00/completions")


@pytest.mark.parametrize(
    ("override", "there", "setting"),
    [
        ("engine.cpus=2", {"CPU": 2}, "engine.cpus"),
        ("engine.device=gpu", {"CPU": 8}, r"engine.concurrency x engine.cpus needs 1 GPU \+ 4 CPU, .*, the cluster has 8 CPU"),
        ("engine.concurrency=4", {"CPU": 2}, "engine.cpus"),
        ("engine.vllm={tensor_parallel_size: 2}", {"CPU": 8}, "engine.vllm"),
        ("cluster.train_workers=4", {"CPU": 2}, "cluster.cpus_per_worker"),
        ("cluster.gpus_per_worker=1", {"CPU": 8}, "cluster.gpus_per_worker"),
        ("cluster.worker_cpus=3", {"CPU": 2}, "cluster.worker_cpus"),
        ("cluster.worker_gpus=0.5", {"CPU": 2}, "cluster.worker_gpus"),
    ],
)
def test_what_can_never_be_given_is_said_at_once(
    override: str, there: dict[str, float], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "machines_there", lambda: [there])
    config = load_config(QUICKSTART, [override])
    with pytest.raises(ResourceError, match=setting):
        resources.provide(config, [stage.name for stage, _ in schedule(config)], grows=False)


def test_the_defaults_fit_two_cpus(quickstart: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "machines_there", lambda: [{"CPU": 2}])
    resources.provide(quickstart, STAGES, grows=False)


BAD_INPUT = [
    ({"selection": {"kk": 3}}, "unknown key"),
    ({"models": {"llm": "/no/such/folder"}}, "models.llm"),
    ({"models": {"encoder": "embedded:nothing"}}, "models.encoder"),
    ({"models": {"encoder": "endpoint"}}, "models.encoder: endpoint is no folder"),
    ({"correctness": {"reader": "endpoint"}}, "correctness.reader: endpoint is no folder"),
    ({"correctness": {"fluency": "endpoint"}}, "correctness.fluency: endpoint is no folder"),
    ({"correctness": {"fluency": "a", "reader": "a"}}, "correctness: reader and fluency are one LLM"),
    ({"prompts": {"strategies": {"clever": 1}}}, "unknown strategy"),
    ({"engine": {"concurrency": [4, 2]}}, "engine.concurrency: the least, 4, is more than the most, 2"),
    ({"engine": {"concurrency": [1, True]}}, "engine.concurrency"),
    ({"engine": {"concurrency": [0, 1]}}, "engine.concurrency: Input should be"),
    ({"sampling": {"min_p": float("nan")}}, "sampling.min_p"),
    ({"alignment": {"learning_rate": float("inf")}}, "alignment.learning_rate"),
    ({"selection": {"k": 16.0}}, "selection.k"),
    ({"seed": -1}, "seed"),
    ({"rounds": 100}, "rounds"),
    ({"task": {"train": ""}}, "task.train"),
    ({"correctness": {"threshold": 1.5}}, "correctness.threshold"),
    ({"prompts": {"strategies": {"independent": 0}}}, "prompts.strategies.independent"),
    ({"prompts": {"strategies": {}}}, "prompts.strategies"),
    ({"engine": {"vllm": {"max_model_len": 0}}}, "engine.vllm.max_model_len"),
    ({"engine": {"vllm": {"trust_remote_code": True}}}, "engine.vllm.trust_remote_code"),
    ({"engine": {"vllm": {"data_parallel_size": 2}}}, "engine.vllm.data_parallel_size: an engine is one copy of the model. For more"),
    ({"engine": {"endpoint": {"url": "localhost:8000/v1", "model": "m"}}}, "engine.endpoint.url: URL scheme should be 'http' or 'https'"),
    ({"engine": {"endpoint": {"url": "http://x/v1"}}}, "engine.endpoint.model: missing"),
    ({"engine": {"endpoint": {"url": "http://x:99999/v1", "model": "m"}}}, "endpoint.url: Input should be a valid URL, invalid port"),
    ({"engine": {"endpoint": {"url": "http://a b/v1", "model": "m"}}}, "endpoint.url: Input should be a valid URL, invalid international"),
    ({"engine": {"endpoint": {"url": "http://:80/v1", "model": "m"}}}, "endpoint.url: Input should be a valid URL, empty host"),
    ({"alignment": {"zero_stage": True}}, "alignment.zero_stage"),
    ({"cluster": {"train_workers": 3}}, "alignment.pairs_per_step: 4 pairs a step can't be shared"),
    ({"preferences": {"mode": "paper"}}, "prompts.demonstrations: every prompt shows every seed example"),
    ({"preferences": {"mode": "paper"}, "prompts": {"strategies": {"one_by_one": 1}, "demonstrations": 2}}, "prompts.demonstrations"),
    ({"task": {"relations": "missing.yaml"}}, "missing.yaml"),
    ({"task": {"test": "missing.jsonl"}}, "missing.jsonl"),
    ({"task": {"seeds_per_relation": 50}}, "50"),
]


@pytest.mark.parametrize(("change", "word"), BAD_INPUT)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    change: dict, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(Path(QUICKSTART).read_text())
    values["task"]["data"] = str(folder())
    values["task"]["relations"] = str(folder() / "relations.yaml")
    for section, keys in change.items():
        values[section] = values.get(section, {}) | keys if isinstance(keys, dict) else keys
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    assert main(["run", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert "Traceback" not in said
    assert not out.exists()


BAD_RELATIONS = [
    ("[]", "relation"),
    ("- {name: a, examples: ['[x] is y to {z}.']}", "description"),
    ("- {name: a, description: d, examples: ['[x] is y to {z}.']}\n- {name: a, description: d, examples: ['[x] is {z} now.']}", "a"),
    ("- {name: a, description: d, examples: ['x is y to {z}.']}", "head"),
    ("- {name: a, description: d}", "example"),
    ("- {name: a, descripton: d, examples: ['[x] is y to {z}.']}", "descripton"),
]


@pytest.mark.parametrize(("text", "word"), BAD_RELATIONS)
def test_bad_relations_are_named(text: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "relations.yaml").write_text(text)
    test = {"id": "1", "text": "A is near B.", "head": [0, 1], "tail": [10, 11], "relation": "a"}
    (tmp_path / "test.jsonl").write_text(json.dumps(test) + "\n")
    (tmp_path / "run.yaml").write_text("task: {name: x, relations: relations.yaml, test: test.jsonl, seeds_per_relation: 1}\n")
    assert main(["plan", str(tmp_path / "run.yaml")]) == 2
    said = capsys.readouterr().err
    assert "relations.yaml" in said
    assert word in said


def test_plan_shows_stages_and_defaults_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", QUICKSTART]) == 0
    said = capsys.readouterr().out
    assert "6 relations, 30 seed examples, 612 test examples" in said
    assert "round-01.align" in said
    assert "min_p: 0.1" in said


def test_a_stage_command_outside_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_the_command_line_is_as_documented() -> None:
    parser = build_parser()
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    assert set(commands) == {*STAGES, "run", "plan", "preview", "export", "predict", "explain", "review", "dedup"}


def test_settings_may_stand_before_and_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parse(["run", "c.yaml", "a.b=1", "--out", "r", "c.d=2"])
    assert (parsed.config, parsed.out, parsed.overrides) == ("c.yaml", "r", ["a.b=1", "c.d=2"])
    for wrong in (["run", "c.yaml", "--out", "r", "--what"], ["run", "c.yaml", "--out", "r", "what"]):
        with pytest.raises(SystemExit) as caught:
            parse(wrong)
        assert caught.value.code == 2
        assert "unrecognized" in capsys.readouterr().err


def test_help_loads_no_heavy_library() -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "numba")
    code = f"import sys; from divray.cli import build_parser; build_parser(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_folder_reads_back_its_config(quickstart: Config, uri: str) -> None:
    run = begin(quickstart, uri)
    assert run.read_text("config.yaml") == dump_config(quickstart)
