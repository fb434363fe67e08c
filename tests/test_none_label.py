"""A task with a label that means "none of the relations", through every stage: no sample is written for it, and it stays a label."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from begun_runs import begin

from divray import pipeline
from divray.cli import parse
from divray.commands import stage as stage_command
from divray.config import Config, load_config
from divray.datasets.stage import examples_table, load_task, read_relations
from divray.errors import InputError
from divray.extraction.answers import take_in
from divray.extraction.sets import examples_of
from divray.layout import TEST, UNLABELLED
from divray.prompts.record import completion_of
from divray.quickstart import folder
from divray.relations import Example, render_marked
from divray.run_folder import RunFolder
from divray.sampling import run as sample

NONE = "no_relation"
NAMED = ("born_in", "founder_of")


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Config:
    """Two relations of the quick start, and its negatives as examples of none."""
    whole = yaml.safe_load((folder() / "relations.yaml").read_text())
    relations = [{**one, "inverse": ""} for one in whole if one["name"] in NAMED]
    negatives = [json.loads(line) for line in (folder() / "negatives.jsonl").read_text().splitlines()]
    shown = [render_marked(one) for one in load_task(load_config(folder() / "quickstart.yaml")).negatives]
    relations.append({"name": NONE, "description": "None of the relations holds from head to tail.", "examples": shown[:6]})
    (tmp_path / "relations.yaml").write_text(yaml.safe_dump(relations))
    rows = [json.loads(line) for line in (folder() / "test.jsonl").read_text().splitlines()]
    own = {name: [row for row in rows if row["relation"] == name][:12] for name in NAMED}
    test = [*own["born_in"], *own["founder_of"], *({**row, "relation": NONE} for row in negatives[10:16])]
    rest = [{**row, "relation": "anything"} for row in rows if row not in test]
    more = [*rest[::20], *negatives[16:], test[0]]
    bare = [{key: value for key, value in row.items() if key != "relation" or value != "none"} for row in more]
    (tmp_path / "unlabelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    settings: dict[str, Any] = {
        "task": {
            "name": "t",
            "relations": "relations.yaml",
            "test": "test.jsonl",
            "none_label": NONE,
            "seeds_per_relation": 4,
            "unlabelled": "unlabelled.jsonl",
        },
        "rounds": 1,
        "sampling": {"candidates_per_relation": 8, "naive_candidates_per_relation": 2},
        "correctness": {"threshold": 0.0, "fluency": None, "reader": str(tiny_model)},
        "selection": {"k": 3},
        "extraction": {"trials": 0},
        "evaluation": {"draws": 2, "llm": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return load_config(tmp_path / "run.yaml")


@pytest.mark.slow
def test_no_sample_is_written_for_the_none_label_and_it_stays_a_label(
    ray_two_cpus: None, config: Config, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(config, uri)

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        """The test sentences, as if the LLM had written them."""
        own = [example for example in examples_of(run, TEST) if example.relation == row["relation"]]
        example = own[int(hashlib.sha256(row["candidate_id"].encode()).hexdigest(), 16) % len(own)]
        relation = next(one for one in read_relations(run) if one.name == example.relation)
        text = completion_of(relation, example, bool(row["head"]), False).rstrip("\n")
        return {"completion": text, "generated_tokens": 9, "prompt_tokens": 40, "cached_tokens": 0, "finish_reason": "stop"}

    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    file = tmp_path / "rules.jsonl"
    said = [{"id": row["id"], "relation": None if row["relation"] == NONE else row["relation"], "score": 1} for row in test[1:]]
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    for stage, round_ in pipeline.schedule(config):
        if stage.name == "evaluate":
            stage_command(parse(["evaluate", uri, "--predictions", str(file)]))
        elif stage.name == "sample":
            run.finish(pipeline.record_name(stage, round_), 1.0, sample(config, run, round_, answer=answer))
        else:
            pipeline.run_stage(config, run, stage, round_)
    for table in ("round-00/prompts", "round-00/scores", "dataset/data"):
        assert set(run.read_table(table)["relation"].to_pylist()) == set(NAMED), table
    assert "requests: 4 naive + 1 x 16 candidates" in pipeline.describe(config)
    unlabelled = run.read_table(UNLABELLED)
    assert set(unlabelled["relation"].to_pylist()) == {""}
    assert not set(unlabelled["text"].to_pylist()) & set(run.read_table(TEST)["text"].to_pylist())
    assert run.record("train")["counts"]["unlabelled"] == unlabelled.num_rows
    results = run.read_json("evaluation.json")
    assert results["seeds+unlabelled"]["examples"] == 12 and "seeds" in results["seeds+generated+unlabelled"]["differences"]
    assert results["seeds"]["examples"] == 12 and results["seeds"]["k"] == 4

    assert "1 test sentences lack an answer" in capsys.readouterr().err
    found = results["rules.jsonl"]
    assert found["mean"] == pytest.approx(2 * 23 / (23 + 24))
    assert found["differences"]["seeds"]["mean"] == pytest.approx(found["mean"] - results["seeds"]["mean"], abs=1e-5)
    assert "rules.jsonl" in run.read_text("report.html")


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"id": "x", "relation": "born_in"}, "line 2, id", "'x' is the id of no test sentence"),
        ({"relation": "born_in"}, "line 2, id", "None is the id of no test sentence"),
        ({"id": "a", "relation": "born"}, "line 2, relation", "label 'born' is not among the relations"),
        ({"id": "first", "relation": None}, "line 2, id", "id 'first' stands there twice"),
    ],
)
def test_answers_that_belong_to_no_test_sentence_are_refused(
    row: dict[str, Any], field: str, problem: str, uri: str, tmp_path: Path
) -> None:
    run = RunFolder(uri)
    run.write_json("data/relations.json", [{"name": "born_in", "description": "d", "head_type": "", "tail_type": ""}])
    run.write_table(
        TEST, examples_table([Example("A b C", (0, 1), (4, 5), "born_in", example_id=f"test:{name}") for name in ("first", "a")])
    )
    file = tmp_path / "rules.jsonl"
    file.write_text(json.dumps({"id": "first", "relation": "born_in"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError) as error:
        take_in(run, str(file))
    assert (error.value.field, error.value.problem) == (field, problem)
    assert not run.files("evaluation")
