from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from divray.extraction.metrics import Resampled, false_positives, main_score, score, semeval_scores

SCORER = Path(__file__).parents[1] / "../shared/data/semeval2010_task8/scorer"
PRINTED = r"{} result \(excluding Other\):\nP =[^%]*?([\d.]+)%\s+R =[^%]*?([\d.]+)%\s+F1 =\s*([\d.]+)%"
LABELS = ["born_in", "works_for", "owns", "none"]


def printed(values: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{100 * values[key]:.2f}" for key in ("precision", "recall", "f1"))


@pytest.mark.parametrize("case", [1, 2, 3])
def test_official_scorer_agrees_to_the_printed_digit(case: int) -> None:
    if not SCORER.is_dir():
        pytest.skip("needs the official scorer's cases in ../shared/data")
    key, answers = (
        dict(line.split("\t") for line in (SCORER / f"{name}{case}.txt").read_text().splitlines() if line.strip())
        for name in ("answer_key", "proposed_answer")
    )
    report = (SCORER / f"result_scores{case}.txt").read_text()
    micro, macro = re.findall(PRINTED.format("Micro-averaged"), report), re.findall(PRINTED.format("MACRO-averaged"), report)
    official = re.search(r"macro-averaged F1 = ([\d.]+)%", report)
    assert len(micro) == len(macro) == 3 and official
    labels = sorted(set(key.values()) | set(answers.values()))
    result = score(list(key.values()), [answers.get(number) for number in key], labels, "Other", "semeval")
    for table, expected_micro, expected_macro in zip(("directed", "undirected", "official"), micro, macro, strict=True):
        assert printed(result["semeval"][table]["micro"]) == expected_micro, table
        assert printed(result["semeval"][table]["macro"]) == expected_macro, table
    assert f"{100 * main_score(result, 'semeval'):.2f}" == official[1]
    rows = re.findall(r"^\s*(\S+\)) :\s+P =.*=\s*([\d.]+)%\s+R =.*=\s*([\d.]+)%\s+F1 =\s*([\d.]+)%", report, re.M)
    assert {label: tuple(values) for label, *values in rows} == {
        label: printed(values) for label, values in result["semeval"]["directed"]["per_relation"].items()
    }
    assert result["missing"] == len(key) - sum(number in answers for number in key)


def test_semeval_by_hand() -> None:
    # A: 2 gold in one direction, 1 in the other; B: 1 gold; C is answered but never true.
    gold = ["A(e1,e2)", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    predicted = ["A(e1,e2)", "A(e2,e1)", "Other", "C(e1,e2)", "B(e1,e2)", None]
    tables = semeval_scores(gold, predicted)
    official = tables["official"]
    # A: P = 1/2 (the wrong direction costs), R = 1/3, F1 = 2/5; B: P = 0/1, R = 0/1.
    assert official["per_relation"]["A"]["precision"] == 1 / 2
    assert official["per_relation"]["A"]["recall"] == 1 / 3
    assert official["macro"]["f1"] == pytest.approx((2 / 5 + 0) / 2)
    assert official["micro"] == {"precision": 1 / 3, "recall": 1 / 4, "f1": pytest.approx(2 / 7)}
    assert tables["undirected"]["per_relation"]["A"] == {
        "precision": 1.0,
        "recall": 2 / 3,
        "f1": pytest.approx(4 / 5),
        "correct": 2,
        "predicted": 2,
        "gold": 3,
    }
    # Directed: A1 1/1, 1/2; A2 0/1, 0/1; B1 0/1, 0/1; C is no class of the key.
    assert tables["directed"]["micro"] == {"precision": 1 / 3, "recall": 1 / 4, "f1": pytest.approx(2 / 7)}
    assert tables["directed"]["macro"]["f1"] == pytest.approx((2 / 3) / 3)


def test_micro_leaves_none_out() -> None:
    gold = ["born_in", "born_in", "works_for", "none", "none", "none"]
    predicted = ["born_in", "none", "born_in", "none", "works_for", "none"]
    result = score(gold, predicted, LABELS, "none")
    # Right 1 of 3 guesses, 1 of 3 true relations.
    assert result["micro"] == {"precision": 1 / 3, "recall": 1 / 3, "f1": pytest.approx(1 / 3)}
    assert result["accuracy"] == 3 / 6
    # born_in: P 1/2, R 1/2; works_for: 0; owns has no true example and is no part of the mean.
    assert result["macro"] == {"precision": 1 / 4, "recall": 1 / 4, "f1": 1 / 4}
    assert "none" not in result["per_relation"]
    assert result["per_relation"]["owns"] == {"precision": 0, "recall": 0, "f1": 0, "correct": 0, "predicted": 0, "gold": 0}
    assert main_score(result, "micro") == pytest.approx(1 / 3)
    assert main_score(result, "macro") == 1 / 4


def test_missing_predictions_are_none_where_there_is_one() -> None:
    result = score(["born_in", "none"], [None, None], LABELS, "none")
    assert (result["missing"], result["accuracy"]) == (2, 0.5)
    assert result["micro"] == {"precision": 0, "recall": 0, "f1": 0}
    without = score(["born_in", "owns"], ["born_in", None], LABELS[:3])
    assert without["micro"] == {"precision": 1, "recall": 1 / 2, "f1": pytest.approx(2 / 3)}
    assert without["accuracy"] == 1 / 2


def test_unknown_predictions_are_wrong_guesses() -> None:
    result = score(["born_in", "none"], ["born in!", "hates"], LABELS, "none")
    assert result["unknown"] == 2
    assert result["micro"] == {"precision": 0, "recall": 0, "f1": 0}
    half = score(["born_in", "none"], ["born_in", "hates"], LABELS, "none")
    assert half["micro"] == {"precision": 1 / 2, "recall": 1, "f1": pytest.approx(2 / 3)}


def test_without_none_label_micro_is_accuracy() -> None:
    gold, predicted = ["born_in", "owns", "owns", "works_for"], ["born_in", "owns", "works_for", "owns"]
    result = score(gold, predicted, LABELS[:3])
    assert result["micro"]["f1"] == result["accuracy"] == 0.5


def test_nothing_and_only_none() -> None:
    assert main_score(score([], [], LABELS, "none"), "micro") == 0
    only = score(["none", "none"], ["none", "none"], LABELS, "none", "semeval")
    assert only["accuracy"] == 1
    assert [main_score(only, metric) for metric in ("micro", "macro", "semeval")] == [0, 0, 0]


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="2 true labels, 1 predictions"):
        score(["owns", "owns"], ["owns"], LABELS)
    with pytest.raises(ValueError, match="outside the task: eats"):
        score(["eats"], ["owns"], LABELS)


@pytest.mark.parametrize("metric", ["micro", "macro", "semeval"])
@pytest.mark.parametrize("none_label", [None, "Other"])
def test_resampled_scores_are_those_of_the_sentences_drawn(metric: str, none_label: str | None) -> None:
    labels = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Member(e1,e2)", *([none_label] if none_label else [])]
    rng = np.random.default_rng(5)
    gold, answers = (rng.choice(labels, 60).tolist() for _ in range(2))
    answers[3] = None if none_label else answers[3]
    resampled = Resampled(gold, labels, none_label, metric)  # type: ignore[arg-type]
    for _ in range(5):
        rows = rng.integers(0, 60, 60)
        drawn = score([gold[row] for row in rows], [answers[row] for row in rows], labels, none_label, metric)  # type: ignore[arg-type]
        assert resampled(resampled.numbered(answers), rows) == pytest.approx(main_score(drawn, metric))  # type: ignore[arg-type]


def test_false_positives_are_counted_at_the_threshold_of_the_wanted_recall():
    gold, answers = ["a"] * 5, ["a", "a", "a", "b", "a", "a", "b", "a", "none"]
    probabilities = np.array([0.9, 0.8, 0.7, 0.9, 0.2, 0.75, 0.1, 0.2, 0.9])
    assert false_positives(gold, answers, probabilities, "none", recall=0.6) == 0.25  # threshold 0.7
    assert false_positives(gold, answers, probabilities, recall=0.6) == 0.5
    assert false_positives(gold, answers, probabilities, "none", recall=0.8) == 0.5  # threshold 0.2
    assert false_positives(gold, answers, probabilities, "none", recall=0.9) is None
