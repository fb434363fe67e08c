from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray import schemas
from divray.config import Config
from divray.console import visible
from divray.report import charts, spread
from divray.report.account import account, busy_shares, engine_time
from divray.report.excerpts import pieces, side_by_side
from divray.report.findings import findings, headline, shortfalls
from divray.report.stage import run as report
from divray.report.stage import summarise
from divray.run_folder import RunFolder

EVIL = "<script>alert('x')</script>"


# busy time --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], 0.0),
        ([(0, 2)], 2.0),
        ([(0, 2), (1, 3)], 3.0),
        ([(5, 6), (0, 2)], 3.0),
        ([(0, 10), (2, 3), (4, 5), (9, 12)], 12.0),
        ([(0, 1), (1, 2)], 2.0),
        ([(3, 3)], 0.0),
        ([(4, 2), (0, 1)], 1.0),
    ],
)
def test_busy_shares_sum_to_the_busy_time(intervals: list[tuple[float, float]], expected: float) -> None:
    starts, ends = (np.array([pair[i] for pair in intervals], dtype=float) for i in (0, 1))
    assert busy_shares(starts, ends).sum() == pytest.approx(expected)


def test_busy_shares_splits_overlap_equally() -> None:
    shares = busy_shares(np.array([0.0, 0.0, 2.0, 9.0]), np.array([4.0, 2.0, 4.0, 10.0]))
    assert shares.tolist() == pytest.approx([2.0, 1.0, 1.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(-3, 20)), max_size=30))
def test_busy_shares_agree_with_counting(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([float(start) for start, _ in pairs])
    ends = np.array([float(start + length) for start, length in pairs])
    covered = {second for start, length in pairs for second in range(start, start + length)}
    shares = busy_shares(starts, ends)
    assert shares.sum() == pytest.approx(len(covered))
    assert (shares <= np.maximum(ends - starts, 0) + 1e-9).all()


def test_an_engines_idle_time_has_its_causes(tmp_path: Path) -> None:
    run, config = RunFolder(str(tmp_path)), _config(rounds=1)
    run.write_table(
        "round-00/prompts", _table([{"candidate_id": "a", "sentences": 1}, {"candidate_id": "b", "sentences": 4}], schemas.PROMPTS)
    )
    book = account(config, run)
    assert book.view(book.cells)["candidates"] == 5
    times = [("one", 20.0, 24.0), ("one", 23.0, 30.0), ("one", 40.0, 45.0), ("two", 50.0, 60.0)]
    rows = [{"candidate_id": str(n), "engine": e, "started_at": a, "finished_at": b} for n, (e, a, b) in enumerate(times)]
    run.write_table("round-00/completions", _table(rows, schemas.COMPLETIONS))
    engines = {"one": {"created_at": 0.0, "ready_at": 15.0}, "two": {"created_at": 47.0, "ready_at": 49.0}}
    record = {"began_at": 0.0, "ended_at": 61.0, "engines": engines}
    run.write_json("round-00/completions.engines/1.json", record)
    time = engine_time(config, run)
    # One is replaced by two at 47: it starts for 15, works 10 + 5, has nothing for 15, ends at 45.
    assert time["busy_seconds"] == pytest.approx(15 + 10)
    assert time["idle_seconds"] == pytest.approx({"start_up": 15 + 2, "waiting_for_input": 15 + 1, "tail": 2 + 1})
    assert time["busy_seconds"] + sum(time["idle_seconds"].values()) == pytest.approx(47 + 14)


def test_an_engine_that_never_got_ready_was_starting_until_it_was_replaced(tmp_path: Path) -> None:
    run, config = RunFolder(str(tmp_path)), _config(rounds=1)
    engines = {"one": {"created_at": 0.0, "ready_at": None}, "two": {"created_at": 60.0, "ready_at": 70.0}}
    run.write_table("round-00/prompts", _table([{"candidate_id": "a"}], schemas.PROMPTS))
    row = {"candidate_id": "a", "engine": "two", "started_at": 70.0, "finished_at": 80.0}
    run.write_table("round-00/completions", _table([row], schemas.COMPLETIONS))
    record = {"began_at": 0.0, "ended_at": 80.0, "engines": engines}
    run.write_json("round-00/completions.engines/1.json", record)
    assert engine_time(config, run)["idle_seconds"]["start_up"] == 70


# a small run folder -----------------------------------------------------------------------------


def _sentence(relation: str, number: int, text: str = "") -> dict[str, Any]:
    """``<head> … <tail>.`` with the head first."""
    head, tail = f"Head{number}", f"Tail{number}"
    whole = f"{head} {text or f'stands in relation {number % 3} with'} {tail}."
    spans = {"head_start": 0, "head_end": len(head), "tail_start": len(whole) - 1 - len(tail), "tail_end": len(whole) - 1}
    return {"relation": relation, "text": whole, **spans, "head_type": "thing", "tail_type": "thing"}


def _config(rounds: int = 2) -> Config:
    return Config.model_validate({"task": {"name": "Tiny", "relations": "relations.yaml"}, "rounds": rounds})


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    blank = {"string": "", "list": [], "bool": False}
    filled = [{f.name: row.get(f.name, blank.get(str(f.type).split("<")[0], 0)) for f in schema} for row in rows]
    return pa.Table.from_pylist(filled, schema=schema)


def _fill(run: RunFolder, relations: tuple[str, ...] = ("causes", "part_of"), text: str = "", files: int = 1000) -> None:
    """Two rounds.  For each relation: round 0 has 8 candidates of the loop and 4 naive ones, round 1 has 6.

    By number: 0 is rejected, 1 is near a kept sample, 2 near a seed, 3 not correct, the others accepted;
    the first two accepted ones of a round are selected.
    """
    run.write_json("data/relations.json", [{"name": name, "description": name} for name in relations])
    seeds = [{"example_id": f"{name}/{n}", **_sentence(name, 90 + n)} for name in relations for n in range(3)]
    run.write_table("data/seeds", _table(seeds, schemas.EXAMPLES))
    vectors = {"example_id": [seed["example_id"] for seed in seeds], "embedding": [[1.0, 0.0]] * len(seeds)}
    run.write_table("data/seed_embeddings", pa.table(vectors))
    dataset: list[dict[str, Any]] = []
    for number, count in ((0, 8), (1, 6)):
        rows: dict[str, list[dict[str, Any]]] = {"prompts": [], "completions": [], "samples": [], "scores": []}
        for place, relation in enumerate(relations):
            for n in range(count + (4 if number == 0 else 0)):
                naive = n >= count
                name = f"{number}-{place}-{n:02d}"
                row = {"candidate_id": name, "round": number, "relation": relation, "sentences": 1}
                row["strategy"] = "naive" if naive else ("independent" if n % 2 else "anchored")
                rows["prompts"].append(row)
                start = 100.0 * number + 10.0 * place + n
                times = {"started_at": start, "finished_at": start + 1, "engine": "one", "generated_tokens": 5, "prompt_tokens": 50}
                rows["completions"].append({**row, **times})
                if n == 0 or (naive and n > count):
                    rows["samples"].append({**row, "completion": f"raw {text}", "rejection": "no_tail" if n else text or "no_head"})
                    continue
                sample = {**row, **_sentence(relation, n, text), "completion": "raw"}
                rows["samples"].append(sample)
                near = {1: f"{number}-{place}-04", 2: f"seed:{relation}/0"}.get(n, "")
                scores = {
                    "cluster": name,
                    "correctness": n / 10,
                    "correct": n > 3,
                    "unique": n not in (1, 2),
                    "nearest_id": near,
                    "similarity": 0.8,
                }
                vector = [1.0, 0.0] if n % 2 else [0.6, 0.8]
                rows["scores"].append({**sample, **scores, "reason": f"near copy {text}", "novelty": 0.5, "embedding": vector})
                if n in (4, 5) and not naive:
                    dataset.append({**sample, "sample_id": name, "correctness": n / 10, "audit": n / 20, "novelty": 0.5})
        for kind, schema in (("prompts", schemas.PROMPTS), ("completions", schemas.COMPLETIONS), ("samples", schemas.SAMPLES)):
            run.write_table(f"round-{number:02d}/{kind}", _table(rows[kind], schema), rows_per_file=files)
        run.write_table(f"round-{number:02d}/scores", _table(rows["scores"], schemas.SCORES), rows_per_file=files)
    run.write_table("comparison/selected", _table(dataset, schemas.DATASET))
    pair = {"pair_id": "p", "relation": relations[0], "chosen": f"good {text}", "rejected": "bad", "kind": "mined"}
    run.write_table("round-00/pairs", _table([pair], schemas.PAIRS))
    curve = [{"step": s, "loss": 0.7 - s / 10, "accuracy": 0.5, "margin": s / 5} for s in (1, 2, 3)]
    run.write_json("round-00/alignment.json", {"pairs": 1, "curve": curve})
    shared = {"metric": "micro", "k": 2, "std": 0.01}
    evaluation = {
        "seeds": {**shared, "mean": 0.5, "per_draw": [0.49, 0.51], "examples": 6},
        "seeds+generated": {**shared, "mean": 0.45, "per_draw": [0.44, 0.46], "examples": 14},
    }
    evaluation["seeds"]["f1_per_relation"] = dict.fromkeys(relations, 0.4321)
    run.write_json("evaluation.json", evaluation)
    run.write_json("versions.json", {"python": "3.11.7", "pyarrow": "21.0.0"})
    run.write_json("search.json", {"trials": [{"trial": 0, "depth": 0.6, "score": 0.5}], "best": {"depth": 0.6}})
    for at, stage in enumerate(("prepare", "round-00/sample")):
        record = {"stage": stage, "finished_at": f"2026-01-01T00:0{at}:00+00:00", "seconds": 1.5 + at, "counts": {}}
        run.write_json(f"stages/{stage}.json", record)


SIMPLE = ("vendi_ngram", "vendi_embedding", "distinct_2")


@pytest.fixture
def simple_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diversity scores that are easy to know: the number of sentences, and of different ones."""

    def diversity_of(texts: list[str], embeddings: np.ndarray | None) -> dict[str, float]:
        found = {"vendi_ngram": float(len(texts)), "distinct_2": len(set(texts)) / len(texts)}
        return found if embeddings is None else {**found, "vendi_embedding": float(embeddings.shape[0])}

    monkeypatch.setattr(spread, "diversity_of", diversity_of)


def test_summary_counts_every_candidate(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    found = summarise(_config(), run)
    # Of 2 relations × (8 + 6) candidates one in each relation and round is rejected, near, near a seed, wrong.
    assert {key: found[key] for key in ("candidates", "valid", "unique", "correct", "selected")} == {
        "candidates": 28,
        "valid": 24,
        "unique": 16,
        "correct": 12,
        "selected": 8,
    }
    assert found["rejections"] == {"no_head": 4}
    assert found["losses"] == {
        "valid": {"no_head": 4},
        "unique": {"near a seed example": 4, "near-duplicate": 4},
        "correct": {"below the correctness gate": 4},
        "selected": {"more than K asked for": 4},
    }
    assert list(found["per_relation"]) == ["causes", "part_of"]
    assert found["per_relation"]["causes"]["selected"] == 4
    assert [found["per_round"][name]["correct"] for name in ("round-00", "round-01")] == [8, 4]
    assert set(found["per_strategy"]) == {"anchored", "independent"}
    assert sum(view["candidates"] for view in found["per_strategy"].values()) == 28
    assert found["pairs"] == {"round-00": {"mined": 1}}
    assert found["seconds"] == {"prepare": 1.5, "round-00/sample": 2.5}
    assert found["evaluation"]["seeds"]["mean"] == 0.5
    assert found["versions"] == {"python": "3.11.7", "pyarrow": "21.0.0"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_losses_across_relations_have_their_own_names(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    rows = run.read_table("round-00/scores").to_pylist()
    dropped = [row for row in rows if not row["unique"]]
    dropped[0]["conflict"], dropped[1]["near_test"], dropped[2]["conflict"] = "1-1-00", "t7", "seed:part_of/1"
    run.write_table("round-00/scores", pa.Table.from_pylist(rows, schemas.SCORES))
    found = summarise(_config(), run)
    lost = found["losses"]["unique"]
    assert (lost["labelling conflict"], lost["near a test sentence"], sum(lost.values())) == (2, 1, 8)


def test_summary_costs(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    found = summarise(_config(), run)
    assert found["generated_tokens"] == 28 * 5
    assert found["tokens_per_accepted"] == round(28 * 5 / 12, 3)
    # Round 0 is busy from 0 to 22, round 1 from 100 to 106 and 110 to 116; the naive requests lie at 8-12 and
    # 18-22, where those at 10-12 share the engine with two of the second relation's.
    assert found["naive"]["engine_seconds"] == 7.0
    assert found["engine_seconds"] == 22.0 - 7.0 + 12.0
    assert found["naive"]["candidates"] == 8
    assert found["naive"]["valid"] == 2
    assert found["naive"]["rejections"] == {"no_tail": 6}


def test_summary_diversity(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    found = summarise(_config(), run)
    assert set(found["diversity"]) == {"seeds", "round-00", "round-01", "selected"}
    assert {name: value for name, value in found["diversity"]["round-00"].items() if name in SIMPLE} == {
        "vendi_ngram": 7.0,
        "vendi_embedding": 7.0,
        "distinct_2": round(1 / 7, 4),  # the sentences differ in their numbers alone, which are masked
    }
    assert found["diversity"]["round-01"]["vendi_ngram"] == 5.0
    assert found["diversity"]["seeds"]["vendi_ngram"] == 3.0
    assert found["diversity"]["seeds"]["vendi_embedding"] == 3.0
    assert found["diversity_at_equal_size"]["size"] == {"causes": 3, "part_of": 3}
    assert {view["vendi_ngram"] for view in found["diversity_at_equal_size"]["mean"].values()} == {3.0}


def test_summary_says_how_many_sentences_name_what_a_seed_names(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    seeds = [{"example_id": f"{name}/{n}", **_sentence(name, 4 + 40 * n)} for name in ("causes", "part_of") for n in range(3)]
    run.write_table("data/seeds", _table([{**seed, "text": seed["text"].upper()} for seed in seeds], schemas.EXAMPLES))
    found = summarise(_config(), run)
    assert found["diversity"]["round-00"]["seed_names"] == round(1 / 7, 4)
    assert found["diversity"]["seeds"]["seed_names"] == 1.0 and found["diversity"]["selected"]["seed_names"] == 0.5


def test_same_folder_same_output_however_it_was_partitioned(tmp_path: Path, simple_scores: None) -> None:
    texts = []
    for name, files in (("a", 1000), ("b", 5)):
        run = RunFolder(str(tmp_path / name))
        _fill(run, files=files)
        report(_config(), run, 0)
        first = run.read_text("summary.json"), run.read_text("report.html")
        run.finish("report", 1.0, {})
        report(_config(), run, 0)
        assert (run.read_text("summary.json"), run.read_text("report.html")) == first
        texts.append(first)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("left", ["prompts", "samples", "scores", "selected"])
def test_unfinished_run(tmp_path: Path, simple_scores: None, left: str) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    order = ["prompts", "completions", "samples", "scores", "pairs", "alignment.json"]
    gone = order[order.index(left) + 1 :] if left in order else []
    for name in gone:
        run.delete(f"round-00/{name}")
    run.delete("round-01")
    run.delete("evaluation.json")
    if left != "selected":
        run.delete("comparison")
    counts = report(_config(), run, 0)
    summary = run.read_json("summary.json")
    assert counts["candidates"] == 16
    assert ("valid" in summary, "unique" in summary, "selected" in summary) == (
        left != "prompts",
        left in ("scores", "selected"),
        left == "selected",
    )
    assert "evaluation" not in summary
    assert "<h2>" in run.read_text("report.html")


def test_correctness_is_the_second_judge_s_and_people_s(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    run.write_json("review/answers.json", [{"sample_id": "0-0-04", "reader": "ada", "right": True}])
    reason = "of 9 candidates 5 were no valid record"
    run.write_json(
        "stages/select.json", {"stage": "select", "finished_at": "2026", "seconds": 1, "counts": {"reasons": {"causes": reason}}}
    )
    report(_config(), run, 0)
    found = run.read_json("summary.json")
    assert found["mean_correctness_selected"] == 0.225  # of 4 / 20 and 5 / 20
    assert found["review"]["share"] == found["review"]["relations"]["causes"]["share"] == 1
    said = "A person read 1 of the selected samples: 100 % right [21, 100]."
    assert found["findings"][0] == said
    assert f"causes has fewer samples than asked for: {reason}." in found["findings"]
    html = run.read_text("report.html")
    assert said in html and "1 of 1" in html and "second judge" in html and "(the gate) of the valid samples" in html


def test_empty_run(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    report(_config(), run, 0)
    assert "candidates" not in run.read_json("summary.json")
    assert "Tiny" in run.read_text("report.html")


# the page ---------------------------------------------------------------------------------------


def test_page_escapes_what_was_generated(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run, relations=(EVIL, "part_of"), text=EVIL)
    report(_config(), run, 0)
    html = run.read_text("report.html")
    assert "<script" not in html.lower()
    escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    for section, least in (("duplicates", 4), ("samples", 2), ("rejections", 1), ("preferences", 1), ("funnel", 1)):
        part = html.split(f'id="{section}"')[1].split("</section>")[0]
        assert part.count(escaped) >= least, section


def test_page_loads_nothing(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    report(_config(), run, 0)
    html = run.read_text("report.html")
    assert not re.search(r"<(script|link|img|iframe|object|embed|base|form)\b", html)
    assert not re.search(r"\b(src|srcset|xlink:href|action)\s*=", html)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html
    assert "43.2" in html
    for section in ("funnel", "scores", "diversity", "duplicates", "samples", "rejections", "preferences", "cost"):
        assert html.count(f'<section id="{section}">') == 1


def test_visible_takes_disguises_out() -> None:
    assert visible("a\x1b[31mb\u202ec\x00") == "a�[31mb�c�"


def test_pieces_cover_the_sentence() -> None:
    row = _sentence("r", 1)
    parts = pieces(row)
    assert "".join(part.text for part in parts) == row["text"]
    assert [part.classes for part in parts] == ["head", "", "tail", ""]


def test_side_by_side_marks_words_and_not_names() -> None:
    left, right = side_by_side(_sentence("r", 1, "was born in rainy"), _sentence("r", 2, "was born near rainy"))
    assert [part.text for part in left if "differs" in part.classes] == ["in"]
    assert [part.text for part in right if "differs" in part.classes] == ["near"]
    assert "".join(part.text for part in right) == "Head2 was born near rainy Tail2."


def test_charts_escape_their_texts_and_load_nothing() -> None:
    svg = charts.bars(
        [f"$x$ {EVIL}", "因果\x1b"], [charts.Series(EVIL, charts.BLUE, [1, 2]), charts.Series("b", charts.GREY, [2, 0])], [EVIL, ""]
    )
    svg += charts.scores([EVIL], [[1.0, 2.0]], [1.5], 1.0)
    assert svg.count("<svg") == svg.count("</svg>") == 2
    assert "<script" not in svg and svg.count("&lt;script&gt;") == 4 and "$x$" in svg and "\x1b" not in svg
    assert "var(--c1)" in svg and charts.BLUE not in svg
    assert not re.search(r"<style|xlink|url\(|<metadata", svg)


def test_the_search_is_drawn_by_the_settings_that_differ() -> None:
    trials = [
        {"trial": n, "depth": 0.1 * n, "shrinkage": 0.8, "score": score, "chosen": n == 0} for n, score in enumerate((0.5, None, 0.7))
    ]
    svg = charts._search_chart(trials)
    assert svg is not None and "depth" in svg and "0 to 0.2" in svg and "0.5 to 0.7" in svg and "shrinkage" not in svg
    assert charts._search_chart(trials[:2]) is None and charts._search_chart([]) is None


# what is said -----------------------------------------------------------------------------------


def _evaluation(low: float, high: float) -> dict[str, Any]:
    means = {"seeds": 0.58, "naive": 0.15, "round-00": 0.2, "round-01": 0.125, "seeds+generated": 0.6}
    interval = {"mean": round((low + high) / 2, 6), "low": low, "high": high}
    return {
        name: {
            "metric": "micro",
            "mean": mean,
            "per_draw": [mean] * 5,
            "k": 5,
            "differences": dict.fromkeys(("seeds", "naive", "round-00"), interval),
        }
        for name, mean in means.items()
    }


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.03, "60.0 micro-F1 against 58.0 with the seeds alone (+2.0 [+1.0, +3.0], better)"),
        (-0.03, -0.01, "(−2.0 [−3.0, −1.0], worse)"),
        (-0.01, 0.05, "(+2.0 [−1.0, +5.0], not established)"),
    ],
)
def test_headline_is_honest(low: float, high: float, said: str) -> None:
    assert said in headline({"evaluation": _evaluation(low, high)})


def test_a_gain_holds_only_where_the_llm_saw_the_same_examples_too() -> None:
    evaluation = _evaluation(0.01, 0.03)
    evaluation["seeds+generated"]["own_differences"] = {"seeds": {"mean": 0.01, "low": -0.01, "high": 0.03}}
    said = "(+2.0 [+1.0, +3.0]; on the examples that the LLM saw +1.0 [−1.0, +3.0]; not established)"
    assert said in headline({"evaluation": evaluation})


def test_few_draws_establish_nothing() -> None:
    evaluation = {name: {**entry, "per_draw": [entry["mean"]] * 2} for name, entry in _evaluation(0.01, 0.03).items()}
    assert "(+2.0 [+1.0, +3.0], not established by 2 draws)" in headline({"evaluation": evaluation})


def test_the_llms_score_names_its_sentences() -> None:
    evaluation = _evaluation(0.01, 0.03)
    evaluation["seeds+generated"]["test"] = 612
    evaluation["llm"] = {"metric": "micro", "mean": 0.3, "std": 0.0, "per_draw": [0.3], "test": 120}
    told = "30.0 micro-F1 on 120 of the 612 test sentences; the small model trained on seeds+generated 60.0 on all."
    assert any(told in line for line in findings({"evaluation": evaluation}))


def test_headline_of_an_old_evaluation_without_intervals() -> None:
    evaluation = {name: {key: value for key, value in entry.items() if key != "differences"} for name, entry in _evaluation(0, 0).items()}
    assert "not compared" in headline({"evaluation": evaluation})


def test_findings_compare_rounds_and_naive() -> None:
    cost = {"tokens_per_accepted": 63.2, "engine_seconds_per_accepted": 0.5, "naive": {"tokens_per_accepted": 1434.0}}
    lines = findings({"evaluation": _evaluation(-0.1, -0.05), **cost})
    told = "After preference tuning: 12.5 micro-F1 in this run against 20.0 before it (−7.5 [−10.0, −5.0], worse"
    assert any(line.startswith(told) for line in lines)
    assert any("12.5 micro-F1 (round 1) against 15.0 from the naive prompt" in line for line in lines)
    assert any("63 generated tokens and 0.50 engine-seconds; with the naive prompt 1,434" in line for line in lines)


def test_headline_without_evaluation() -> None:
    assert headline({"candidates": 1200, "correct": 300}).startswith("1,200 candidates gave 300 unique and correct samples")


def test_numbers_that_are_not_finite_are_null_in_the_summary(tmp_path: Path, simple_scores: None) -> None:
    run = RunFolder(str(tmp_path / "run"))
    _fill(run)
    curve = [{"step": step, "loss": loss, "accuracy": 0.5, "margin": 0.1} for step, loss in ((1, 0.7), (2, float("nan")))]
    run.write_json("round-00/alignment.json", {"pairs": 1, "curve": curve, "margin": -float("inf")})
    report(_config(), run, 0)
    found = run.read_json("summary.json")["alignment"]["round-00"]
    assert [step["loss"] for step in found["curve"]] == [0.7, None] and found["margin"] is None


def test_few_of_many_short_relations_are_told_in_full() -> None:
    reasons = dict.fromkeys("abcde", "of 9 candidates all were lost")
    assert shortfalls(dict(list(reasons.items())[:4])) == [f"{name} has fewer samples than asked for: {reasons[name]}." for name in "abcd"]
    assert shortfalls(reasons)[3:] == ["So have 2 further relations: d, e."] and shortfalls({}) == []
