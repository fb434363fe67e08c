from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from divray.extraction.metrics import Metric, Scorer, false_positives

SCORER = Path(__file__).parents[1] / "../shared/data/semeval2010_task8/scorer"
LABELS = ["born_in", "works_for", "owns", "none"]


def scored(
    gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str], none_label: str | None = None, metric: Metric = "micro"
) -> float:
    scorer = Scorer(gold, labels, none_label, metric)
    return scorer(scorer.numbered(predicted))


def by_relation(gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str], none_label: str) -> dict[str, float]:
    scorer = Scorer(gold, labels, none_label, "macro")
    return scorer.per_relation(scorer.numbered(predicted))


@pytest.mark.parametrize("case", [1, 2, 3])
def test_official_scorer_agrees_to_the_printed_digit(case: int) -> None:
    if not SCORER.is_dir():
        pytest.skip("needs the official scorer's cases in ../shared/data")
    key, answers = (
        dict(line.split("\t") for line in (SCORER / f"{name}{case}.txt").read_text().splitlines() if line.strip())
        for name in ("answer_key", "proposed_answer")
    )
    report = (SCORER / f"result_scores{case}.txt").read_text()
    gold, predicted = list(key.values()), [answers.get(number) for number in key]
    labels = sorted(set(key.values()) | set(answers.values()))
    official = re.search(r"macro-averaged F1 = ([\d.]+)%", report)
    assert official and f"{100 * scored(gold, predicted, labels, 'Other', 'semeval'):.2f}" == official[1]
    directed = dict(re.findall(r"^\s*(\S+\)) :\s+P =.*F1 =\s*([\d.]+)%", report, re.M))
    assert directed == {name: f"{100 * f1:.2f}" for name, f1 in by_relation(gold, predicted, labels, "Other").items()}
    macro = re.search(r"MACRO.*?F1 =\s*([\d.]+)%", report, re.S)  # of the first table, with directions
    assert macro and f"{100 * scored(gold, predicted, labels, 'Other', 'macro'):.2f}" == macro[1]


def test_semeval_by_hand() -> None:
    # A: 2 gold in one direction, 1 in the other; B: 1 gold; C is answered but never true.
    gold = ["A(e1,e2)", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    predicted = ["A(e1,e2)", "A(e2,e1)", "Other", "C(e1,e2)", "B(e1,e2)", None]
    labels = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "C(e1,e2)", "Other"]
    # A: P = 1/2 (the wrong direction costs), R = 1/3, F1 = 2/5; B: P = 0/1, R = 0/1.
    assert scored(gold, predicted, labels, "Other", "semeval") == pytest.approx((2 / 5 + 0) / 2)
    assert scored(gold, predicted, labels[:4], None, "semeval") == pytest.approx((2 / 5 + 0) / 2)
    # With directions: A1 1/1, 1/2; A2 0/1, 0/1; B1 0/1, 0/1; C is no relation of the test sentences.
    assert scored(gold, predicted, labels, "Other", "micro") == pytest.approx(2 / 8)
    assert scored(gold, predicted, labels, "Other", "macro") == pytest.approx((2 / 3) / 3)


def test_micro_leaves_none_out() -> None:
    gold = ["born_in", "born_in", "works_for", "none", "none", "none"]
    predicted = ["born_in", "none", "born_in", "none", "works_for", "none"]
    # Right 1 of 3 guesses, 1 of 3 true relations.
    assert scored(gold, predicted, LABELS, "none") == pytest.approx(1 / 3)
    # born_in: P 1/2, R 1/2; works_for: 0; owns has no true example and is no part of the mean.
    assert scored(gold, predicted, LABELS, "none", "macro") == 1 / 4
    assert by_relation(gold, predicted, LABELS, "none") == {"born_in": 1 / 2, "works_for": 0}


def test_missing_predictions_are_none_where_there_is_one() -> None:
    assert scored(["born_in", "none"], [None, None], LABELS, "none") == 0
    assert scored(["born_in", "none"], ["born_in", None], LABELS, "none") == 1
    # Right 1 of 1 guess, 1 of 2 true relations.
    assert scored(["born_in", "owns"], ["born_in", None], LABELS[:3]) == pytest.approx(2 / 3)


def test_unknown_predictions_are_none() -> None:
    assert scored(["born_in", "none"], ["born in!", "hates"], LABELS, "none") == 0
    assert scored(["born_in", "none"], ["born_in", "hates"], LABELS, "none") == 1


def test_without_none_label_micro_is_accuracy() -> None:
    gold, predicted = ["born_in", "owns", "owns", "works_for"], ["born_in", "owns", "works_for", "owns"]
    assert scored(gold, predicted, LABELS[:3]) == 0.5


@pytest.mark.parametrize("metric", ["micro", "macro", "semeval"])
def test_only_none(metric: Metric) -> None:
    assert scored(["none", "none"], ["none", "none"], LABELS, "none", metric) == 0


@pytest.mark.parametrize("metric", ["micro", "macro", "semeval"])
@pytest.mark.parametrize("none_label", [None, "Other"])
def test_resampled_scores_are_those_of_the_sentences_drawn(metric: Metric, none_label: str | None) -> None:
    labels = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Member(e1,e2)", *([none_label] if none_label else [])]
    rng = np.random.default_rng(5)
    gold, answers = (rng.choice(labels, 60).tolist() for _ in range(2))
    answers[3] = None if none_label else answers[3]
    scorer = Scorer(gold, labels, none_label, metric)
    for _ in range(5):
        rows = rng.integers(0, 60, 60)
        drawn = scored([gold[row] for row in rows], [answers[row] for row in rows], labels, none_label, metric)
        assert scorer(scorer.numbered(answers), rows) == pytest.approx(drawn)


def test_false_positives_are_counted_at_the_threshold_of_the_wanted_recall():
    gold, answers = ["a"] * 5, ["a", "a", "a", "b", "a", "a", "b", "a", "none"]
    probabilities = np.array([0.9, 0.8, 0.7, 0.9, 0.2, 0.75, 0.1, 0.2, 0.9])
    assert false_positives(gold, answers, probabilities, "none", recall=0.6) == 0.25  # threshold 0.7
    assert false_positives(gold, answers, probabilities, recall=0.6) == 0.5
    assert false_positives(gold, answers, probabilities, "none", recall=0.8) == 0.5  # threshold 0.2
    assert false_positives(gold, answers, probabilities, "none", recall=0.9) is None
    with_none, told = ["none", "none", *gold], ["none", "none", *answers]
    assert false_positives(with_none, told, np.array([0.9, 0.9, *probabilities]), "none", recall=0.9) is None  # a right "none" is no recall
