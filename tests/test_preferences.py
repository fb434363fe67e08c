"""Preference pairs: mined from the candidates, after the paper, and the stage that writes them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from divray.config import Config, parse_config
from divray.datasets.stage import examples_table
from divray.preferences import CANDIDATES, RIGHT, WAYS, WAYS_EACH, mined_pairs, near_copy, paper_pairs, run
from divray.prompts.record import completion_of, read_records
from divray.relations import Example, Relation, render_marked
from divray.run_folder import RunFolder
from divray.schemas import PAIRS, PROMPTS, SAMPLES, SCORES
from divray.sections import PreferencesConfig

RELATIONS = {
    "r": Relation("r", "The head made the tail.", "person", "thing"),
    "s": Relation("s", "The head sold the tail.", "person", "thing"),
}


def seed_example(relation: str, number: int) -> Example:
    head, tail = f"{relation}head{number}", f"{relation}tail{number}"
    text = f"On day {number} the {head} was near a {tail}."
    h, t = text.index(head), text.index(tail)
    return Example(text, (h, h + len(head)), (t, t + len(tail)), relation, "", "", f"{relation}-{number}")


SEED_EXAMPLES = [seed_example(relation, number) for relation in ("r", "s") for number in range(5)]
SEEDS = examples_table(SEED_EXAMPLES)


def candidate(
    number: int, correctness: float = 0.9, novelty: float = 0.5, given: bool = False, relation: str = "r", chat: bool = False, **other: Any
) -> dict[str, Any]:
    """A scored sample; with ``valid`` false a completion that is no record."""
    head, tail = f"Head {number}", f"tail {number}"
    example = Example(f"{head} made the {tail}.", (0, len(head)), (len(head) + 10, len(head) + 10 + len(tail)), relation)
    name, prompt_id = f"{relation}-{number:03d}", f"{relation}-p{number // 8}{'-given' * given}"
    end = "Answer in JSON.<assistant>" if chat else "Sentence:" if given else "Head (person):"
    wish = "Write the sentence of a new record whose head is it. " if chat and given else ""
    return {
        "candidate_id": name, "relation": relation, "strategy": "independent", "policy": "base", "round": 0,
        "prompt_id": prompt_id, "prompt": f"Prompt {prompt_id}\n{wish}{end}", "given": given, "valid": True,
        "completion": completion_of(RELATIONS[relation], example, given, chat).rstrip("\n"), "text": example.text,
        "head_start": example.head[0], "head_end": example.head[1], "tail_start": example.tail[0], "tail_end": example.tail[1],
        "correctness": correctness, "correct": correctness >= 0.4, "unique": True, "novelty": novelty,
    } | other  # fmt: skip


def broken(number: int, completion: str = "no record", **other: Any) -> dict[str, Any]:
    row = candidate(number, **other) | dict.fromkeys(("correctness", "correct", "unique", "novelty", "text"))
    return row | {"completion": completion, "valid": False}


def mined(
    rows: list[dict[str, Any]], relations: dict[str, Relation] = RELATIONS, chat: bool = False, bare: bool = False, **settings: Any
) -> list[dict[str, Any]]:
    """``bare``: without seeds and other relations to take from."""
    seeds = [] if bare else [example for example in SEED_EXAMPLES if example.relation == "r"]
    others = {} if bare else {name: [example for example in SEED_EXAMPLES if example.relation == name] for name in ("r", "s")}
    table = pa.Table.from_pylist(rows, CANDIDATES)
    made = mined_pairs(table, relations, seeds, others, PreferencesConfig.model_validate(settings), 13, chat)
    assert made.schema.equals(PAIRS)
    return made.to_pylist()


def test_the_most_different_right_ones_are_chosen() -> None:
    rows = [candidate(number, novelty=novelty) for number, novelty in enumerate((0.1, 0.5, 0.9, 0.3, 0.7, 0.2))]
    assert {pair["chosen_id"] for pair in mined(rows)} == {"r-001", "r-002", "r-003", "r-004"}
    assert [pair["chosen_id"] for pair in mined(rows, max_pairs_per_relation=1)] == ["r-002"]


def test_those_that_name_what_a_seed_names_are_chosen_last() -> None:
    rows = [candidate(number, novelty=0.5 - number / 10) for number in range(3)]
    known = {**candidate(9, novelty=0.9), "text": "rHead1 made the tail 9.", "head_end": 6, "tail_start": 16, "tail_end": 22}
    assert {pair["chosen_id"] for pair in mined([*rows, known])} == {"r-000", "r-001"}
    assert [pair["rejected_id"] for pair in mined([*rows, known]) if pair["kind"] == "alike"][:1] == ["r-009"]


@pytest.mark.parametrize("wrong", [{"correctness": 0.3}, {"unique": False}])
def test_one_outside_the_gate_or_a_copy_is_never_chosen(wrong: dict[str, Any]) -> None:
    rows = [candidate(number, novelty=0.9, **wrong) for number in range(4)]
    assert mined(rows) == []
    assert {pair["chosen_id"] for pair in mined([*rows, candidate(9, novelty=0.1), candidate(8, novelty=0.1)])} == {"r-008"}


GIVEN, GIVEN_ALIKE = candidate(1, novelty=0.9, given=True), candidate(2, novelty=0.1, given=True)
ONE, ALIKE = candidate(1, novelty=0.9), candidate(2, novelty=0.1)
WORST = candidate(4, 0.1)
MIRRORED = " tail 1\nTail (thing): Head 1\nSentence: Head 1 made the tail 1.\n\n"
SEED, OTHER = seed_example("r", 1), seed_example("s", 1)


@pytest.mark.parametrize(
    ("way", "rows", "seeds", "others", "rejected_id", "rejected"),
    [
        ("doubtful", [ONE, candidate(3, 0.2), WORST], [], [], "r-004", f"{WORST['completion']}\n\n"),
        ("invalid", [ONE, broken(5)], [SEED], [OTHER], "r-005", "no record\n\n"),
        ("mirrored", [ONE, ALIKE], [SEED], [OTHER], "mirror:r-001", MIRRORED),
        ("other_relation", [GIVEN, GIVEN_ALIKE], [SEED], [OTHER], "s-1", " On day 1 the shead1 was near a stail1.\n"),
        ("near_copy", [GIVEN, GIVEN_ALIKE], [SEED], [], "seed:r-1", " On day 1 this Head 1 was near a tail 1.\n"),
        ("alike", [GIVEN, GIVEN_ALIKE], [], [], "r-002", " Head 2 made the tail 2.\n"),
    ],
)  # fmt: skip
def test_each_way_to_be_wrong(
    way: str, rows: list[dict[str, Any]], seeds: list[Example], others: list[Example], rejected_id: str, rejected: str
) -> None:
    table = pa.Table.from_pylist(rows, CANDIDATES)
    pairs = mined_pairs(table, RELATIONS, seeds, {"s": others, "r": [SEED]}, PreferencesConfig(), 13).to_pylist()
    assert {pair["kind"]: pair for pair in pairs}[way] == {
        "pair_id": f"r-001--{way}", "relation": "r", "prompt": rows[0]["prompt"], "kind": way, "chosen_id": "r-001",
        "chosen": rows[0]["completion"] + ("\n" if rows[0]["given"] else "\n\n"), "rejected_id": rejected_id, "rejected": rejected,
    }  # fmt: skip


def test_beyond_two_pairs_of_a_chosen_one_nothing_right_is_rejected() -> None:
    rows = [candidate(1, novelty=0.9), *(candidate(number, novelty=0.1) for number in range(2, 9)), candidate(20, 0.2), broken(21)]
    rows = [row if row["candidate_id"] == "r-001" or not row["valid"] else {**row, "unique": False} for row in rows]
    kinds = Counter(pair["kind"] for pair in mined(rows))
    assert len(kinds) >= 4 and sum(kinds[way] for way in RIGHT) <= WAYS_EACH and {"doubtful", "invalid", "mirrored"} <= kinds.keys()
    assert "doubtful" not in {pair["kind"] for pair in mined([candidate(1), candidate(2, 0.5, correct=False)])}


def test_relations_begin_with_different_ways() -> None:
    relations = {name: Relation(name, "", "person", "thing") for name in "abcder"}
    others = {name: [replace(OTHER, relation=name)] for name in relations}
    kinds = set()
    for name in relations:
        rows = [{**row, "relation": name} for row in (ONE, ALIKE, candidate(3, 0.2), broken(5))]
        table = pa.Table.from_pylist(rows, CANDIDATES)
        (pair,) = mined_pairs(
            table, relations, [replace(SEED, relation=name)], others, PreferencesConfig(max_pairs_per_relation=1), 13
        ).to_pylist()
        kinds.add(pair["kind"])
    assert kinds == set(WAYS)


def test_a_pair_is_mirrored_only_where_the_types_tell_head_from_tail() -> None:
    alike = {"r": Relation("r", "The two are married.", "person", "person")}
    untyped = {"r": Relation("r", "The head caused the tail.")}
    rows = [candidate(1), candidate(2)]
    assert {pair["kind"] for pair in mined(rows, bare=True)} == {"mirrored", "alike"}
    for relations in (alike, untyped):
        assert {pair["kind"] for pair in mined(rows, relations, bare=True)} == {"alike"}


def test_the_worst_judged_come_first() -> None:
    rows = [candidate(number) for number in range(12)] + [candidate(105, 0.2), candidate(106, 0.1), broken(107), broken(108)]
    pairs = mined(rows, {"r": Relation("r", "")}, bare=True)
    found = {way: [pair["rejected_id"] for pair in pairs if pair["kind"] == way] for way in ("doubtful", "invalid")}
    assert found == {"doubtful": ["r-106", "r-105"], "invalid": ["r-107", "r-108"]}


def many(seed: int = 0, relation: str = "r", chat: bool = False, given: bool | None = None) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(96):
        here = given if given is not None else number // 8 % 2 == 0
        correctness, novelty = (round(float(rng.uniform()), 3) for _ in range(2))
        if number % 7 == 0:
            rows.append(broken(number, given=here, relation=relation, chat=chat))
        else:
            rows.append(candidate(number, correctness, novelty, here, relation, chat, unique=number % 5 > 0))
    return rows


@pytest.mark.parametrize("chat", [False, True])
def test_no_way_prevails_and_each_chosen_one_stands_in_several_pairs(chat: bool) -> None:
    rows = many(chat=chat)
    pairs = mined(rows, chat=chat, max_pairs_per_relation=48)
    kinds = Counter(pair["kind"] for pair in pairs)
    assert kinds.keys() == set(WAYS) and max(kinds.values()) - min(kinds.values()) <= 2 and len(pairs) >= 15
    names = {row["candidate_id"] for row in rows}
    chosen, refused = (Counter(pair[f"{side}_id"] for pair in pairs if pair[f"{side}_id"] in names) for side in ("chosen", "rejected"))
    assert min(chosen.values()) >= WAYS_EACH and set(refused.values()) == {1} and not chosen.keys() & refused.keys()
    gate = {row["candidate_id"] for row in rows if row["correct"] and row["unique"]}
    assert {pair["chosen_id"] for pair in pairs} <= gate
    assert [pair["pair_id"] for pair in pairs] == sorted(pair["pair_id"] for pair in pairs)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert len(mined(rows, chat=chat, max_pairs_per_relation=4)) == 4


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_both_sides_end_and_look_as_sampled_text_does(chat: bool, given: bool) -> None:
    pairs = mined(many(chat=chat, given=given), chat=chat, max_pairs_per_relation=1000)
    assert {pair["kind"] for pair in pairs} == set(WAYS) - ({"mirrored"} if given else set())
    for pair in pairs:
        for side in ("chosen", "rejected"):
            text = pair[side]
            if text.strip() == "no record":
                continue
            if chat:
                assert list(json.loads(text)) == (["sentence"] if given else ["head", "tail", "sentence"])
            else:
                assert text.startswith(" ") and text.rstrip("\n") + ("\n" if given else "\n\n") == text
                assert text.count("\n") == (1 if given else 4)
            assert len(read_records(text, ("a", "b") if given else None)) == 1
    assert not chat or all(pair["prompt"].endswith("<assistant>") for pair in pairs)


def test_order_of_the_rows_changes_nothing() -> None:
    rows = many()
    order = np.random.default_rng(1).permutation(len(rows))
    assert mined([rows[row] for row in order]) == mined(rows)


def prompt_row(number: int, relation: str = "r", strategy: str = "independent", shown: int = 3) -> dict[str, Any]:
    names = [f"{relation}-{(number + offset) % 5}" for offset in range(shown)]
    prompt_id = f"r00-{relation}-{strategy}-{number // 2:04d}"
    return {
        "candidate_id": f"r00-{relation}-{strategy}-{number:06d}", "relation": relation, "round": 0, "strategy": strategy,
        "prompt_id": prompt_id, "prompt": f"Prompt {prompt_id}\nHead (person):", "head": "", "tail": "", "pattern": "", "seed": number,
        "demonstrations": names if number % 2 == 0 else [f"{relation}-{(number - 1 + offset) % 5}" for offset in range(shown)],
    }  # fmt: skip


def paper(rows: list[dict[str, Any]], cap: int = 100, chat: bool = False) -> list[dict[str, Any]]:
    settings = PreferencesConfig(max_pairs_per_relation=cap)
    return paper_pairs(pa.Table.from_pylist(rows, PROMPTS), RELATIONS, SEED_EXAMPLES, settings, 13, chat).to_pylist()


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_paper_s_three_kinds(given: bool, chat: bool) -> None:
    rows = [prompt_row(number) | ({"head": "Ada", "tail": "Hask"} if given else {}) for number in range(12)]
    pairs = paper(rows, chat=chat)
    assert Counter(pair["kind"] for pair in pairs) == {"relabelled": 6, "near_copy": 6, "copy": 6}
    seeds = [example for example in SEED_EXAMPLES if example.relation == "r"]
    own = {completion_of(RELATIONS["r"], example, given, chat): example.example_id for example in seeds}
    demonstrations = {row["prompt_id"]: set(row["demonstrations"]) for row in rows}
    for pair in pairs:
        shown = demonstrations[pair["pair_id"].rpartition("--")[0]]
        assert own[pair["chosen"]] == pair["chosen_id"].removeprefix("seed:") and own[pair["chosen"]] not in shown
        if pair["kind"] == "copy":
            assert own[pair["rejected"]] in shown
        elif pair["kind"] == "near_copy":
            assert pair["rejected"] not in own and len(read_records(pair["rejected"], ("a", "b") if given else None)) == 1
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
    assert render_marked(near_copy(example, donor)) == "On day 0 this [rhead1] was near a {rtail1}."
    bare = Example("Rome hosts Ada", (11, 14), (0, 4), "r")
    assert render_marked(near_copy(bare, donor)) == "{rtail1} hosts [rhead1]"


def settings(mode: str, style: str = "completion") -> Config:
    values = {"task": {"name": "toy", "relations": "r.yaml"}, "preferences": {"mode": mode, "max_pairs_per_relation": 6}}
    return parse_config({**values, "prompts": {"style": style}}, "test")


def write_task(folder: RunFolder) -> None:
    folder.write_json(
        "data/relations.json",
        [{"name": r.name, "description": "d", "head_type": "person", "tail_type": "thing"} for r in RELATIONS.values()],
    )
    folder.write_table("data/seeds", SEEDS)


def write_round(folder: RunFolder, rows: list[dict[str, Any]], rows_per_file: int) -> None:
    """``rejection`` of a row that is not valid: ``missing_head``, unless it says another."""
    rest = {"head_type": "", "tail_type": "", "cluster": "", "nearest_id": "", "similarity": 0.0, "reason": "", "embedding": [1.0]}
    samples = [rest | row | {"rejection": row.get("rejection", "" if row["valid"] else "missing_head")} for row in rows]
    write_task(folder)
    for name, schema, some in (
        ("samples", SAMPLES, samples),
        ("scores", SCORES, [row for row in samples if not row["rejection"]]),
    ):
        table = pa.Table.from_pylist([{column: row.get(column) for column in schema.names} for row in some], schema)
        folder.write_table(f"round-00/{name}", table, rows_per_file)


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_stage_mined(ray_two_cpus: None, tmp_path: Any, style: str) -> None:
    chat = style == "chat"
    rows = many(chat=chat) + many(1, "s", chat)
    rows += [candidate(200 + number, 0.99, 0.99, chat=chat, strategy="naive") for number in range(4)]
    rows += [candidate(300 + number, 0.99, 0.99, chat=chat, strategy="all_at_once") for number in range(4)]
    rows += [broken(400 + number, "cut", chat=chat, rejection="truncated") for number in range(4)]
    tables = []
    for number, order in enumerate((rows, [rows[i] for i in np.random.default_rng(3).permutation(len(rows))])):
        folder = RunFolder(str(tmp_path / str(number)))
        write_round(folder, order, rows_per_file=17 + 40 * number)
        counts = run(settings("mined", style), folder, 0)
        tables.append(folder.read_table("round-00/pairs"))
    assert counts == {"pairs": 12} and Counter(tables[0]["relation"].to_pylist()) == {"r": 6, "s": 6}
    assert set(tables[0]["kind"].to_pylist()) == set(WAYS)
    assert tables[0].equals(tables[1]) and tables[0].schema.equals(PAIRS)
    given = {row["candidate_id"]: row["given"] for row in rows}
    for pair in tables[0].to_pylist():
        assert pair["chosen_id"][2] in "01" and "cut" not in pair["rejected"]
        assert pair["chosen"].strip() != pair["rejected"].strip()
        if pair["kind"] not in ("invalid", "doubtful", "alike"):
            made = read_records(pair["rejected"], ("a", "b") if given[pair["chosen_id"]] else None)
            assert len(made) == 1 and ("head" in pair["rejected"][:9] or not chat or given[pair["chosen_id"]])
            assert pair["rejected"].count("\n") == (0 if chat else 1 if given[pair["chosen_id"]] else 4)


def test_stage_mined_without_a_valid_sample(ray_two_cpus: None, tmp_path: Any) -> None:
    folder = RunFolder(str(tmp_path))
    write_round(folder, [broken(number) for number in range(3)], 5)
    assert run(settings("mined"), folder, 0)["pairs"] == 0


def test_stage_paper(ray_two_cpus: None, tmp_path: Any) -> None:
    folder = RunFolder(str(tmp_path))
    write_task(folder)
    rows = [prompt_row(number, relation) for relation in ("r", "s") for number in range(8)]
    folder.write_table("round-00/prompts", pa.Table.from_pylist(rows, PROMPTS), rows_per_file=5)
    run(settings("paper"), folder, 0)
    pairs = folder.read_table("round-00/pairs")
    assert Counter(pairs["relation"].to_pylist()) == {"r": 6, "s": 6}
    assert set(pairs["kind"].to_pylist()) <= {"relabelled", "near_copy", "copy"}
    assert pairs["pair_id"].to_pylist() == sorted(pairs["pair_id"].to_pylist())
