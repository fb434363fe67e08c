"""Two judges of one sample: the gate's, on which pairs and selection depend, and the audit's, which the report prints.

A judge is a logistic regression on signals that mean the same for every task: each is taken less its mean over the task's own
seeds, every seed judged without itself.  Its weights come from sentences that language-model agents read
(``benchmarks/reading``), and so does its calibration: 0.8 is to mean that of ten such sentences eight are right.

The gate's signals come from the spans' features (:mod:`divray.scoring.spans`) by linear discriminant analysis of seeds and
of seeds with head and tail exchanged:

=================  ===============================================================================
``span_own``       discriminant of the sample's relation
``span_reversal``  ``span_own`` less that of the same relation with head and tail exchanged
``span_near``      cosine to the nearest seed of the relation
``span_head``      cosine of the head to the nearest head of a seed; ``span_tail`` likewise
=================  ===============================================================================

The audit's come from texts (:mod:`divray.scoring.features`) by logistic regression:

=================  ===============================================================================
``class``          log-odds of the sample's relation
``margin``         ``class`` less that of the likeliest other class
``reversal``       ``class`` less that of the same relation with head and tail exchanged
``near``           cosine to the nearest seed of the relation, entities masked
``nearer``         ``near`` less the cosine to the nearest seed of another relation
``head``           cosine of the head to the nearest head of a seed; ``tail`` likewise
=================  ===============================================================================

Where ``correctness.llm`` is named, the gate also listens to what that LLM reads (:mod:`divray.scoring.readings`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np

from divray.scoring.classifier import WEIGHT_GRID, Labelled, Linear, fit, held_out, on_grid
from divray.scoring.readings import READINGS
from divray.scoring.spans import BLOCKS, exchanged

SPAN_SIGNALS = ("span_own", "span_reversal", "span_near", "span_head", "span_tail")
SIGNALS = (*SPAN_SIGNALS, "class", "margin", "reversal", "near", "nearer", "head", "tail", *READINGS)
GATE, GATE_LLM, AUDIT = "gate", "gate_llm", "audit"
"""Names in ``weights.json``: with ``correctness.llm`` the gate listens to that LLM's answer."""

SHRINKAGE = 0.8
_ABSENT = -1e4
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

    def probability(self, signals: np.ndarray) -> np.ndarray:
        """Of rows of :data:`SIGNALS`, float64 ``[n]``."""
        own = signals[:, [SIGNALS.index(name) for name in self.signals]]
        values = np.clip(own, self.low, self.high) @ self.weights + self.bias
        return np.round(1.0 / (1.0 + np.exp(-values)), _DIGITS)


@cache
def weights(name: str) -> Weights:
    """The weights of a judge as shipped in ``weights.json``."""
    found = json.loads(files("divray.scoring").joinpath("weights.json").read_text(encoding="utf-8"))[name]
    columns = {key: np.array([row[key] for row in found["signals"]], np.float64) for key in ("weight", "low", "high")}
    return Weights(tuple(row["name"] for row in found["signals"]), columns["weight"], columns["low"], columns["high"], found["bias"])


@dataclass(frozen=True, slots=True)
class Seeds:
    """What the judges know of the seeds, a row each: their relation's number, the features of their spans, those of their texts (and
    with head and tail exchanged), masked embeddings and readings."""

    own: np.ndarray
    spans: np.ndarray
    features: np.ndarray
    reversed_features: np.ndarray
    embeddings: np.ndarray
    readings: np.ndarray


@dataclass(frozen=True, slots=True)
class Judge:
    """The signals of a task, ready to be taken of any sample; a few MB.

    Attributes:
        relations: Names, in the order of the numbers in ``seeds.own``.
        seeds: See :class:`Seeds`.
        discriminant: Of spans; class ``r`` is relation ``r``, class ``len(relations) + r`` its reversal.
        classifier: Of texts; the same classes.
        origin: Mean of each signal over the seeds ``[len(SIGNALS)]``.
    """

    relations: tuple[str, ...]
    seeds: Seeds
    discriminant: Linear
    classifier: Linear
    origin: np.ndarray

    def signals(
        self, relations: list[str], spans: np.ndarray, features: np.ndarray, embeddings: np.ndarray, readings: np.ndarray
    ) -> np.ndarray:
        """Signals of samples, float64 ``[n, len(SIGNALS)]``, less those of the seeds.

        Args:
            relations: The relation of each sample.
            spans: :meth:`~divray.scoring.spans.SpanEncoder.encode`.
            features: :func:`~divray.scoring.features.sentence_features`.
            embeddings: Of the sentences with their entities masked, unit length.
            readings: :meth:`~divray.scoring.readings.Reader.read`; zeros where no LLM reads.
        """
        if unknown := set(relations) - set(self.relations):
            raise ValueError(f"relations without seed examples: {sorted(unknown)}")
        own = np.array([self.relations.index(name) for name in relations], np.int64)
        of_spans = _span_signals(self, own, self.discriminant.scores(spans), spans)
        of_texts = _text_signals(self, own, self.classifier.probability(features), features, embeddings)
        return np.round(np.column_stack([of_spans, of_texts, readings]), _DIGITS) - self.origin


def fit_judge(relations: tuple[str, ...], seeds: Seeds) -> Judge:
    """Fit the classifier and take the seeds' own signals, each without itself; under a second."""
    count = len(relations)
    fold = _rank_within(seeds.own) % _FOLDS
    data = Labelled(
        np.concatenate([seeds.features, seeds.reversed_features]),
        np.concatenate([seeds.own, seeds.own + count]),
        np.ones(2 * len(seeds.own)),
        np.concatenate([fold, fold]),
    )
    spans = replace(data, inputs=np.concatenate([seeds.spans, exchanged(seeds.spans)]))
    judge = Judge(relations, seeds, discriminant(spans, 2 * count), fit(data, 2 * count), np.zeros(len(SIGNALS)))
    scores = np.zeros((len(seeds.own), 2 * count))
    for number in range(_FOLDS):
        left_out = fold == number
        if left_out.any() and not left_out.all():
            scores[left_out] = discriminant(spans.where(spans.fold != number), 2 * count).scores(seeds.spans[left_out])
    probability = held_out(data, _FOLDS, 2 * count)[: len(seeds.own)]
    of_spans = _span_signals(judge, seeds.own, scores, seeds.spans, themselves=True)
    of_texts = _text_signals(judge, seeds.own, probability, seeds.features, seeds.embeddings, themselves=True)
    several = np.bincount(seeds.own)[seeds.own] > 1  # a lone seed has nothing to be judged by
    own = np.column_stack([of_spans, of_texts, seeds.readings])[several if several.any() else slice(None)]
    return replace(judge, origin=np.round(own.mean(axis=0), _DIGITS))


def discriminant(data: Labelled, classes: int) -> Linear:
    """Linear discriminant analysis with equal priors; the covariance is shrunk by :data:`SHRINKAGE` towards a multiple of the identity.

    Solved in the space of the rows (Woodbury), since there are far fewer of them than features.
    """
    inputs, (rows, width) = data.inputs.astype(np.float64), data.inputs.shape
    present = np.unique(data.labels)
    means = np.zeros((classes, width))
    for label in present:
        means[label] = inputs[data.labels == label].mean(axis=0)
    centred = inputs - means[data.labels]
    ridge = SHRINKAGE * float(np.square(centred).sum()) / (rows * width) + _LEAST
    share = (1 - SHRINKAGE) / rows
    inner = np.eye(rows) + share / ridge * (centred @ centred.T)
    weights = means / ridge - share / ridge**2 * (np.linalg.solve(inner, centred @ means.T).T @ centred)
    bias = np.where(np.isin(np.arange(classes), present), -0.5 * (weights * means).sum(axis=1), _ABSENT)
    return Linear(on_grid(weights, WEIGHT_GRID), on_grid(bias, WEIGHT_GRID))


def _span_signals(judge: Judge, own: np.ndarray, scores: np.ndarray, spans: np.ndarray, themselves: bool = False) -> np.ndarray:
    if not len(own):
        return np.zeros((0, len(SPAN_SIGNALS)))
    rows, count = np.arange(len(own)), len(judge.relations)
    same = _same(judge, own, themselves)
    width = spans.shape[1] // BLOCKS
    entities = [
        _nearest(spans[:, view * width : (view + 1) * width], judge.seeds.spans[:, view * width : (view + 1) * width], same)
        for view in (0, 1)
    ]
    mine = scores[rows, own]
    columns = [mine, mine - scores[rows, own + count], _nearest(spans, judge.seeds.spans, same), *entities]
    return np.column_stack(columns)


def _same(judge: Judge, own: np.ndarray, themselves: bool) -> np.ndarray:
    same = own[:, None] == judge.seeds.own[None, :]
    if themselves:
        np.fill_diagonal(same, False)
    return same


def _nearest(mine: np.ndarray, theirs: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Cosine of each row to the nearest of ``theirs`` among those allowed; 0 where none is."""
    one, other = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST) for rows in (mine.astype(float), theirs.astype(float))
    )
    cosines = np.where(among, one @ other.T, -1.0).max(axis=1)
    return np.asarray(np.where(among.any(axis=1), cosines, 0.0))


def _text_signals(
    judge: Judge, own: np.ndarray, probability: np.ndarray, features: np.ndarray, embeddings: np.ndarray, themselves: bool = False
) -> np.ndarray:
    count, rows = len(judge.relations), np.arange(len(own))
    if not len(own):
        return np.zeros((0, 7))
    clipped = np.clip(probability, _LEAST, 1 - _LEAST)
    log_odds = np.log(clipped) - np.log1p(-clipped)
    of_own = log_odds[rows, own]
    others = log_odds.copy()
    others[rows, own] = -np.inf
    likeliest = others.max(axis=1) if count > 1 else log_odds[rows, own + count]
    same = _same(judge, own, themselves)
    size = embeddings.shape[1]
    near = _nearest(embeddings, judge.seeds.embeddings, same)
    foreign = _nearest(embeddings, judge.seeds.embeddings, own[:, None] != judge.seeds.own[None, :])
    entities = [
        _nearest(features[:, view * size : (view + 1) * size], judge.seeds.features[:, view * size : (view + 1) * size], same)
        for view in (2, 3)  # of `features.VIEWS`
    ]
    return np.column_stack([of_own, of_own - likeliest, of_own - log_odds[rows, own + count], near, near - foreign, *entities])


def _rank_within(labels: np.ndarray) -> np.ndarray:
    """Of each row, how many earlier rows carry the same label."""
    seen: dict[int, int] = {}
    ranks = []
    for label in labels.tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return np.array(ranks, dtype=np.int64)
