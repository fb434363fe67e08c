"""Preference pairs: DivPO's rule, the paper's rule, and the stage that writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from divray.cluster import quiet_ray_data
from divray.config import Config, parse_config
from divray.datasets import examples_table
from divray.errors import InputError
from divray.preferences import mined_pairs, near_copy, paper_pairs, run
from divray.preferences.mined import CANDIDATES
from divray.relations import Example, parse_marked, render_marked
from divray.runs import RunFolder
from divray.schemas import PAIRS, PROMPTS, SAMPLES, SCORES
from divray.sections import PreferencesConfig


def candidate(name: str, correctness: float, novelty: float, prompt: str = "p0", **other: Any) -> dict[str, Any]:
    row = {
        "candidate_id": name, "relation": "r", "strategy": "independent",
        "policy": "base", "prompt_id": prompt, "prompt": f"Prompt {prompt}\n1.",
        "completion": f" [{name}] is of {{{prompt}}}.\n", "correctness": correctness, "correct": correctness >= 0.4, "unique": True,
        "novelty": novelty, "valid": True,
    }  # fmt: skip
    return row | other


def mined(rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    made = mined_pairs(pa.Table.from_pylist(rows, CANDIDATES), PreferencesConfig.model_validate(settings))
    assert made.schema.equals(PAIRS)
    return made.to_pylist()


def test_divpo_takes_the_most_different_of_the_best_and_the_least_different_of_the_worst() -> None:
    rows = [
        candidate("a", 0.90, 0.2), candidate("b", 0.80, 0.7), candidate("c", 0.70, 0.3),
        candidate("d", 0.30, 0.9), candidate("e", 0.20, 0.1), candidate("f", 0.10, 0.5),
    ]  # fmt: skip
    pairs = mined(rows)
    assert [(pair["chosen_id"], pair["rejected_id"]) for pair in pairs] == [("a", "d"), ("b", "e"), ("c", "f")]
    assert [(p["chosen_id"], p["rejected_id"]) for p in mined(rows, max_pairs_per_relation=1)] == [("b", "e")]
    assert pairs[1] == {
        "pair_id": "b--e", "relation": "r", "prompt": "Prompt p0\n1.", "chosen": " [b] is of {p0}.\n", "rejected": " [e] is of {p0}.\n",
        "kind": "mined", "chosen_id": "b", "rejected_id": "e",
    }  # fmt: skip


def test_copies_are_never_chosen_and_are_rejected_first() -> None:
    rows = [
        candidate("a", 0.9, 0.9, unique=False), candidate("b", 0.8, 0.2), candidate("c", 0.3, 0.1),
        candidate("d", 0.2, 0.8, unique=False),
    ]  # fmt: skip
    assert [(p["chosen_id"], p["rejected_id"]) for p in mined(rows)] == [("b", "d")]


def test_one_outside_the_gate_is_never_chosen() -> None:
    rows = [candidate("a", 0.3, 0.9), candidate("b", 0.2, 0.5), candidate("c", 0.1, 0.1)]
    assert mined(rows) == []


def test_an_invalid_completion_stands_in_only_where_nothing_else_can_be_rejected() -> None:
    broken = {"valid": False, "unique": False, "correct": False}
    rows = [candidate("a", 0.9, 0.5), candidate("x", 0.0, 0.0, **broken)]
    assert [(p["chosen_id"], p["rejected_id"]) for p in mined(rows)] == [("a", "x")]
    rows.append(candidate("b", 0.1, 0.5))
    assert [(p["chosen_id"], p["rejected_id"]) for p in mined(rows)] == [("a", "b")]


def test_what_a_prompt_leaves_over_is_paired_across_prompts_of_the_strategy() -> None:
    rows = [
        candidate("a", 0.9, 0.5, "p0"), candidate("b", 0.1, 0.5, "p1"),
        candidate("c", 0.9, 0.5, "p2", strategy="anchored"), candidate("d", 0.1, 0.5, "p3", strategy="other"),
    ]  # fmt: skip
    (pair,) = mined(rows)
    assert (pair["kind"], pair["chosen_id"], pair["rejected_id"], pair["prompt"]) == ("mined_across", "a", "b", "Prompt p0\n1.")


def test_chosen_and_rejected_always_differ() -> None:
    rows = [candidate("a", 0.9, 0.5, completion=" same\n"), candidate("b", 0.1, 0.5, completion="same")]
    assert mined(rows) == []


def many(seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        candidate(
            f"c{number:03d}", round(float(rng.uniform()), 3), round(float(rng.uniform()), 3), f"p{number // 8}", unique=number % 5 > 0
        )
        for number in range(80)
    ]


def test_cap_is_spread_over_prompts_and_each_candidate_is_used_once() -> None:
    pairs = mined(many(), max_pairs_per_relation=10)
    assert len(pairs) == 10 and max(Counter(pair["prompt"] for pair in pairs).values()) == 1
    everything = mined(many(), max_pairs_per_relation=1000)
    used = [name for pair in everything for name in (pair["chosen_id"], pair["rejected_id"])]
    assert len(used) == len(set(used)) and len(everything) > 20
    assert [pair["pair_id"] for pair in everything] == sorted(pair["pair_id"] for pair in everything)


def test_order_of_the_rows_changes_nothing() -> None:
    rows = many()
    order = np.random.default_rng(1).permutation(len(rows))
    assert mined([rows[row] for row in order]) == mined(rows)


def seed_example(relation: str, number: int) -> Example:
    head, tail = f"{relation}head{number}", f"{relation}tail{number}"
    text = f"On day {number} the {head} was near a {tail}."
    h, t = text.index(head), text.index(tail)
    return Example(text, (h, h + len(head)), (t, t + len(tail)), relation, "", "", f"{relation}-{number}")


SEED_EXAMPLES = [seed_example(relation, number) for relation in ("r", "s") for number in range(5)]
SEEDS = examples_table(SEED_EXAMPLES)


def prompt_row(number: int, relation: str = "r", strategy: str = "independent", shown: int = 3) -> dict[str, Any]:
    names = [f"{relation}-{(number + offset) % 5}" for offset in range(shown)]
    prompt_id = f"r00-{relation}-{strategy}-{number // 2:04d}"
    return {
        "candidate_id": f"r00-{relation}-{strategy}-{number:06d}", "relation": relation, "round": 0, "strategy": strategy,
        "prompt_id": prompt_id, "prompt": f"Prompt {prompt_id}", "pattern": "", "seed": number,
        "demonstrations": names if number % 2 == 0 else [f"{relation}-{(number - 1 + offset) % 5}" for offset in range(shown)],
    }  # fmt: skip


def paper(rows: list[dict[str, Any]], cap: int = 100) -> list[dict[str, Any]]:
    return paper_pairs(pa.Table.from_pylist(rows, PROMPTS), SEEDS, PreferencesConfig(max_pairs_per_relation=cap), 13).to_pylist()


def test_the_paper_s_three_kinds() -> None:
    rows = [prompt_row(number) for number in range(12)]
    pairs = paper(rows)
    assert Counter(pair["kind"] for pair in pairs) == {"relabelled": 6, "near_copy": 6, "copy": 6}
    own = {f" {render_marked(example)}\n": example.example_id for example in SEED_EXAMPLES if example.relation == "r"}
    demonstrations = {row["prompt_id"]: set(row["demonstrations"]) for row in rows}
    for pair in pairs:
        shown = demonstrations[pair["pair_id"].rpartition("--")[0]]
        assert own[pair["chosen"]] == pair["chosen_id"].removeprefix("seed:") and own[pair["chosen"]] not in shown
        if pair["kind"] == "copy":
            assert own[pair["rejected"]] in shown
        elif pair["kind"] == "near_copy":
            assert pair["rejected"] not in own and not isinstance(parse_marked(pair["rejected"].strip()), str)
            assert pair["rejected_id"].removeprefix("seed:") in shown
        else:
            assert pair["rejected_id"].startswith("seed:s-")


def test_paper_cap_spreads_over_prompts_and_naive_prompts_give_nothing() -> None:
    rows = [prompt_row(number) for number in range(12)]
    assert len({pair["prompt"] for pair in paper(rows, cap=6)}) == 6
    assert paper(rows[::-1]) == paper(rows)
    assert paper([prompt_row(0, strategy="naive")]) == []
    assert paper([prompt_row(0, shown=5)]) == []


def test_near_copy_changes_entities_and_one_word() -> None:
    example, donor = SEED_EXAMPLES[0], SEED_EXAMPLES[1]
    assert near_copy(example, donor) == "On day 0 this [rhead1] was near a {rtail1}."
    bare = Example("Rome hosts Ada", (11, 14), (0, 4), "r")
    assert near_copy(bare, donor) == "In fact, {rtail1} hosts [rhead1]"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    quiet_ray_data(False)
    yield
    if started:
        ray.shutdown()


def settings(mode: str) -> Config:
    return parse_config(
        {"task": {"name": "toy", "relations": "r.yaml"}, "preferences": {"mode": mode, "max_pairs_per_relation": 6}}, "test"
    )


def write_round(folder: RunFolder, rows: list[dict[str, Any]], rows_per_file: int) -> None:
    spans = {"text": "t", "head_start": 0, "head_end": 1, "tail_start": 0, "tail_end": 0, "head_type": "", "tail_type": "", "round": 0}
    rest = {"cluster": "", "nearest_id": "", "similarity": 0.0, "reason": "", "embedding": [1.0]}
    samples = [row | spans | {"rejection": row.get("rejection", "")} for row in rows]
    scores = [row | rest for row in samples if not row["rejection"]]
    folder.write_json("data/relations.json", [{"name": name, "description": "d"} for name in ("r", "s")])
    folder.write_table(
        "round-00/samples", pa.Table.from_pylist([{n: row[n] for n in SAMPLES.names} for row in samples], SAMPLES), rows_per_file
    )
    folder.write_table(
        "round-00/scores", pa.Table.from_pylist([{n: row.get(n, "") for n in SCORES.names} for row in scores], SCORES), rows_per_file
    )


def test_stage_mined(cluster: None, tmp_path: Any) -> None:
    rows = many() + [
        row | {"relation": "s", "candidate_id": f"s{row['candidate_id']}", "prompt_id": f"s{row['prompt_id']}"} for row in many(1)
    ]
    rows += [candidate(f"n{number}", 0.9 - number / 10, 0.5, "pn", strategy="naive") for number in range(8)]
    rows += [
        candidate("x0", 0.99, 0.9, "px"),
        candidate("x1", 0, 0, "px", rejection="truncated"),
        candidate("x2", 0, 0, "px", rejection="no_head"),
    ]
    tables = []
    for number, order in enumerate((rows, [rows[i] for i in np.random.default_rng(3).permutation(len(rows))])):
        folder = RunFolder(str(tmp_path / str(number)))
        write_round(folder, order, rows_per_file=17 + 40 * number)
        counts = run(settings("mined"), folder, 0)
        tables.append(folder.read_table("round-00/pairs"))
    assert counts == {"pairs": 12, "kinds": {"mined": 12}, "relations": {"r": 6, "s": 6}}
    assert tables[0].equals(tables[1]) and tables[0].schema.equals(PAIRS)
    pairs = tables[0].to_pylist()
    assert ("x0", "x2") in [(pair["chosen_id"], pair["rejected_id"]) for pair in pairs]
    assert not any(pair["chosen_id"].startswith("n") for pair in pairs)
    assert all(pair["chosen"].strip() != pair["rejected"].strip() for pair in pairs)


def test_stage_paper(cluster: None, tmp_path: Any) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write_json("data/relations.json", [{"name": name, "description": "d"} for name in ("r", "s")])
    folder.write_table("data/seeds", SEEDS)
    rows = [prompt_row(number, relation) for relation in ("r", "s") for number in range(8)]
    folder.write_table("round-00/prompts", pa.Table.from_pylist(rows, PROMPTS), rows_per_file=5)
    counts = run(settings("paper"), folder, 0)
    assert counts["relations"] == {"r": 6, "s": 6} and set(counts["kinds"]) <= {"relabelled", "near_copy", "copy"}
    pairs = folder.read_table("round-00/pairs")
    assert pairs["pair_id"].to_pylist() == sorted(pairs["pair_id"].to_pylist())

    folder.write_table("round-00/prompts", pa.Table.from_pylist([prompt_row(0, shown=5)], PROMPTS))
    with pytest.raises(InputError, match=r"prompts\.demonstrations"):
        run(settings("paper"), folder, 0)
