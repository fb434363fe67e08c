"""The pass over all relations of a round, on a run folder without Ray."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from divray.config import Config
from divray.relations import parse_marked
from divray.run_folder import RunFolder
from divray.schemas import EXAMPLES, SAMPLES, SCORES
from divray.scoring.conflicts import BARRED, MARKS, across_relations, marked

STORM = "The [storm] caused the {flood} in the wide valley last year ."
HOUSE = "Her [brother] lives in a small {house} near the old harbour ."
CAR = "The [engine] is the most expensive part of a {car} like this one ."


def row(name: str, relation: str, marked_text: str, **other: Any) -> dict[str, Any]:
    parsed = parse_marked(marked_text)
    assert parsed is not None
    text, head, tail = parsed
    spans = {"head_start": head[0], "head_end": head[1], "tail_start": tail[0], "tail_end": tail[1]}
    return {"candidate_id": name, "example_id": name, "relation": relation, "strategy": "independent", "text": text, **spans, **other}


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def config(**diversity: Any) -> Config:
    return Config.model_validate({"task": {"name": "t", "relations": "r.yaml"}, "diversity": diversity})


@pytest.fixture
def run(uri: str) -> RunFolder:
    run = RunFolder(uri)
    run.write_table("data/seeds", table([row("s1", "lives", HOUSE)], EXAMPLES))
    run.write_table("data/test", table([row("t1", "cause", STORM), row("t2", "whole", CAR)], EXAMPLES))
    rows = [
        row("b1", "cause", STORM),
        row("b2", "origin", STORM.replace(" .", " !")),
        row("b3", "owner", HOUSE),
        row("b4", "lives", HOUSE),
        row("b5", "whole", CAR),
        row("b6", "cause", "The [rain] made the {river} rise above all its banks .", strategy="naive"),
        row("b7", "origin", "The [rain] made the {river} rise above all its banks ."),
    ]
    run.write_table("new", table(rows, SAMPLES), rows_per_file=2)
    return run


def test_conflicts_within_a_round_and_with_seeds(run: RunFolder) -> None:
    marks = across_relations(config(), run.uri, "new", 0)
    assert marks.schema == MARKS
    found = {r["candidate_id"]: (r["conflict"], r["conflict_relation"]) for r in marks.to_pylist()}
    assert found == {"b1": ("b2", "origin"), "b2": ("b1", "cause"), "b3": ("seed:s1", "lives"), "b4": ("b3", "owner")}


def test_earlier_rounds_stay_and_their_conflicts_too(run: RunFolder) -> None:
    earlier = [
        row("a1", "origin", STORM, unique=False, conflict="a0"),
        row("a2", "part", CAR, unique=True, conflict=""),
        row("a3", "other", HOUSE, unique=False, conflict=""),
        row("a4", "other", CAR, unique=True, conflict="", strategy="naive"),
    ]
    run.write_table("round-00/scores", table(earlier, SCORES))
    marks = across_relations(config(), run.uri, "new", 1)
    found = dict(zip(marks["candidate_id"].to_pylist(), marks["conflict"].to_pylist(), strict=True))
    assert found == {"b1": "a1", "b2": "b1", "b3": "seed:s1", "b4": "b3", "b5": "a2"}


def test_the_test_set_is_guarded_on_request(run: RunFolder) -> None:
    marks = across_relations(config(guard_test=True), run.uri, "new", 0).to_pylist()
    assert {r["candidate_id"]: r["near_test"] for r in marks if r["near_test"]} == {"b1": "t1", "b2": "t1", "b5": "t2"}


def test_what_is_dropped_says_why(run: RunFolder) -> None:
    settings = config(guard_test=True)
    rows = marked(run.read_table("new"), across_relations(settings, run.uri, "new", 0))
    gone = {r["candidate_id"]: r for r in rows.filter(BARRED).to_pylist()}
    assert list(gone) == ["b1", "b2", "b3", "b4", "b5"]
    assert gone["b1"]["reason"] == "near test example t1 (1.00)" and gone["b1"]["nearest_id"] == "test:t1"
    assert gone["b3"]["reason"] == "labelling conflict with seed:s1 under lives (1.00)"
    assert gone["b3"]["nearest_id"] == "seed:s1" and gone["b3"]["similarity"] == 1.0
    clean = rows.filter(~BARRED)
    assert clean["candidate_id"].to_pylist() == ["b6", "b7"]
    assert clean["conflict"].to_pylist() == [""] * 2 and clean["similarity"].to_pylist() == [0.0] * 2
