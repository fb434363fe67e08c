"""The choice of K samples a relation, its objective, and the stage that writes the data set."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from divray import selection
from divray.config import Config, parse_config
from divray.export import export
from divray.run_folder import RunFolder
from divray.schemas import DATASET, SAMPLES, SCORES
from divray.sections import SelectionConfig
from divray.selection import SHARPNESS, chosen_samples, greedy_selection, run, shortfalls, write_card

CANDIDATE = ["candidate_id", *(name for name in DATASET.names if name not in ("sample_id", "rank", "audit")), "embedding"]
SHAPE = "{h} did the thing number {n} for {t} in round {r}."


def candidates(count: int, seed: int, dimension: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Correctness, and unit embeddings in a few tight clusters; the most correct ones are all alike."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, dimension))
    cluster = rng.integers(6, size=count)
    embeddings = centres[cluster] + 0.15 * rng.normal(size=(count, dimension))
    correctness = np.clip(rng.uniform(0.4, 0.9, size=count) + 0.2 * (cluster == 0), 0, 1)
    return correctness, (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


def objective(correctness: np.ndarray, embeddings: np.ndarray, weight: float) -> float:
    """``F`` of a whole set, as ``divray.selection`` defines it."""
    count = len(correctness)
    vectors = embeddings.astype(np.float64)
    _, determinant = np.linalg.slogdet(np.eye(count) + SHARPNESS * vectors @ vectors.T)
    return float((1 - weight) * np.mean(correctness) + weight * determinant / (count * np.log1p(SHARPNESS)))


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.8])
def test_greedy_beats_random_and_the_most_correct(weight: float) -> None:
    for seed in range(5):
        correctness, embeddings = candidates(200, seed)

        def value(rows: np.ndarray, c: np.ndarray = correctness, e: np.ndarray = embeddings) -> float:
            return objective(c[rows], e[rows], weight)

        greedy = greedy_selection(correctness, embeddings, 8, weight)
        assert len(set(greedy.tolist())) == 8
        rng = np.random.default_rng(seed)
        assert value(greedy) > value(np.argsort(-correctness)[:8])
        assert value(greedy) > max(value(rng.choice(200, 8, replace=False)) for _ in range(50))


def test_greedy_is_near_the_best_set() -> None:
    correctness, embeddings = candidates(12, 3)
    best = max(objective(correctness[list(rows)], embeddings[list(rows)], 0.5) for rows in itertools.combinations(range(12), 4))
    greedy = greedy_selection(correctness, embeddings, 4, 0.5)
    assert objective(correctness[greedy], embeddings[greedy], 0.5) >= 0.97 * best


def test_the_cholesky_gains_are_the_objective_s() -> None:
    correctness, embeddings = candidates(60, 4)
    chosen: list[int] = []
    for step in range(5):
        totals = [
            -np.inf if row in chosen else objective(correctness[[*chosen, row]], embeddings[[*chosen, row]], 0.6) for row in range(60)
        ]
        chosen.append(int(np.argmax(totals)))
        assert greedy_selection(correctness, embeddings, step + 1, 0.6).tolist() == chosen


def test_weight_at_its_ends_ties_and_shortage() -> None:
    correctness, embeddings = candidates(50, 1)
    by_correctness = greedy_selection(correctness, embeddings, 5, 0.0)
    assert by_correctness.tolist() == np.argsort(-correctness, kind="stable")[:5].tolist()
    same = np.tile(embeddings[:1], (6, 1))
    assert greedy_selection(np.full(6, 0.5), same, 3, 1.0).tolist() == [0, 1, 2]
    assert greedy_selection(correctness[:2], embeddings[:2], 5, 0.5).shape == (2,)
    assert greedy_selection(correctness[:0], embeddings[:0], 5, 0.5).shape == (0,)
    whole = greedy_selection(correctness, embeddings, 5, 0.5)
    assert greedy_selection(correctness, embeddings, 5, 0.5, whole[:2]).tolist() == whole.tolist()
    assert greedy_selection(correctness, embeddings, 4, 0.5, [3, 1])[:2].tolist() == [3, 1]
    orthogonal = np.eye(4, dtype=np.float32)
    assert objective(np.ones(4), orthogonal, 0.5) == pytest.approx(1.0)


def test_many_candidates() -> None:
    correctness, embeddings = candidates(100_000, 2, dimension=64)
    rows = greedy_selection(correctness, embeddings, 16, 0.5)
    assert objective(correctness[rows], embeddings[rows], 0.5) > objective(
        *(x[np.argsort(-correctness)[:16]] for x in (correctness, embeddings)), 0.5
    )


def score_row(relation: str, number: int, round_: int, strategy: str = "independent", **other: object) -> dict[str, object]:
    head, tail = f"Head{number}", f"Tail{number}"
    text = SHAPE.format(h=head, t=tail, n=number, r=round_)
    vector = np.random.default_rng([number, round_]).normal(size=8)
    t = text.index(tail)
    row = {
        "candidate_id": f"r{round_:02d}-{relation}-{strategy}-{number:06d}",
        "relation": relation, "round": round_, "strategy": strategy, "prompt_id": "p", "prompt": "P", "completion": "c", "text": text,
        "head_start": 0, "head_end": len(head), "tail_start": t, "tail_end": t + len(tail), "head_type": "x", "tail_type": "y",
        "rejection": "", "correctness": 0.5 + number / 100, "correct": number % 4 != 3, "cluster": "c", "nearest_id": "",
        "similarity": 0.0, "unique": number % 5 != 4, "novelty": 0.4, "reason": "",
        "embedding": (vector / np.linalg.norm(vector)).astype(np.float32).tolist(),
    }  # fmt: skip
    return row | other


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config({"task": {"name": "Toy | task", "relations": "r.yaml", "none_label": "none"}, "selection": {"k": 4}}, "test")


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose audit needs no LLM: every sample gets 0.3."""
    monkeypatch.setattr(selection, "audited", lambda config, run, rows: dict.fromkeys(rows["sample_id"].to_pylist(), 0.3))
    folder = RunFolder(str(tmp_path_factory.mktemp("run")))
    folder.write_json(
        "data/relations.json",
        [{"name": name, "description": f"About <{name}> | it", "head_type": "x", "tail_type": "y"} for name in ("b", "a", "none")],
    )
    for round_ in (0, 1):
        rows = [score_row("a", number, round_) for number in range(12)] + [score_row("b", number, round_) for number in range(2)]
        if round_ == 1:  # the same sentence again, head and tail exchanged
            before = score_row("a", 1, 0)
            spans = {
                f"{side}_{end}": before[f"{other}_{end}"]
                for side, other in (("head", "tail"), ("tail", "head"))
                for end in ("start", "end")
            }
            rows[1] |= {**spans, "text": before["text"].upper()}
        if round_ == 0:
            rows += [score_row("a", number, 0, "naive", correctness=0.1, correct=False, unique=False) for number in range(6)]
        scores = pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["candidate_id"])), SCORES)
        samples = scores.select(SAMPLES.names)
        rejected = pa.Table.from_pylist([score_row("a", number, round_, "naive", rejection="no_head") for number in (90, 91)], SCORES)
        folder.write_table(f"round-{round_:02d}/scores", scores, rows_per_file=5)
        folder.write_table(f"round-{round_:02d}/samples", pa.concat_tables([samples, rejected.select(SAMPLES.names)]), rows_per_file=7)
    return folder


def test_stage_writes_data_set_card_and_comparison(ray_two_cpus: None, config: Config, finished: RunFolder) -> None:
    counts = run(config, finished, 1)
    dataset = finished.read_table("dataset")
    assert dataset.schema.equals(DATASET)
    rows = dataset.to_pylist()
    source = pa.concat_tables([finished.read_table(f"round-0{number}/scores") for number in (0, 1)])
    allowed = source.filter(pc.and_(pc.and_(source["correct"], source["unique"]), pc.not_equal(source["strategy"], "naive")))
    assert set(allowed["candidate_id"].to_pylist()) - {row["sample_id"] for row in rows} == {"r01-a-independent-000001"}  # the repeated one
    assert len(rows) == counts["accepted"] == allowed.num_rows - 1
    places = [(row["rank"], "ba".index(row["relation"])) for row in rows]
    assert places == sorted(places) and places[:2] == [(1, 0), (1, 1)]
    for relation in "ab":
        own = [row for row in rows if row["relation"] == relation]
        assert [row["rank"] for row in own] == list(range(1, len(own) + 1))
        rest = [(-row["correctness"], row["sample_id"]) for row in own[4:]]
        assert rest == sorted(rest)
        assert [row["audit"] for row in own] == [0.3] * 4 + [None] * len(rest)

    assert counts["selected"] == 8 and counts["reasons"] == {}
    chosen = finished.read_table("comparison/selected")
    assert Counter(chosen["relation"].to_pylist()) == {"b": 4, "a": 4}
    assert chosen.schema.equals(DATASET) and chosen.to_pylist() == [row for row in rows if row["rank"] <= 4]
    for number in (0, 1):
        assert finished.read_table(f"comparison/round-0{number}")["round"].to_pylist() == [number] * 6
    naive = finished.read_table("comparison/naive")
    assert naive["sample_id"].to_pylist() == [f"r00-a-naive-{number:06d}" for number in range(4)]
    assert naive["correctness"].to_pylist() == [0.1] * 4 and naive["rank"].to_pylist() == [1, 2, 3, 4]

    card = finished.read_text("dataset/README.md")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["pretty_name"] == "Toy | task: generated relation extraction samples"
    assert (
        f"| a | {len(rows) - 4} | 4 | 4 | 0.30 | – |" in body
        and "No person has read them." in body
        and "About &lt;a&gt; \\| it" in body
        and "| none |" not in body
    )
    assert all(f"| `{field.name}` | {field.type} |" in body for field in DATASET)


def test_shortfall_is_told(ray_two_cpus: None, config: Config, finished: RunFolder) -> None:
    counts = run(config, finished, 0)
    assert counts["selected"] == 6
    assert Counter(finished.read_table("comparison/selected")["relation"].to_pylist()) == {"b": 2, "a": 4}
    assert {file.split("/")[1] for file in finished.files("comparison")} == {"selected", "round-00", "naive"}
    assert finished.read_table("comparison/round-00").num_rows == 6 and finished.read_table("comparison/naive").num_rows == 4
    # Nothing of b was lost, so that only more candidates help.
    reason = (
        "of 2 candidates 0 were no valid record, 0 near another or a seed, 0 below the gate; "
        "more candidates (sampling.candidates_per_relation) would give more"
    )
    assert counts["reasons"] == {"b": reason}
    assert f"Fewer than 4 samples passed for:\n\n- b: {reason}\n" in finished.read_text("dataset/README.md")


def test_reasons_count_what_was_lost(finished: RunFolder) -> None:
    found = shortfalls(finished, 1, ["a", "never asked for"])
    assert found["a"].startswith("of 24 candidates 0 were no valid record, 4 near another or a seed, 6 below the gate;")
    assert found["never asked for"].startswith("of 0 candidates")
    assert shortfalls(finished, 1, []) == {}


def test_other_tools_open_the_data_set(ray_two_cpus: None, config: Config, finished: RunFolder, tmp_path: Path) -> None:
    import datasets
    import pandas
    import pyarrow.parquet as pq

    run(config, finished, 1)
    table = finished.read_table("dataset")
    assert pq.read_table(finished.path("dataset/data")).equals(table)
    assert pandas.read_parquet(finished.path("dataset/data"))["rank"].tolist() == table["rank"].to_pylist()
    loaded = datasets.load_dataset(finished.path("dataset"), cache_dir=str(tmp_path))
    assert list(loaded) == ["train"] and loaded["train"].to_list() == table.to_pylist()


def test_export_writes_the_selected_samples_or_all(ray_two_cpus: None, config: Config, finished: RunFolder, tmp_path: Path) -> None:
    counts = run(config, finished, 1)
    assert export(finished.uri, str(tmp_path / "selected.jsonl")) == counts["selected"] == 8
    assert export(finished.uri, str(tmp_path / "all.jsonl"), every=True) == counts["accepted"] > 8


def test_card_shows_what_people_said(ray_two_cpus: None, config: Config, finished: RunFolder) -> None:
    counts = run(config, finished, 1)
    ids = finished.read_table("comparison/selected").filter(pc.field("relation") == "a")["sample_id"].to_pylist()
    answers = [{"sample_id": name, "reader": "ada", "right": name != ids[0]} for name in [*ids, "r01-a-independent-000011"]]
    finished.write_json("review/answers.json", answers)
    write_card(config, finished, counts)
    card = finished.read_text("dataset/README.md")
    assert "A person read 4 of the selected samples: 75 % right [30, 95]." in card and "| 3 of 4 |" in card


def test_order_of_the_rows_changes_nothing() -> None:
    rows = pa.Table.from_pylist([score_row("a", number, number % 2) for number in range(40)], SCORES)
    table = rows.select(CANDIDATE)
    settings = SelectionConfig(k=6)
    expected = chosen_samples(table, settings, 2)
    for seed in range(3):
        assert chosen_samples(table.take(np.random.default_rng(seed).permutation(40)), settings, 2).equals(expected)


def test_a_third_sample_of_one_wording_comes_after_the_others() -> None:
    rows = [score_row("a", number, 0, correctness=0.95) for number in range(8)]
    for number in (20, 21):  # the tail comes first
        text = f"Tail{number} is by Head{number}."
        spans = {"head_start": 13, "head_end": 19, "tail_start": 0, "tail_end": 6}
        rows.append(score_row("a", number, 0, correctness=0.5, text=text, **spans))
    made = chosen_samples(pa.Table.from_pylist(rows, SCORES).select(CANDIDATE), SelectionConfig(k=4), 1).to_pylist()
    assert {row["head_start"] for row in made if row["set"] == "dataset" and row["rank"] <= 3} == {0, 13}
    assert sum(row["head_start"] == 13 for row in made if row["set"] == "dataset" and row["rank"] <= 4) == 2


def test_where_all_have_one_wording_names_are_still_limited() -> None:
    rows = [score_row("a", number, 0, correctness=0.9) for number in range(20)]
    for row in rows[:10]:
        row |= {"text": "Ada" + row["text"][row["head_end"] :], "correctness": 0.95}
        moved = row["head_end"] - 3
        row |= {"head_start": 0, "head_end": 3, "tail_start": row["tail_start"] - moved, "tail_end": row["tail_end"] - moved}
    made = chosen_samples(pa.Table.from_pylist(rows, SCORES).select(CANDIDATE), SelectionConfig(k=8), 1).to_pylist()
    assert sum(row["text"].startswith("Ada ") for row in made if row["set"] == "dataset" and row["rank"] <= 8) == 2


def test_naive_samples_without_scores_have_null_scores() -> None:
    rows = pa.Table.from_pylist(
        [score_row("a", number, 0, "naive", correctness=None, novelty=None, embedding=None) for number in range(3)], SCORES
    )
    made = chosen_samples(rows.select(CANDIDATE), SelectionConfig(k=2), 1)
    assert made["set"].to_pylist() == ["naive", "naive"] and made["correctness"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    "rows", [[], [score_row("a", 0, 0, "independent", unique=False), score_row("b", 1, 0, "independent", correct=False)]]
)
def test_nothing_accepted_is_an_empty_data_set(
    ray_two_cpus: None, config: Config, finished: RunFolder, rows: list[dict[str, object]]
) -> None:
    for number in (0, 1):
        finished.delete(f"round-{number:02d}/scores")
        finished.write_table(f"round-{number:02d}/scores", pa.Table.from_pylist(rows if not number else [], SCORES))
    counts = run(config, finished, 1)
    assert (counts["accepted"], counts["selected"]) == (0, 0) and set(counts["reasons"]) == {"a", "b"}
    assert finished.read_table("dataset").schema.equals(DATASET)
