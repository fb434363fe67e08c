"""Scores of relation extraction: micro-F1 as for TACRED, macro-F1, and SemEval-2010 Task 8's own.

All values are fractions in [0, 1].  ``none_label`` (no_relation, Other) is never a class of its own: a right "none" earns nothing, a
wrong relation costs precision, a missed one recall.  Without such a label, a missing or unknown prediction is a miss.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

Metric = Literal["micro", "macro", "semeval"]

_DIRECTION = re.compile(r"\((e1,e2|e2,e1)\)$")


class Scorer:
    """Scores answers to test sentences, or to any resample of them, by counts of numbered labels; ``gold`` holds the true labels.

    Macro is the plain mean over the relations that the sentences hold.  ``semeval`` is the official figure (Hendrickx et al. 2010):
    macro over the relations without their direction, an answer being right only in the right direction.
    """

    def __init__(self, gold: Sequence[str], labels: Sequence[str], none_label: str | None, metric: Metric) -> None:
        self.metric = metric
        self.none = none_label or ("Other" if metric == "semeval" else None)
        self.relations = [name for name in labels if name != self.none]
        self.numbers = {label: number for number, label in enumerate([*self.relations, self.none])}
        bases = [_DIRECTION.sub("", name) if metric == "semeval" else name for name in self.relations]
        classes = {name: number for number, name in enumerate(dict.fromkeys(bases))}
        # The class of each label's number; that of none is one past the last.
        self.base = np.array([*(classes[name] for name in bases), len(classes)])
        self.gold = self.numbered(gold)

    def numbered(self, answers: Sequence[str | None]) -> np.ndarray:
        """The number of each label; a missing or unknown one counts as none."""
        none = self.numbers[self.none]
        return np.array([self.numbers.get(answer, none) for answer in answers])

    def __call__(self, answers: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """The main score, the F1 that ``metric`` names, of :meth:`numbered` answers on the test sentences ``rows``; default: all."""
        right, answered, true = _counts(self.gold[rows], answers[rows], self.base)
        if self.metric == "micro":
            return float(2 * right.sum() / max(1, answered.sum() + true.sum()))
        held = true > 0
        return float(np.mean(2 * right[held] / (answered + true)[held])) if held.any() else 0.0

    def per_relation(self, answers: np.ndarray) -> dict[str, float]:
        """F1 of each relation that the test sentences hold."""
        counts = zip(self.relations, *_counts(self.gold, answers, np.arange(len(self.numbers))), strict=True)
        return {name: float(2 * right / (answered + true)) for name, right, answered, true in counts if true}


def _counts(gold: np.ndarray, answers: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """Each class's right answers, all answers and true labels; ``classes`` maps label numbers to classes, the last class is none."""
    size = classes.max() + 1
    return [np.bincount(classes[some], minlength=size)[:-1] for some in (gold[gold == answers], answers, gold)]


def false_positives(
    gold: Sequence[str], answers: Sequence[str], probabilities: np.ndarray, none_label: str | None = None, recall: float = 0.8
) -> float | None:
    """The share of negatives that get a relation, with the threshold set so that ``recall`` of the test sentences that state a relation get
    the right label.

    ``None`` if fewer are right even without a threshold.  ``answers`` and ``probabilities`` (n + m) belong to
    the test sentences, whose true labels are ``gold`` (n), and then to the negatives (m).
    """
    count, stating = len(gold), np.array(gold) != none_label
    right = np.sort(probabilities[:count][stating & (np.array(answers[:count]) == np.array(gold))])[::-1]
    needed = math.ceil(recall * stating.sum())
    if len(right) < needed:
        return None
    answered = np.array([answer != none_label for answer in answers[count:]])
    return float((answered & (probabilities[count:] >= right[needed - 1])).mean())
