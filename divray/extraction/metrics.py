"""Scores of relation extraction: micro-F1 as for TACRED, macro-F1, and SemEval-2010 Task 8's own.

All values are fractions in [0, 1].  ``none_label`` (no_relation, Other) is never a class of its own: a
right "none" earns nothing, a wrong relation costs precision, a missed one recall.  A missing prediction
(``None``) counts as ``none_label``; where the task has none, as a miss.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

Metric = Literal["micro", "macro", "semeval"]

_DIRECTION = re.compile(r"\((e1,e2|e2,e1)\)$")


def score(
    gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str], none_label: str | None = None, metric: Metric = "micro"
) -> dict[str, Any]:
    """Compare ``n`` predictions with the truth; ``labels`` are all of the task, ``none_label`` included.

    Returns:
        ``n``, ``missing`` and ``unknown`` (predictions that are ``None`` or not among ``labels``),
        ``accuracy``, ``per_relation`` (label -> ``precision, recall, f1, correct, predicted, gold``), and
        ``micro`` and ``macro`` (``precision, recall, f1``), and for the metric ``semeval`` :func:`semeval_scores`.
        Micro pools the relations' counts and ``unknown``; macro is the plain mean over the relations that ``gold`` holds.

    Raises:
        ValueError: The two differ in length, or a true label is not among ``labels``.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} true labels, {len(predicted)} predictions")
    known = {*labels, none_label}
    if strange := set(gold) - known:
        raise ValueError(f"true labels outside the task: {', '.join(sorted(strange))}")
    answers = [none_label if answer is None else answer for answer in predicted]
    unknown = sum(answer not in {*known, None} for answer in predicted)
    result: dict[str, Any] = {
        "n": len(gold),
        "missing": sum(answer is None for answer in predicted),
        "unknown": unknown,
        "accuracy": _ratio(sum(g == a for g, a in zip(gold, answers, strict=True)), len(gold)),
        **_table(gold, answers, [label for label in labels if label != none_label], unknown=unknown),
    }
    if metric == "semeval":
        result["semeval"] = semeval_scores(gold, predicted, none_label or "Other")
    return result


def semeval_scores(gold: Sequence[str], predicted: Sequence[str | None], other: str = "Other") -> dict[str, Any]:
    """The three tables of the official scorer 1.2 of SemEval-2010 Task 8 (Hendrickx et al. 2010).

    Only the relations that ``gold`` holds are classes; ``other`` is left out.  Returns ``directed`` ((2·9+1)-way), ``undirected``
    ((9+1)-way without direction) and ``official`` ((9+1)-way: right only in the right direction); each ``micro``, ``macro`` and
    ``per_relation``.
    """
    answers = [other if answer is None else answer for answer in predicted]
    base_gold, base_answers = ([_DIRECTION.sub("", label) for label in some] for some in (gold, answers))
    classes = sorted(set(base_gold) - {other})
    right = [base for base, g, a in zip(base_gold, gold, answers, strict=True) if g == a]
    return {
        "directed": _table(gold, answers, sorted(set(gold) - {other})),
        "undirected": _table(base_gold, base_answers, classes),
        "official": _table(base_gold, base_answers, classes, right),
    }


def main_score(scores: dict[str, Any], metric: Metric) -> float:
    """The one figure of the task: the F1 that ``task.metric`` names, in [0, 1]."""
    if metric == "semeval":
        return float(scores["semeval"]["official"]["macro"]["f1"])
    return float(scores[metric]["f1"])


def false_positives(
    gold: Sequence[str], answers: Sequence[str], probabilities: np.ndarray, none_label: str | None = None, recall: float = 0.8
) -> float | None:
    """The share of negatives that get a relation at the threshold at which ``recall`` of the test sentences get the right one.

    ``None`` where even without a threshold fewer are right.  ``answers`` and ``probabilities`` (n + m) are
    of the test sentences, whose true labels are ``gold`` (n), and behind them of the negatives.
    """
    count = len(gold)
    right = np.sort(probabilities[:count][np.array(answers[:count]) == np.array(gold)])[::-1]
    needed = math.ceil(recall * count)
    if len(right) < needed:
        return None
    answered = np.array([answer != none_label for answer in answers[count:]])
    return float((answered & (probabilities[count:] >= right[needed - 1])).mean())


class Resampled:
    """The main score (:func:`main_score`) of many resamples of the same test sentences, by counts of numbered labels."""

    def __init__(self, gold: Sequence[str], labels: Sequence[str], none_label: str | None, metric: Metric) -> None:
        self.metric = metric
        self.none = none_label or ("Other" if metric == "semeval" else None)
        relations = [name for name in labels if name != self.none]
        self.numbers = {label: number for number, label in enumerate([*relations, self.none])}
        bases = [_DIRECTION.sub("", name) if metric == "semeval" else name for name in relations]
        classes = {name: number for number, name in enumerate(dict.fromkeys(bases))}
        # The class of each label's number; that of none is one past the last.
        self.base, self.size = np.array([*(classes[name] for name in bases), len(classes)]), len(classes)
        self.gold = self.numbered(gold)

    def numbered(self, answers: Sequence[str | None]) -> np.ndarray:
        """The number of each label; a missing or unknown one counts as none."""
        none = self.numbers[self.none]
        return np.array([self.numbers.get(self.none if answer is None else answer, none) for answer in answers])

    def __call__(self, answers: np.ndarray, rows: np.ndarray) -> float:
        """The score of :meth:`numbered` answers on the test sentences ``rows``."""
        gold, found = self.gold[rows], answers[rows]
        right, answered, true = (
            np.bincount(self.base[some], minlength=self.size + 1)[: self.size] for some in (gold[gold == found], found, gold)
        )
        if self.metric == "micro":
            return _ratio(2.0 * right.sum(), float(answered.sum() + true.sum()))
        held = true > 0
        return float(np.mean(2 * right[held] / (answered + true)[held])) if held.any() else 0.0


def _table(
    gold: Sequence[str], answers: Sequence[str | None], classes: Iterable[str], right: Sequence[str] | None = None, unknown: int = 0
) -> dict[str, Any]:
    """Scores and counts of each class, and their averages; ``right`` has the classes of the right answers, by default of those equal to
    the truth, and ``unknown`` answers count for micro."""
    hits = Counter([g for g, a in zip(gold, answers, strict=True) if g == a] if right is None else right)
    answered, true = Counter(answers), Counter(gold)
    counts: dict[str, dict[str, Any]] = {}
    for label in classes:
        correct, predicted, held = hits[label], answered[label], true[label]
        counts[label] = {**_scores(correct, predicted, held), "correct": correct, "predicted": predicted, "gold": held}
    correct, predicted, held = (sum(row[key] for row in counts.values()) for key in ("correct", "predicted", "gold"))
    rows = [row for row in counts.values() if row["gold"]]
    macro = {key: _ratio(sum(row[key] for row in rows), len(rows)) for key in ("precision", "recall", "f1")}
    return {"per_relation": counts, "micro": _scores(correct, predicted + unknown, held), "macro": macro}


def _scores(correct: int, predicted: int, gold: int) -> dict[str, float]:
    return {"precision": _ratio(correct, predicted), "recall": _ratio(correct, gold), "f1": _ratio(2 * correct, predicted + gold)}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
