"""The gate's judge of a sample, on which pairs and selection depend.

It is a logistic regression on signals that mean the same for every task: each is taken less its mean over the task's own
seeds, every seed judged without itself.  Its weights come from sentences that language-model agents read
(``benchmarks/reading``), and so does its calibration: 0.8 is to mean that of ten such sentences eight are right.

The signals come from the features of the spans (:mod:`divray.scoring.judging`) by linear discriminant analysis of seeds and
of seeds with head and tail exchanged:

============  ===============================================================================
``own``       discriminant of the sample's relation
``reversal``  ``own`` less that of the same relation with head and tail exchanged
``near``      cosine to the nearest seed of the relation
``head``      cosine of the head to the nearest head of a seed; ``tail`` likewise
``length``    log of the sentence's characters over the seeds' geometric mean, 0 for shorter ones: small LLMs ramble
``answer``    where ``correctness.llm`` is named: that LLM's log-odds of yes (:mod:`divray.scoring.answers`)
============  ===============================================================================

The figure that the report prints is another judge's (:mod:`divray.scoring.audit`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from divray.spans import BLOCKS, Discriminant, discriminant, exchanged

SIGNALS = ("own", "reversal", "near", "head", "tail", "length", "answer")
GATE, GATE_LLM, AUDIT = "gate", "gate_llm", "audit"
"""Names in ``weights.json``: with ``correctness.llm`` the gate listens to that LLM's answer."""

SHRINKAGE = 0.8
_FOLDS = 4
_LEAST = 1e-6
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """A judge: the probability is the logistic function of ``bias + sum(weight * clip(signal, low, high))``."""

    signals: tuple[str, ...]
    weights: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bias: float

    def probability(self, values: np.ndarray, names: tuple[str, ...] = SIGNALS) -> np.ndarray:
        """Of rows of signals, float64 ``[n]``; ``names`` are those of the columns."""
        own = values[:, [names.index(name) for name in self.signals]]
        return np.round(1.0 / (1.0 + np.exp(-(np.clip(own, self.low, self.high) @ self.weights + self.bias))), _DIGITS)


@cache
def weights(name: str) -> Weights:
    """The weights of a judge as shipped in ``weights.json``."""
    return judge_of(json.loads(files("divray.scoring").joinpath("weights.json").read_text(encoding="utf-8"))[name])


def judge_of(found: dict[str, Any]) -> Weights:
    """A judge from its entry in ``weights.json``."""
    columns = {key: np.array([row[key] for row in found["signals"]], np.float64) for key in ("weight", "low", "high")}
    return Weights(tuple(row["name"] for row in found["signals"]), columns["weight"], columns["low"], columns["high"], found["bias"])


@dataclass(frozen=True, slots=True)
class Judge:
    """The signals of a task, ready to be taken of any sample; a few MB.

    Attributes:
        relations: Names, in the order of their numbers.
        own: Relation number of each seed ``[s]``.
        spans: Features of the seeds' spans ``[s, d]``.
        length: Mean log of the seeds' characters.
        discriminant: Class ``r`` is relation ``r``, class ``len(relations) + r`` its reversal.
        origin: Mean of each signal over the seeds ``[len(SIGNALS)]``.
    """

    relations: tuple[str, ...]
    own: np.ndarray
    spans: np.ndarray
    length: float
    discriminant: Discriminant
    origin: np.ndarray

    def signals(self, relations: Sequence[str], texts: Sequence[str], spans: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Signals of samples, float64 ``[n, len(SIGNALS)]``, less those of the seeds.

        Args:
            relations: The relation of each sample.
            texts: Their sentences.
            spans: :meth:`~divray.scoring.judging.SpanEncoder.encode`.
            answers: Log-odds of yes ``[n]``; zeros where no LLM is asked.
        """
        if unknown := set(relations) - set(self.relations):
            raise ValueError(f"relations without seed examples: {sorted(unknown)}")
        own = np.array([self.relations.index(name) for name in relations], np.int64)
        found = _signals(self, own, self.discriminant.scores(spans), spans, own[:, None] == self.own[None, :])
        return np.column_stack([found, np.maximum(0.0, _logs(texts) - self.length), answers]).round(_DIGITS) - self.origin


def fit_judge(relations: tuple[str, ...], own: np.ndarray, texts: Sequence[str], spans: np.ndarray, answers: np.ndarray) -> Judge:
    """Fit on the seeds and take their own signals, each without itself; under a second.

    Args:
        relations: Names, in the order of their numbers.
        own: Relation number of each seed.
        texts: Sentences of the seeds.
        spans: Features of the seeds' spans.
        answers: Log-odds of yes for each seed, asked without itself; zeros where no LLM is asked.
    """
    fold, both = _rank_within(own) % _FOLDS, np.concatenate([spans, exchanged(spans)])
    labels, folds = np.concatenate([own, own + len(relations)]), np.concatenate([fold, fold])
    whole = discriminant(both, labels, 2 * len(relations), SHRINKAGE)
    logs = _logs(texts)
    judge = Judge(relations, own, spans, float(logs.mean().round(_DIGITS)), whole, np.zeros(len(SIGNALS)))
    scores = np.zeros((len(own), 2 * len(relations)))
    for number in range(_FOLDS):
        left_out = fold == number
        if left_out.any() and not left_out.all():
            kept = folds != number
            scores[left_out] = discriminant(both[kept], labels[kept], 2 * len(relations), SHRINKAGE).scores(spans[left_out])
    same = own[:, None] == own[None, :]
    np.fill_diagonal(same, False)
    several = np.bincount(own)[own] > 1  # a lone seed has nothing to be judged by
    longer = np.maximum(0.0, logs - judge.length)
    found = np.column_stack([_signals(judge, own, scores, spans, same), longer, answers])[several if several.any() else slice(None)]
    return replace(judge, origin=np.round(found.mean(axis=0), _DIGITS))


def _signals(judge: Judge, own: np.ndarray, scores: np.ndarray, spans: np.ndarray, same: np.ndarray) -> np.ndarray:
    if not len(own):
        return np.zeros((0, len(SIGNALS) - 2))
    rows, width = np.arange(len(own)), spans.shape[1] // BLOCKS
    mine = scores[rows, own]
    views = [slice(None), slice(0, width), slice(width, 2 * width)]
    near = [_nearest(spans[:, view], judge.spans[:, view], same) for view in views]
    return np.column_stack([mine, mine - scores[rows, own + len(judge.relations)], *near])


def _nearest(mine: np.ndarray, theirs: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Cosine of each row to the nearest of ``theirs`` among those allowed; 0 where none is."""
    one, other = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST) for rows in (mine.astype(float), theirs.astype(float))
    )
    cosines = np.where(among, one @ other.T, -1.0).max(axis=1)
    return np.asarray(np.where(among.any(axis=1), cosines, 0.0))


def _logs(texts: Sequence[str]) -> np.ndarray:
    return np.log([float(max(1, len(text))) for text in texts])


def _rank_within(labels: np.ndarray) -> np.ndarray:
    """Of each row, how many earlier rows carry the same label."""
    seen: dict[int, int] = {}
    ranks = []
    for label in labels.tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return np.array(ranks, dtype=np.int64)
