"""The stages around the RE model on a small run folder, with Ray."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest

from divray.config import parse_config
from divray.datasets.stage import examples_table
from divray.errors import InputError
from divray.extraction import evaluation, search, sets, stage
from divray.extraction.metrics import Scorer
from divray.extraction.sets import TrainingSets, usual
from divray.relations import Example
from divray.run_folder import RunFolder
from divray.schemas import DATASET, SCORES

WORDING = {"born_in": "{h} was born in {t}.", "works_in": "{h} has an office job in {t}.", "lives_in": "The home of {h} is {t}."}
NAMES = ["Ada", "Omar", "Clara", "Tom", "Rosa", "Priya", "Hana", "Lucas"]
PLACES = ["Alden", "Selby", "Claro", "Kestrel", "Rome", "Akoma", "Oslo", "Lima"]
LABELS = list(WORDING)
SETS = ["seeds", "twice the seeds", "naive", "round-00", "round-01", "generated", "selected", "seeds+selected", "seeds+generated"]


def sentence(relation: str, number: int) -> Example:
    name, place = NAMES[number], PLACES[number]
    text = WORDING[relation].format(h=name, t=place)
    head, tail = text.index(name), text.index(place)
    return Example(text, (head, head + len(name)), (tail, tail + len(place)), relation, "person", "place", f"{relation}-{number}")


def selected(examples: list[Example], round_: int) -> pa.Table:
    rows = [
        {
            **row,
            "sample_id": row["example_id"],
            "rank": 1,
            "round": round_,
            "strategy": "independent",
            "policy": "base",
            "correctness": 1.0,
            "audit": 0.8,
            "novelty": 0.5,
        }
        for row in examples_table(examples).to_pylist()
    ]
    return pa.Table.from_pylist([{name: row[name] for name in DATASET.names} for row in rows], DATASET)


def settings():
    values = {
        "task": {"name": "t", "relations": "r.yaml", "metric": "macro"},
        "extraction": {"trials": 2},
        "evaluation": {"llm": False},
    }
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def config():
    return settings()


@pytest.fixture
def run(tmp_path):
    return small_run(tmp_path / "run")


def small_run(path):
    run = RunFolder(str(path))
    run.write_json("data/relations.json", [{"name": name, "description": "", "head_type": "", "tail_type": ""} for name in LABELS])
    run.write_table("data/seeds", examples_table([sentence(r, n) for r in LABELS for n in range(2)]))
    draws = [[sentence(r, n) for r in LABELS for n in pair] for pair in ((0, 1), (2, 3))]
    parts = [
        examples_table(part).append_column("draw", pa.array([number] * len(part))).append_column("more", pa.array([more] * len(part)))
        for number, draw in enumerate(draws)
        for more, part in ((False, draw), (True, draws[1 - number]))
    ]
    run.write_table("data/draws", pa.concat_tables(parts))
    run.write_table("data/test", examples_table([sentence(r, n) for r in LABELS for n in (6, 7)]))
    generated = [sentence(r, n) for r in LABELS for n in range(2, 6)]
    run.write_table("comparison/selected", selected(generated, 1))
    for number, own in enumerate(([e for e in generated if e.relation != "lives_in"], generated)):
        rows = [row | {"candidate_id": f"{number}-{row['sample_id']}", "unique": True} for row in selected(own, number).to_pylist()]
        rows += [
            {**rows[0], "candidate_id": f"{number}-copy", "unique": False},
            {**rows[1], "candidate_id": f"{number}-n", "strategy": "naive"},
        ]
        run.write_table(f"round-{number:02d}/scores", pa.Table.from_pylist(rows, SCORES))
    return run


@pytest.mark.slow
def test_evaluation_compares_and_resumes(ray_two_cpus, config, run):
    told = []
    counts = evaluation.run(config, run, 0, lambda done, total, note: told.append((done, total)))
    # `selected` and `round-01` hold the same samples, in every draw, and are trained once.
    assert counts == {"sets": 9, "trainings": 11, "kept": 0, "test": 6}  # twice the seeds: the same examples in both draws
    assert told[0] == (0, 11) and told[-1] == (11, 11)
    results = run.read_json("evaluation.json")
    assert list(results) == SETS
    assert results["twice the seeds"]["examples"] == 12
    assert results["seeds"]["examples"] == 6 and results["seeds"]["k"] == 2 and results["seeds+selected"]["k"] == 6
    assert results["seeds+generated"]["examples"] == 6 + 8 + 12
    assert results["generated"]["examples"] == 20 and results["naive"]["examples"] == 2
    assert results["round-00"]["examples"] == 8  # none of lives_in
    assert results["round-00"]["f1_per_relation"]["lives_in"] == 0 and results["seeds"]["test"] == run.read_table("data/test").num_rows
    assert results["round-01"]["per_draw"] == results["selected"]["per_draw"] and len(results["selected"]["per_draw"]) == 1
    assert results["seeds+generated"]["mean"] > 0.5 and results["seeds"]["metric"] == "macro" and len(results["seeds"]["per_draw"]) == 2
    found = results["seeds+generated"]["differences"]
    assert results["seeds+generated"]["own_differences"].keys() == found.keys() and "own_differences" not in results["twice the seeds"]
    assert list(found) == ["seeds", "naive", "round-00"] and found["seeds"]["low"] <= found["seeds"]["mean"] <= found["seeds"]["high"]
    assert found["seeds"]["mean"] == pytest.approx(results["seeds+generated"]["mean"] - results["seeds"]["mean"], abs=1e-5)
    table = run.read_table("evaluation/predictions")
    assert table.schema == evaluation.PREDICTIONS and table.num_rows == (3 * 2 + 6) * 6

    parts = run.files("evaluation/parts")
    run.delete(parts[0])
    before, written = run.read_bytes("evaluation.json"), run.read_table("evaluation/predictions")
    counts = evaluation.run(config, run, 0)
    assert (counts["trainings"], counts["kept"]) == (1, 10)
    assert run.files("evaluation/parts") == parts
    assert run.read_bytes("evaluation.json") == before and run.read_table("evaluation/predictions").equals(written)

    run.write_bytes(parts[0], b"PAR1 cut")
    with pytest.raises(InputError, match=r"parts/.*no whole table.*Put it back, or delete it"):
        evaluation.run(config, run, 0)


@pytest.mark.slow
def test_search_then_train(ray_two_cpus, config, run, capfd):
    told = []
    counts = search.run(config, run, 0, lambda done, total, note: told.append((done, total)))
    assert counts["trials"] == 2 and told[-1] == (2, 2)
    assert "".join(capfd.readouterr()) == ""
    found = run.read_json("search.json")
    assert len(found["trials"]) == 2 and found["metric"] == "macro" and 0 <= found["score"] <= 1
    assert set(found["best"]) == set(search.SPACE) and found["trials"][0]["shrinkage"] == usual(config).shrinkage
    assert sorted(trial["epochs"] for trial in found["trials"]) == [0, search.NETWORK_EPOCHS]
    assert all(not trial["error"] for trial in found["trials"])
    assert [trial["score"] for trial in found["trials"] if trial["chosen"]] == [found["score"]]
    assert not run.exists("tune")

    counts = stage.run(config, run)
    assert counts["examples"] == 26 and counts["labels"] == 3
    names = run.files("")
    assert "model/model.safetensors" in names and "model/tokenizer.json" in names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".bin", ".pickle"))]
    assert json.loads(run.read_text("model/config.json"))["model_type"] == "divray-relation-extractor"

    rows = [line.split(" | ") for line in run.read_text("model/README.md").splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == LABELS and all(row[1] == "2" for row in rows[1:])
    assert all(0 <= float(cell.strip(" |")) <= 1 for row in rows[1:] for cell in row[2].split(" / ") if cell != "–")

    from divray.extraction.model import RelationExtractor

    model = RelationExtractor.load(run.full_uri("model"))
    assert model.config.labels == LABELS and model.config.view_weights[0] == found["best"]["entity_weight"]


def test_samples_count_by_the_gates_probability_and_the_likeliest_are_kept(run, config, monkeypatch):
    of_run = TrainingSets(config, run)
    human = of_run.draws[0]["data/seeds"]
    for more, sure in ((1, 1.0), (40, 1.0), (1, 0.5)):  # together an eighth of the human examples, if sure, but one at most a half of one
        of_run.draws[0]["data/seeds"] = human * more
        of_run._table = lambda name, sure=sure: [replace(one, weight=sure) for one in sets.weighed(run, name)]
        made = of_run.examples(["data/seeds", "weighed"])[len(human) * more :]
        for relation, count in Counter(e.relation for e in made).items():
            each = min(0.5 * sure, 2 * more / 8 / count * sure)
            assert [e.weight for e in made if e.relation == relation] == pytest.approx([each] * count)
        assert len(made) == 20 and not {e.example_id for e in made} & {"0-copy", "0-n"}
    mixed = [replace(human[0], weight=weight) for weight in (1.0, 0.5)]
    of_run._table = lambda name: mixed
    shares = [e.weight for e in of_run.examples(["data/seeds", "weighed"])[-2:]]
    seeds = sum(e.relation == mixed[0].relation for e in of_run.draws[0]["data/seeds"])
    assert sum(shares) == pytest.approx(seeds / 8 * 1.25 / 1.5) and shares[0] == pytest.approx(2 * shares[1])
    of_run.draws[0]["data/seeds"] = [e for e in human if e.relation != "lives_in"]
    assert not any(e.relation == "lives_in" for e in of_run.examples(["data/seeds", "weighed"]))
    table = run.read_table("round-01/scores").to_pylist()
    rows = [{**row, "correctness": 0.1 * number} for number, row in enumerate(table[:4])]
    run.write_table("round-01/scores", pa.Table.from_pylist(rows, SCORES))
    monkeypatch.setattr(sets, "MOST_WEIGHED", 5)
    assert [e.weight for e in sets.weighed(run)] == pytest.approx([1.0] * 4 + [0.3] + [1.0] * 4)
    run.delete("round-00")
    assert sets.weighed(run) == []


def test_no_trials_keeps_the_configs_values(config, run):
    extraction = config.extraction.model_copy(update={"trials": 0})
    assert search.run(config.model_copy(update={"extraction": extraction}), run)["trials"] == 0
    assert run.read_json("search.json")["best"] == {name: getattr(usual(config), name) for name in search.SPACE}
    assert TrainingSets(config, run).settings == usual(config)


def test_without_a_second_example_nothing_is_searched(config, run):
    run.write_table("data/seeds", examples_table([sentence(relation, 0) for relation in LABELS]))
    assert search.run(config, run)["trials"] == 0
    seeds = search.read_seeds(run)
    mean, right = next(search.cross_validated(config, usual(config), seeds, search.read_relations(run)))
    assert mean == 0 and not any(right)  # none is right where nothing was trained on


def test_a_training_is_named_by_how_much_each_example_counts():
    one, two = (Example(text, (0, 1), (2, 3), "r", weight=weight) for text, weight in (("a b", 1.0), ("c d", 0.5)))
    name = evaluation._part([one, two])
    assert name == evaluation._part([two, replace(one, example_id="x")]) != evaluation._part([replace(one, weight=0.5), two])


def test_a_round_and_each_of_several_strategies_are_sets_of_their_own(run):
    tables = evaluation.training_sets(run, ["independent", "one_by_one"], twice=True)
    ids = {name: [one.example_id for one in sets.weighed(run, own[0])] for name, own in tables.items() if own[0].startswith("weighed")}
    assert ids["independent"] == ids["generated"] != [] and ids["one_by_one"] == []
    assert ids["naive"] == ["0-n", "1-n"] and len(ids["round-00"]) == 8 and {name[:2] for name in ids["round-00"]} == {"0-"}
    run.delete("comparison/selected")
    assert list(evaluation.training_sets(run, ["independent"], twice=True)) == SETS[:5]


@pytest.mark.parametrize(
    ("right", "best"),
    [
        ([[1, 1, 0, 0], [1, 0, 1, 1]], 0),
        ([[1, 0, 0, 0] * 5, [1, 1, 1, 1] * 5], 1),
        ([[1, 1, 1, 1], [1, 0, 0, 0]], 0),
        ([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], 1),
        ([[1, 1, 1, 0, 0], *[[1, 1, 1, 0, 0]] * 5, [1, 1, 1, 1, 1]], 0),  # the best of many
    ],
)
def test_the_search_leaves_the_given_values_only_for_more_than_noise(right, best):
    trials = [
        {"trial": number, "score": sum(own) / len(own), "right": own, "stopped_early": False, "error": ""}
        for number, own in enumerate(right)
    ]
    assert search.chosen(trials)["trial"] == best
    assert search.chosen([{**trials[0], "stopped_early": True}, *trials[1:]])["trial"] == best  # ASHA may have stopped it
    broken = {"trial": 9, "score": 1.0, "right": [1.0] * len(right[0]), "stopped_early": False, "error": "its machine was lost"}
    assert search.chosen([*trials, broken, {**broken, "score": None, "right": []}])["trial"] == best


def test_a_difference_has_an_interval_and_pairs_its_draws():
    scorer = Scorer(["a", "b"] * 50, ["a", "b"], None, "micro")
    right, same = scorer.gold, scorer.numbered(["a"] * 100)
    better = [same if n % 2 else right for n in range(4)]
    found = evaluation.difference(scorer, better, better)
    assert found == {"mean": 0.0, "low": 0.0, "high": 0.0}
    found = evaluation.difference(scorer, [right] * 4, [same] * 4)
    assert found["mean"] == 0.5 and 0.38 < found["low"] < 0.5 < found["high"] < 0.62
