"""Explanations of candidates of every fate, from a small run folder."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from divray import schemas
from divray.cli import main
from divray.config import Config, dump_config
from divray.errors import InputError
from divray.explain import explain
from divray.relations import parse_marked
from divray.run_folder import RunFolder
from divray.scoring.near_copies import deduplicate
from divray.textfiles import parse_yaml

CONFIG = Config.model_validate(
    {
        "task": {"name": "Tiny", "relations": "r.yaml"},
        "rounds": 1,
        "selection": {"k": 1},
        "diversity": {"guard_test": True},
        "correctness": {"threshold": "auto"},
    }
)
CASES = {
    "r00-a-000": "The [storm] caused the {flood} in the wide valley last year .",
    "r00-a-001": "The [quake] caused the {fire} in the wide valley last year .",
    "r00-a-002": "A small [leak] led to a great {loss} of oil in the bay .",
    "r00-a-003": "No [rain] for months was the reason for the {drought} here .",
    "r00-a-004": "Smoking makes [smokers] ill and leaves them with {cancer} in old age .",
    "r00-a-005": "The {mess} that we see today comes from the [strike] of last week .",
    "r00-a-006": "A [cold] gave her a {cough} that did not go away .",
    "r00-a-007": "[Rust] ate the {bridge} .",
    "r00-a-008": "never finished",
    "r00-a-009": "The [naive] one is the cause of the {baseline} .",
}
SEED = "The strike of the [drivers] brought the whole {town} to a halt ."


def sentence(marked: str) -> dict[str, Any]:
    parsed = parse_marked(marked)
    assert parsed is not None
    text, head, tail = parsed
    return {"text": text, "head_start": head[0], "head_end": head[1], "tail_start": tail[0], "tail_end": tail[1]}


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


@pytest.fixture
def run(uri: str) -> RunFolder:
    """000 is kept and selected, 001 a near copy of it, 002 below the gate, 003 not among the K, 004 in conflict, 005 near the test
    set, 006 rejected, 007 not scored, 008 not sampled, 009 of the baseline."""
    run = RunFolder(uri)
    run.write_text("config.yaml", dump_config(CONFIG))
    run.write_table("data/seeds", table([{"example_id": "s/1", "relation": "cause", **sentence(SEED)}], schemas.EXAMPLES))
    run.write_table("data/test", table([{"example_id": "t9", "relation": "cause", **sentence(CASES["r00-a-005"])}], schemas.EXAMPLES))
    rows = []
    for number, (name, marked) in enumerate(CASES.items()):
        row = {"candidate_id": name, "relation": "cause", "round": 0, "strategy": "naive" if number == 9 else "anchored", "sentences": 1}
        row |= {"prompt_id": "p0", "prompt": "Write one.", "pattern": "", "seed": number, "demonstrations": ["s/1"], "completion": marked}
        row |= {"prompt_tokens": 9, "generated_tokens": 20, "started_at": 10.0, "finished_at": 12.5, "engine": "e1", "error": ""}
        rejected = {"text": "", "rejection": "no_sentence_end"} if number == 6 else {"rejection": ""}
        rows.append(row | ({} if number == 8 else sentence(marked)) | rejected)
    run.write_table("round-00/prompts", table(rows, schemas.PROMPTS))
    run.write_table("round-00/completions", table(rows[:8] + rows[9:], schemas.COMPLETIONS))
    run.write_table("round-00/samples", table(rows[:8] + rows[9:], schemas.SAMPLES))
    scored = [row | {"correctness": 0.9 - n / 10, "correct": n != 2, "novelty": 0.5} for n, row in enumerate(rows) if n < 6 or n == 9]
    marks = {4: {"conflict": "r00-b-000", "conflict_relation": "place"}, 5: {"near_test": "t9"}}
    reasons = {4: "labelling conflict with r00-b-000 under place (0.90)", 5: "near test example t9 (1.00)"}
    for number, row in enumerate(scored):
        row |= {"conflict": "", "conflict_relation": "", "near_test": "", **marks.get(number, {})}
    free = deduplicate(table(scored[:4] + scored[6:], schemas.SCORES), CONFIG.diversity)
    barred = {"unique": False, "similarity": 0.9}
    out = [
        {**scored[n], **barred, "reason": reasons[n], "cluster": scored[n]["candidate_id"], "nearest_id": near}
        for n, near in ((4, "r00-b-000"), (5, "test:t9"))
    ]
    other = {**scored[4], "candidate_id": "r00-b-000", "relation": "place", "conflict": "r00-a-004", "unique": False}
    run.write_table("round-00/scores", pa.concat_tables([free, table([*out, other], schemas.SCORES)]))
    run.write_table("round-00/samples", table([*rows[:8], rows[9], {**other, "rejection": ""}], schemas.SAMPLES))
    pair = {"pair_id": "p", "kind": "mined", "chosen_id": "r00-a-000", "rejected_id": "r00-a-002"}
    run.write_table("round-00/pairs", table([pair], schemas.PAIRS))
    run.write_table("comparison/selected", table([{"sample_id": "r00-a-000", "relation": "cause"}], schemas.DATASET))
    return run


@pytest.mark.parametrize(
    ("number", "outcome", "words"),
    [
        (0, "selected", "Selected: unique"),
        (1, "near copy", "near copy of r00-a-000 (1.00)"),
        (2, "below the gate", "0.70 is below the gate (auto)"),
        (3, "more than K", "none of the K = 1 selected"),
        (4, "conflict", "under place"),
        (5, "near test", "near test example t9"),
        (6, "rejected", "no sentence end"),
        (7, "pending", "not been scored"),
        (8, "pending", "not been sampled"),
        (9, "baseline", "naive"),
    ],
)
def test_what_became_of_a_candidate(run: RunFolder, number: int, outcome: str, words: str) -> None:
    found = explain(run.uri, f"r00-a-{number:03d}")
    assert found["outcome"] == outcome and words in found["why"]
    assert found["origin"]["prompt_id"] == "p0"
    assert [row["sentence"] for row in found["origin"]["demonstrations"]] == [SEED]
    assert json.loads(json.dumps(found)) == found


def test_nearest_cluster_and_pairs(run: RunFolder) -> None:
    found = explain(run.uri, "r00-a-001")
    nearest = found["nearest"]
    assert (nearest["id"], nearest["sentence"]) == ("r00-a-000", CASES["r00-a-000"])
    assert (nearest["similarity"], nearest["kept"]) == (1.0, True)
    assert [explain(run.uri, f"r00-a-{number:03d}")["nearest"] for number in (0, 3, 4, 5, 7)] == [None] * 5
    assert found["cluster"]["size"] == 2 and found["cluster"]["kept"] == 1
    assert [member["id"] for member in found["cluster"]["members"]] == ["r00-a-000", "r00-a-001"]
    assert found["pairs"] == [] and explain(run.uri, "r00-a-002")["pairs"][0]["chosen_id"] == "r00-a-000"
    assert explain(run.uri, "r00-a-004")["conflict"]["relation"] == "place"
    assert explain(run.uri, "r00-a-005")["near_test"]["id"] == "t9"
    assert explain(run.uri, "r00-a-001")["origin"]["seconds"] == 2.5


def test_a_seed_of_a_relations_file_is_shown_with_its_sentence(run: RunFolder) -> None:
    """Its id begins with ``seed:`` itself, and prompts name it so."""
    run.write_table("data/seeds", table([{"example_id": "seed:cause/0", "relation": "cause", **sentence(SEED)}], schemas.EXAMPLES))
    prompts = [{**row, "demonstrations": ["seed:cause/0", "s/1"]} for row in run.read_table("round-00/prompts").to_pylist()]
    run.write_table("round-00/prompts", table(prompts, schemas.PROMPTS))
    found = explain(run.uri, "r00-a-000")["origin"]["demonstrations"]
    assert found[0]["sentence"] == SEED and found[1] == {"id": "s/1"}


def test_a_candidate_that_shares_its_request_is_found(run: RunFolder) -> None:
    prompts = run.read_table("round-00/prompts").to_pylist()
    prompts.append({**prompts[0], "candidate_id": "r00-a-000010", "prompt_id": "p1", "sentences": 4})
    run.write_table("round-00/prompts", table(prompts, schemas.PROMPTS))
    found = explain(run.uri, "r00-a-000013")
    assert (found["outcome"], found["origin"]["prompt_id"]) == ("pending", "p1")
    with pytest.raises(InputError):
        explain(run.uri, "r00-a-000014")


def test_an_unknown_id_is_one_line(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("r00-a-03", "nothing like it"):
        assert main(["explain", run.uri, name]) == 2
        assert f"{name}: no candidate of this run has that id. Ids stand in" in capsys.readouterr().err
    assert main(["explain", run.uri + "/data", "r00-a-003"]) == 2


def test_on_the_terminal(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", run.uri, "r00-a-001"]) == 0
    shown, _, rest = capsys.readouterr().out.partition("\n=== prompt\n")
    found = explain(run.uri, "r00-a-001")
    assert rest == f"Write one.\n\n=== completion\n{CASES['r00-a-001']}\n"
    assert parse_yaml(shown, "x") == {key: value for key, value in found.items() if value and key not in ("prompt", "completion")}
    for words in ("outcome: near copy", "sentence: The [quake] caused the {fire}", "similarity: 1.0", "gate: auto", "id: s/1"):
        assert words in shown


def test_generated_text_does_not_steer_the_terminal(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    completions = run.read_table("round-00/completions").to_pylist()
    samples = run.read_table("round-00/samples").to_pylist()
    completions[3]["completion"] = samples[3]["text"] = samples[3]["text"].replace("months", "\x1b[31m\u202em")
    run.write_table("round-00/completions", table(completions, schemas.COMPLETIONS))
    run.write_table("round-00/samples", table(samples, schemas.SAMPLES))
    assert main(["explain", run.uri, "r00-a-003"]) == 0
    shown = capsys.readouterr().out
    assert not {"\x1b", "\u202e"} & set(shown) and "\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}m" in shown
