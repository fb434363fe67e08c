"""The score stage under the real Ray with the real encoder, on human sentences under right and wrong labels."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import FASTER

from divray import embeddings
from divray.config import Config, load_config
from divray.datasets.stage import examples_table, load_task, read_relations, read_seeds, table_examples
from divray.datasets.stage import run as prepare
from divray.embeddings import embedding_matrix
from divray.models import local_model
from divray.quickstart import folder
from divray.resources import actor_pool
from divray.run_folder import RunFolder
from divray.schemas import DATASET, SAMPLES, SCORES
from divray.scoring import stage as scoring
from divray.scoring.audit import audited
from divray.scoring.judge import Judging
from divray.scoring.near_copies import novelty
from divray.scoring.stage import run as score


def samples_of(config: Config, more: int = 0) -> pa.Table:
    """Ten test sentences a relation: eight as they are, one under a wrong label, one twice; one of the first
    relation's under the fourth label as well; a rejection; and ``more`` of the first relation."""
    task = load_task(config)
    names = [relation.name for relation in task.relations]
    rows = []
    columns = {"round": 0, "prompt": "p", "completion": "c", "rejection": ""}
    for number, name in enumerate(names):
        found = [example for example in task.test if example.relation == name][: 9 + (0 if number else more)]
        for place, row in enumerate(examples_table([*found[:9], found[0], *found[9:]]).to_pylist()):
            label = names[(number + 2) % len(names)] if place == 8 else name
            own = {"candidate_id": f"r00-{name}-{place}", "relation": label, "prompt_id": f"p-{name}"}
            rows.append({**row, **columns, **own, "strategy": "naive" if place == 7 else "independent"})
    conflict = {**rows[1], "candidate_id": "r00-conflict", "relation": names[3]}
    rejected = {**rows[0], "candidate_id": "r00-x", "text": "", "rejection": "empty"}
    rows += [conflict, rejected]
    return pa.Table.from_pylist(rows, SAMPLES)


@pytest.mark.slow
def test_scores_do_not_depend_on_order_or_partition_and_no_valid_sample_has_none(
    ray_two_cpus: None, quickstart: Config, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, samples = RunFolder(uri), samples_of(quickstart, more=40)
    largest = samples["relation"][0].as_py()
    prepare(quickstart, run)

    def scored(part_rows: int, encoders: int) -> tuple[dict[str, int], pa.Table]:
        monkeypatch.setattr(scoring, "actor_pool", lambda config, work, beside: actor_pool(config, encoders))
        monkeypatch.setattr(scoring, "ENCODED_ROWS", (16, part_rows))
        monkeypatch.setattr(scoring, "PART_ROWS", part_rows)
        return score(quickstart, run, 0), run.read_table("round-00/scores")

    rejected = [{**row, "rejection": "truncated"} for row in samples.to_pylist()]
    run.write_table("round-00/samples", pa.Table.from_pylist(rejected, SAMPLES))
    counts, empty = scored(10_000, 1)
    assert set(counts.values()) == {0} and empty.equals(SCORES.empty_table()) and run.files("data/seed_embeddings")

    run.write_table("round-00/samples", samples)
    counts, first = scored(10_000, 1)
    assert first.schema.names == SCORES.names
    assert first["candidate_id"].to_pylist() == sorted(name for name in samples["candidate_id"].to_pylist() if name != "r00-x")
    rows = {row["candidate_id"]: row for row in first.to_pylist()}
    assert counts == {
        "scored": 6 * 9 + 1 + 40,
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
    # Novelty is that of the relation as a whole.
    own = first.filter(pc.and_(pc.equal(first["relation"], largest), pc.not_equal(first["strategy"], "naive")))
    assert 1 < sum(own["unique"].to_pylist()) < own.num_rows
    vectors, unique = embedding_matrix(own["embedding"]), own["unique"].to_numpy()
    assert own["novelty"].to_pylist() == novelty(vectors, unique).tolist()

    shuffled = list(range(samples.num_rows))
    random.Random(3).shuffle(shuffled)
    run.write_table("round-00/samples", samples.take(shuffled), rows_per_file=7)
    again, second = scored(16, 2)
    assert second == first and again == counts
    assert not run.files("round-00/embedded")


@pytest.mark.slow
def test_by_default_the_gate_believes_broken_sentences_less_and_each_is_read_alone(ray_two_cpus: None, uri: str) -> None:
    config, run = load_config(folder() / "quickstart.yaml", ["task.seeds_per_relation=2"]), RunFolder(uri)
    prepare(config, run)
    rows = []
    for number, row in enumerate(examples_table(load_task(config).test[:4]).to_pylist()):
        own = {**row, "round": 0, "prompt_id": "p", "prompt": "p", "completion": "c", "rejection": "", "strategy": "independent"}
        end = max(row["head_end"], row["tail_end"])
        broken = row["text"][:end] + " the of" + " ".join(reversed(row["text"][end:].split(" "))) + " of was the"
        rows += [{**own, "candidate_id": f"right-{number}"}, {**own, "candidate_id": f"broken-{number}", "text": broken}]
    run.write_table("round-00/samples", pa.Table.from_pylist(rows, SAMPLES))
    score(config, run, 0)
    found = {row["candidate_id"]: row["correctness"] for row in run.read_table("round-00/scores").to_pylist()}
    assert sum(found[f"right-{n}"] > found[f"broken-{n}"] for n in range(4)) >= 3
    judging, examples = Judging(config, read_relations(run), read_seeds(run)), table_examples(pa.Table.from_pylist(rows), "candidate_id")
    assert np.array_equal(judging.hear(examples), np.concatenate([judging.hear([example]) for example in examples]))


@pytest.mark.slow
def test_the_audit_believes_human_sentences_more_than_broken_ones(ray_two_cpus: None, quickstart: Config, uri: str) -> None:
    config, run = (
        load_config(folder() / "quickstart.yaml", [*FASTER, "correctness.reader=embedded:gemma3-270m", "task.seeds_per_relation=2"]),
        RunFolder(uri),
    )
    prepare(config, run)
    rows = []
    for number, example in enumerate(load_task(config).test[:6]):
        row = examples_table([example]).to_pylist()[0]
        before, rest = example.text[: max(example.head[1], example.tail[1])], example.text[max(example.head[1], example.tail[1]) :]
        broken = before + " ".join(reversed(rest.split(" ")))
        rows.append({**row, "sample_id": f"right-{number}", "correctness": 0.9})
        rows.append({**row, "sample_id": f"broken-{number}", "text": broken, "correctness": 0.9})
        rows.append({**row, "sample_id": f"failed-{number}", "correctness": 0.7})
    schema = pa.schema([field for field in DATASET if field.name in rows[0]])
    found = audited(config, run, pa.Table.from_pylist(rows, schema))
    assert set(found) == {row["sample_id"] for row in rows} and all(0 < value < 1 for value in found.values())
    mean = {kind: sum(value for name, value in found.items() if name.startswith(kind)) / 6 for kind in ("right", "broken", "failed")}
    assert mean["right"] > mean["broken"] and mean["right"] > mean["failed"]
    assert audited(config, run, pa.Table.from_pylist([], schema)) == {}


@pytest.mark.parametrize(
    ("resources", "device", "most", "gpus"),
    [
        ({"CPU": 2.0}, "auto", 2, 0),
        ({"CPU": 1.0}, "auto", 1, 0),
        ({"CPU": 16.0}, "auto", 16, 0),
        ({"CPU": 16.0, "GPU": 4.0}, "auto", 16, 0),  # with the CPU's build of vLLM
        ({"CPU": 16.0, "GPU": 4.0}, "cpu", 16, 0),
        ({"CPU": 16.0, "GPU": 4.0}, "gpu", 16, 0.25),
        ({"CPU": 2.0, "GPU": 1.0}, "gpu", 2, 0.25),  # and one CPU for who reads
    ],
)
def test_encoders_grow_with_the_cluster(
    monkeypatch: pytest.MonkeyPatch, quickstart: Config, tmp_path: Path, resources: dict[str, float], device: str, most: int, gpus: float
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "available_resources", lambda: resources)
    config = quickstart.model_copy(update={"engine": quickstart.engine.model_copy(update={"device": device})})
    run = RunFolder(str(tmp_path))
    for rows, blocks in ((0, 1), (10, 1), (48, 1 if gpus else 2), (10**6, -(-(10**6) // (4096 if gpus else 512)))):
        number, made = scoring.encoder_pool(config, run, rows)
        assert (number, made["num_gpus"]) == (blocks, gpus)
        pool, size = made["compute"], min(most, blocks)
        assert (pool.min_size, pool.initial_size, pool.max_size) == (1, size, size)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0, "GPU": 4.0})  # others hold the rest
    assert scoring.encoder_pool(config, run, 48)[1]["compute"].initial_size == 1
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    assert scoring.encoder_pool(config, run, 10**6)[1]["compute"].initial_size == min(most, 15 if gpus else 8)
    monkeypatch.setattr(scoring, "held", lambda: {"CPU": resources["CPU"]})
    assert scoring.encoder_pool(config, run, 48)[1]["compute"].max_size == 1


def test_a_block_for_a_gpu_is_not_mostly_padding(monkeypatch: pytest.MonkeyPatch, quickstart: Config, tmp_path: Path) -> None:
    import ray
    import torch
    from transformers import AutoTokenizer

    for name in ("cluster_resources", "available_resources"):
        monkeypatch.setattr(ray, name, lambda: {"CPU": 16.0, "GPU": 4.0})
    config = quickstart.model_copy(update={"engine": quickstart.engine.model_copy(update={"device": "gpu"})})
    blocks, _ = scoring.encoder_pool(config, RunFolder(str(tmp_path)), 2000)
    monkeypatch.setattr(embeddings, "TOKENS", {"cpu": embeddings.TOKENS["cuda"]})
    encoder: Any = object.__new__(embeddings.Encoder)  # without its model
    computed: list[int] = []

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        computed.append(input_ids.numel())
        return SimpleNamespace(last_hidden_state=torch.ones(*input_ids.shape, 1))

    encoder.device, encoder.model, encoder.dimension, encoder.max_length = "cpu", model, 1, embeddings.MAX_LENGTH
    encoder.tokenizer = AutoTokenizer.from_pretrained(local_model("embedded:minilm"))
    texts = [example.text for example in load_task(quickstart).test] * 4
    texts = texts[: 2000 // blocks]
    encoder.encode(texts)
    assert sum(computed) < 2 * sum(map(len, encoder.tokenizer(texts)["input_ids"]))
