"""People read a run's samples: a blind draw, answers that survive a kill, shares with their intervals, a threshold."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from divray import review
from divray.cli import main
from divray.config import Config, dump_config
from divray.datasets.stage import run as prepare
from divray.errors import InputError
from divray.run_folder import RunFolder
from divray.schemas import DATASET, SCORES


@pytest.fixture
def reviewed(quickstart: Config, uri: str) -> RunFolder:
    run = RunFolder(uri)
    prepare(quickstart, run)
    relations = [row["name"] for row in run.read_json("data/relations.json")]
    rows = [
        {"sample_id": f"{name}-{n}", "relation": name, "rank": n + 1, "text": f"Ada {n} likes Rome.", "head_start": 0, "head_end": 3,
         "tail_start": 12, "tail_end": 16, "round": 0, "strategy": "independent", "policy": "base", "correctness": 0.9}
        for name in relations for n in range(4)
    ]  # fmt: skip
    run.write_table("comparison/selected", pa.Table.from_pylist(rows, DATASET))
    return run


def test_the_draw_is_even_seeded_and_shows_nothing_of_the_scores(quickstart: Config, reviewed: RunFolder) -> None:
    drawn = review.draw(quickstart, reviewed, 12)
    assert drawn == review.draw(quickstart, reviewed, 12) and len(drawn) == 12
    counts = [sum(one["sample_id"].startswith(f"{name}-") for one in drawn) for name in ("employed_by", "born_in", "part_of")]
    assert counts == [2, 2, 2]
    assert set(drawn[0]) == {"sample_id", "description", "sentence"}
    assert "[Ada]" in drawn[0]["sentence"] and "{Rome}" in drawn[0]["sentence"]
    assert len({one["description"] for one in drawn[:6]}) > 1  # shuffled, not by relation
    assert {one["sample_id"] for one in review.draw(quickstart, reviewed, 8)} < {one["sample_id"] for one in drawn}


def test_the_draw_of_scored_samples_leaves_the_baseline_out(quickstart: Config, reviewed: RunFolder) -> None:
    rows = reviewed.read_table("comparison/selected").to_pylist()
    scored = [{**row, "candidate_id": f"r00-{n}", "strategy": "naive" if n % 2 else "independent"} for n, row in enumerate(rows)]
    reviewed.write_table("round-00/scores", pa.Table.from_pylist(scored, SCORES))
    drawn = review.draw(quickstart, reviewed, 1000, "scored")
    assert {one["sample_id"] for one in drawn} == {f"r00-{n}" for n in range(0, len(rows), 2)}


def test_answers_are_kept_as_they_come_and_a_review_goes_on_where_it_was(quickstart: Config, reviewed: RunFolder) -> None:
    drawn = review.draw(quickstart, reviewed, 6)
    keys = iter(["y", "x", "n", "b", "y", "q"])
    assert review.review(reviewed, drawn, "ada", lambda _: next(keys)) == 3
    answers = review.read_answers(reviewed)
    assert [(one["sample_id"], one["right"]) for one in answers] == [(drawn[0]["sample_id"], True), (drawn[1]["sample_id"], True)]
    shown: list[str] = []

    def rest(text: str) -> str:
        shown.append(text)
        return "s"

    assert review.review(reviewed, drawn, "ada", rest) == 4
    assert "1 of 4" in shown[0]
    assert review.review(reviewed, drawn, "ada", rest) == 0


def test_a_sample_counts_once_by_majority_and_a_tie_is_wrong(reviewed: RunFolder) -> None:
    said = [("a", "one", True), ("a", "two", False), ("b", "one", True), ("b", "two", True), ("c", "one", None)]
    reviewed.write_json(review.ANSWERS, [{"sample_id": s, "reader": r, "right": right} for s, r, right in said])
    assert review.review_answers(reviewed) == {"a": False, "b": True}


def test_an_answer_to_another_sentence_counts_no_more(quickstart: Config, reviewed: RunFolder) -> None:
    drawn = review.draw(quickstart, reviewed, 2)
    assert review.review(reviewed, drawn, "ada", lambda _: "y") == 2
    changed = [
        {**row, "text": row["text"].replace("likes", "hates") if row["sample_id"] == drawn[0]["sample_id"] else row["text"]}
        for row in reviewed.read_table("comparison/selected").to_pylist()
    ]
    reviewed.write_table("comparison/selected", pa.Table.from_pylist(changed, DATASET))
    assert review.review_answers(reviewed) == {drawn[1]["sample_id"]: True}
    assert len(reviewed.read_json(review.ANSWERS)) == 2  # nothing that people said is lost
    assert review.review(reviewed, review.draw(quickstart, reviewed, 2), "ada", lambda _: "n") == 1


def test_figures_have_wilsons_interval(reviewed: RunFolder) -> None:
    assert review.review_figures(reviewed) is None
    names = [f"born_in-{n}" for n in range(4)]
    reviewed.write_json(review.ANSWERS, [{"sample_id": s, "reader": "a", "right": s != names[0]} for s in names])
    figures = review.review_figures(reviewed)
    assert figures is not None and figures["number"] == 4 and figures["share"] == 0.75
    assert (figures["low"], figures["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert figures["relations"]["born_in"] == review.share([False, True, True, True])
    assert review.as_sentence(figures) == "A person read 4 of the selected samples: 75 % right [30, 95]."


def test_the_threshold_is_the_lowest_that_keeps_the_wanted_share() -> None:
    scores, right = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [True, True, True, True, False, False]
    assert review.reviewed_threshold(scores, right, 0.8) == 0.5
    assert review.reviewed_threshold(scores, right, 0.9) == 0.6
    assert review.reviewed_threshold(scores, [False] * 6) == 0.9
    assert review.reviewed_threshold([0.5, 0.5], [True, False], 0.8) == 0.5
    assert review.reviewed_threshold([0.9, 0.7, 0.7, 0.7, 0.7], [True, False, True, True, True], 0.8) == 0.7


def test_the_page_escapes_and_its_answers_come_back(quickstart: Config, reviewed: RunFolder, tmp_path: Path) -> None:
    page = review.page([{"sample_id": '"><script>', "description": "<b>", "sentence": "[A] & {B}"}])
    assert "<b>" not in page.split("</style>")[1].split("<script>")[0] and "&amp; {B}" in page and "https://" not in page
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([{"sample_id": "born_in-0", "right": True}, {"sample_id": "born_in-1", "right": None}]))
    assert review.take_answers(reviewed, str(answers), "ada") == 2
    assert review.review_answers(reviewed) == {"born_in-0": True}
    answers.write_bytes(b"\xef\xbb\xbf" + answers.read_bytes())
    assert review.take_answers(reviewed, str(answers), "ada") == 2
    for text, problem in (
        ("[1]", "no file of answers"),
        ("7", "no file of answers"),
        ("{}", "no file of answers"),
        ("", "the file is empty"),
        ('[{"sample_id": "\\ud83d", "right": true}]', "surrogates not allowed"),
        ('[{"sample_id": "of another run", "right": true}]', "no sample of this run"),
        ('[{"sample_id": "born_in-0", "right": true, "sentence": "[Ada] 0 hates {Rome}."}]', "another sentence now"),
        ('[{"sample_id": "born_in-0", "right": 1}]', "1 is not true, false or null"),
    ):
        answers.write_text(text)
        with pytest.raises(InputError, match=problem):
            review.take_answers(reviewed, str(answers), "ada")
    with pytest.raises(InputError, match="no samples to review"):
        review.draw(quickstart, RunFolder(str(tmp_path / "empty")), 5)


def test_the_command_reads_lines_of_a_pipe_and_refreshes_the_report(
    quickstart: Config, reviewed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reviewed.write_text("config.yaml", dump_config(quickstart))
    reviewed.write_text("report.html", "old")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\nn\n"))
    assert main(["review", reviewed.uri, "--number", "5", "--reader", "ada"]) == 0
    shown = capsys.readouterr().out
    assert "2 answers kept. A person read 2 of the selected samples: 50 % right [9, 91]." in shown and "0.9" not in shown
    assert "A person read 2 of the selected samples" in reviewed.read_text("report.html")
    assert reviewed.read_json("summary.json")["review"]["number"] == 2

    assert main(["review", reviewed.uri, "--html", f"{reviewed.uri}/review.html"]) == 0
    assert "50" not in reviewed.read_text("review.html").split("<script>")[1] and reviewed.read_text("review.html").count("<section ") > 5
    assert main(["review", reviewed.uri, "--html", str(tmp_path)]) == 2
    assert main(["review", reviewed.uri, "--of", "scored"]) == 2
    assert main(["review", reviewed.uri, "--answers", "nothing.json"]) == 2
