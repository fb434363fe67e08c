"""The score stage under the real Ray with the real encoder, on human sentences under right and wrong labels."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import exported

from divray.config import Config
from divray.datasets import load_task
from divray.datasets.stage import examples_table
from divray.datasets.stage import run as prepare
from divray.embeddings import embedding_matrix
from divray.run_folder import RunFolder
from divray.schemas import DATASET, SAMPLES, SCORES
from divray.scoring import stage as scoring
from divray.scoring.audit import audited
from divray.scoring.novelty import distances
from divray.scoring.stage import run as score


def samples_of(config: Config) -> pa.Table:
    """Ten test sentences a relation: eight as they are, one under a wrong label, one twice; one of the first
    relation's under the fourth label as well; and a rejection."""
    task = load_task(config)
    names = [relation.name for relation in task.relations]
    rows = []
    for number, name in enumerate(names):
        own = [example for example in task.test if example.relation == name][:9]
        columns = examples_table([*own, own[0]]).to_pylist()
        for place in range(10):
            label = names[(number + 2) % len(names)] if place == 8 else name
            rows.append(
                {
                    **columns[place],
                    "candidate_id": f"r00-{name}-{place}",
                    "relation": label,
                    "round": 0,
                    "strategy": "naive" if place == 7 else "independent",
                    "prompt_id": f"p-{name}",
                    "prompt": "p",
                    "completion": "c",
                    "rejection": "",
                }
            )
    conflict = {**rows[1], "candidate_id": "r00-conflict", "relation": names[3]}
    rejected = {**rows[0], "candidate_id": "r00-x", "text": "", "rejection": "empty"}
    rows += [conflict, rejected]
    return pa.Table.from_pylist(rows, SAMPLES)


def test_a_round_without_a_valid_sample_has_an_empty_table_of_scores(ray_two_cpus: None, quickstart: Config, uri: str) -> None:
    run, samples = RunFolder(uri), samples_of(quickstart)
    prepare(quickstart, run)
    rejected = [{**row, "rejection": "truncated"} for row in samples.to_pylist()]
    run.write_table("round-00/samples", pa.Table.from_pylist(rejected, SAMPLES))
    assert set(score(quickstart, run, 0).values()) == {0}
    assert run.read_table("round-00/scores").equals(SCORES.empty_table())
    assert run.files("data/seed_embeddings")


@pytest.mark.slow
def test_scores_do_not_depend_on_order_or_partition(ray_two_cpus: None, quickstart: Config, uri: str) -> None:
    run, samples = RunFolder(uri), samples_of(quickstart)
    prepare(quickstart, run)
    run.write_table("round-00/samples", samples)
    counts = score(quickstart, run, 0)
    first = run.read_table("round-00/scores")
    assert first.schema.names == SCORES.names
    assert first["candidate_id"].to_pylist() == sorted(name for name in samples["candidate_id"].to_pylist() if name != "r00-x")
    rows = {row["candidate_id"]: row for row in first.to_pylist()}
    assert any('relation="born_in"' in line for line in exported('outcome="valid"'))
    assert counts == {
        "scored": 6 * 9 + 1,
        "unique": sum(row["unique"] for row in rows.values() if row["strategy"] != "naive"),
        "correct": sum(row["unique"] and row["correct"] for row in rows.values() if row["strategy"] != "naive"),
        "conflicts": 2,
    }
    one, other = rows["r00-conflict"], rows[rows["r00-conflict"]["conflict"]]
    assert other["conflict"] == "r00-conflict" and (one["conflict_relation"], other["conflict_relation"]) == (
        other["relation"],
        one["relation"],
    )
    assert not one["unique"] and not other["unique"] and one["reason"].startswith(f"labelling conflict with {other['candidate_id']} under")
    for name in {example.relation for example in load_task(quickstart).seeds}:
        assert [rows[f"r00-{name}-{place}"]["unique"] for place in (0, 9)].count(True) == 1
        dropped = next(rows[f"r00-{name}-{place}"] for place in (0, 9) if not rows[f"r00-{name}-{place}"]["unique"])
        assert "near copy of" in dropped["reason"]
        assert dropped["similarity"] >= quickstart.diversity.threshold
    # Probabilities are those of sentences that LLMs write, so human ones are compared in their order alone.
    right = [row["correctness"] for name, row in rows.items() if not name.endswith("-8")]
    wrong = [row["correctness"] for name, row in rows.items() if name.endswith("-8")]
    assert sum(one > other for one in right for other in wrong) > 0.75 * len(right) * len(wrong)

    shuffled = list(range(samples.num_rows))
    random.Random(3).shuffle(shuffled)
    run.write_table("round-00/samples", samples.take(shuffled), rows_per_file=7)
    score(quickstart, run, 0)
    assert run.read_table("round-00/scores") == first


@pytest.mark.slow
def test_the_audit_believes_human_sentences_more_than_broken_ones(ray_two_cpus: None, quickstart: Config, uri: str) -> None:
    run = RunFolder(uri)
    prepare(quickstart, run)
    task = load_task(quickstart)
    rows = []
    for number, example in enumerate(task.test[:24]):
        row = examples_table([example]).to_pylist()[0]
        before, rest = example.text[: max(example.head[1], example.tail[1])], example.text[max(example.head[1], example.tail[1]) :]
        broken = before + " ".join(reversed(rest.split(" ")))
        rows.append({**row, "sample_id": f"right-{number}", "passed": True})
        rows.append({**row, "sample_id": f"broken-{number}", "text": broken, "passed": True})
        rows.append({**row, "sample_id": f"failed-{number}", "passed": False})
    schema = pa.schema([*(field for field in DATASET if field.name in rows[0]), pa.field("passed", pa.bool_())])
    found = audited(quickstart, run, pa.Table.from_pylist(rows, schema))
    assert set(found) == {row["sample_id"] for row in rows} and all(0 < value < 1 for value in found.values())
    mean = {kind: sum(value for name, value in found.items() if name.startswith(kind)) / 24 for kind in ("right", "broken", "failed")}
    assert mean["right"] > mean["broken"] and mean["right"] > mean["failed"]
    assert audited(quickstart, run, pa.Table.from_pylist([], schema)) == {}


def one_large_relation(config: Config) -> pa.Table:
    """The samples of one relation many times over with other first words, so that nine rows in ten are of it."""
    samples = samples_of(config)
    names = samples["relation"].to_pylist()
    most = pc.equal(samples["relation"], names[0])
    copies = [samples]
    for number in range(60):
        own = samples.filter(pc.and_(most, pc.equal(samples["rejection"], ""))).to_pylist()
        for row in own:
            front = f"Number {number} and {number * number} : "
            row["candidate_id"] += f"-{number:02d}"
            row["text"] = front + row["text"]
            for name in ("head_start", "head_end", "tail_start", "tail_end"):
                row[name] += len(front)
        copies.append(pa.Table.from_pylist(own, SAMPLES))
    return pa.concat_tables(copies)


@pytest.mark.slow
def test_a_relation_with_most_rows_is_spread_over_tasks(
    ray_two_cpus: None, quickstart: Config, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, samples = RunFolder(uri), one_large_relation(quickstart)
    share = pc.mean(pc.equal(samples["relation"], samples["relation"][0]).cast(pa.int32())).as_py()
    assert share > 0.9
    prepare(quickstart, run)
    run.write_table("round-00/samples", samples)
    whole = scoring._measured
    made, tasks = [], []
    for rows in (10_000, 64):
        seen = tmp_path / str(rows)
        seen.mkdir()

        def noted(batch: pa.Table, seen: Path = seen, **options: Any) -> pa.Table:
            import ray

            (seen / f"{ray.get_runtime_context().get_task_id()}.{uuid.uuid4().hex}").touch()
            return whole(batch, **options)

        monkeypatch.setattr(scoring, "PART_ROWS", rows)
        monkeypatch.setattr(scoring, "_measured", noted)
        score(quickstart, run, 0)
        made.append(run.read_table("round-00/scores"))
        tasks.append(len({file.name.partition(".")[0] for file in seen.iterdir()}))
    assert made[0] == made[1] and made[0].num_rows == samples.num_rows - 1
    assert tasks[1] > max(2, tasks[0])
    # Novelty is that of the relation as a whole.
    relation = samples["relation"][0].as_py()
    own = made[1].filter(pc.and_(pc.equal(made[1]["relation"], relation), pc.not_equal(made[1]["strategy"], "naive")))
    assert 1 < sum(own["unique"].to_pylist()) < own.num_rows
    vectors, unique = embedding_matrix(own["embedding"]), own["unique"].to_numpy()
    expected = distances(vectors, vectors[unique], np.where(unique, np.cumsum(unique) - 1, -1))
    assert own["novelty"].to_pylist() == expected.tolist()
    assert not run.files("round-00/embedded") and not run.files("round-00/decided")


@pytest.mark.parametrize(
    ("resources", "device", "most", "gpus"),
    [
        ({"CPU": 2.0}, "auto", 1, 0),
        ({"CPU": 1.0}, "auto", 1, 0),
        ({"CPU": 16.0}, "auto", 15, 0),
        ({"CPU": 16.0, "GPU": 4.0}, "auto", 16, 0.25),
        ({"CPU": 16.0, "GPU": 4.0}, "cpu", 15, 0),
        ({"CPU": 16.0, "GPU": 4.0}, "gpu", 16, 0.25),
    ],
)
def test_encoders_grow_with_the_cluster(
    monkeypatch: pytest.MonkeyPatch, quickstart: Config, resources: dict[str, float], device: str, most: int, gpus: float
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    config = quickstart.model_copy(update={"engine": quickstart.engine.model_copy(update={"device": device})})
    made = scoring.encoders(config)
    assert (made["compute"].min_size, made["compute"].max_size, made["num_gpus"]) == (1, most, gpus)
