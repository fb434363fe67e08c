"""The gate's judge of a sample; preference pairs and selection depend on its score.

It is a logistic regression: is the sentence right?  It subtracts from each signal but the probe the mean over the task's own seeds, so
that signals mean the same for every task.  Each seed's signals are computed without that seed.  The weights and their calibration come
from sentences that language-model agents read (``benchmarks/reading``): of ten such sentences scored 0.8, eight are right.  The answer of
``correctness.llm`` has weight 1, since LLMs differ too much for a fitted weight.  With that LLM the score is not calibrated; name
only one that you trust.

The signals come from the features of the spans (:meth:`divray.embeddings.Encoder.spans`) by linear discriminant analysis of seeds and
of seeds with head and tail exchanged:

============  ===============================================================================
``own``       discriminant of the sample's relation
``reversal``  ``own`` less that of the same relation with head and tail exchanged
``near``      cosine to the nearest seed of the relation
``head``      cosine of the head to the nearest head of a seed; ``tail`` likewise
``roles``     discriminant of the entities alone as the relation's head and tail, less that of the two exchanged
``kinds``     discriminant of the entities alone, as above, less its mean over both roles of all relations
``length``    log of (sentence's characters / seeds' geometric mean), 0 for shorter sentences: small LLMs ramble
``fluency``   where ``correctness.fluency`` is named: mean log-probability of the sentence's tokens under that small LLM, after the
              relation's seeds and the entities (:func:`divray.scoring.answers.readings`)
``answer``    where ``correctness.llm`` is named: that LLM's log-odds of yes (:mod:`divray.scoring.answers`), at most 4 either way
``probe``     where ``correctness.fluency`` is the LLM that it was fitted for: what that LLM's hidden states add to the log-odds
              (:class:`divray.scoring.answers.Probe`)
============  ===============================================================================
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from divray.config import Config
from divray.datasets.stage import stated
from divray.embeddings import Encoder
from divray.relations import Example, Relation, replaced
from divray.scoring.answers import Likelihood, Probe, answers_of, ask, readings, some_of
from divray.spans import BLOCKS, FEATURE_GRID, WEIGHT_GRID, Discriminant, discriminant, exchanged, on_grid

SIGNALS = ("own", "reversal", "near", "head", "tail", "roles", "kinds", "length", "fluency", "answer", "probe")
PLAIN, FLUENCY, PROBED = "plain", "fluency", "probed"
"""Judges in ``weights.json``: without an LLM; with ``fluency`` from any LLM; and with ``fluency`` and ``probe``."""

SHRINKAGE, ENTITY_SHRINKAGE = 0.5, 0.8
SPREAD = 10.0
"""Standard deviation to which a discriminant's scores of the seeds are scaled, each seed scored without itself."""
_FOLDS = 4
_LEAST = 1e-6
_DIGITS = 4


@cache
def shipped() -> dict[str, Any]:
    """The judges by name, as they stand in ``weights.json``."""
    return json.loads(files("divray.scoring").joinpath("weights.json").read_text(encoding="utf-8"))


def log_odds(judge: Mapping[str, Any], signals: Mapping[str, np.ndarray]) -> np.ndarray:
    """By an entry of ``weights.json``: ``bias + sum(weight * clip(signal, low, high))``, float64 ``[n]``, of signals ``[n]``."""
    terms = [row["weight"] * np.clip(signals[row["name"]], row["low"], row["high"]) for row in judge["signals"]]
    return np.asarray(judge["bias"] + sum(terms))


def probability(name: str, signals: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probability that each sentence with these signals is right, by the judge ``name`` of ``weights.json``, to four digits."""
    return np.round(1.0 / (1.0 + np.exp(-log_odds(shipped()[name], signals))), _DIGITS)


def probe_for(name: str, llm: str | None) -> Probe | None:
    """The probe of a judge in ``weights.json``, where it was fitted for this LLM."""
    found = shipped()[name]["probe"]
    return Probe(found["layer"], np.array(found["weights"], np.float64)) if found["llm"] == llm else None


@dataclass(frozen=True, slots=True)
class Judge:
    """Computes the signals of any sample of one task; a few MB."""

    relations: tuple[str, ...]  # names, in the order of their numbers
    own: np.ndarray  # relation number of each seed [s]
    middle: np.ndarray  # mean of the spans of sentences with the tail first, and with the head first [2, BLOCKS * d]
    spans: np.ndarray  # of the seeds, then of their relations' descriptions, less ``middle`` [2 s, BLOCKS * d]
    length: float  # mean log of the seeds' characters
    wording: Discriminant  # of spans: class r is relation r, class len(relations) + r its reversal
    entities: Discriminant  # of entities alone: class r is a head of relation r, class len(relations) + r a tail
    origin: np.ndarray  # mean of each signal over the seeds, 0 for the probe [len(SIGNALS)]

    def signals(self, examples: Sequence[Example], features: np.ndarray, heard: np.ndarray) -> np.ndarray:
        """Signals of samples, float64 ``[n, len(SIGNALS)]``, less ``origin``.

        ``features`` are their :meth:`Encoder.spans`, and ``heard`` is what :meth:`Judging.hear` gives for them.
        """
        own = np.array([self.relations.index(example.relation) for example in examples], np.int64)
        spans, heads, tails = _features(features)
        spans = spans - self.middle[_head_first(spans)]
        entities = self.entities.scores(heads), self.entities.scores(tails)
        same = np.tile(own[:, None] == self.own[None, :], 2)
        signals = _signals(self, own, self.wording.scores(spans), entities, spans, same)
        return np.column_stack([signals, np.maximum(0.0, _logs(examples) - self.length), heard]).round(_DIGITS) - self.origin


def fit_judge(
    relations: tuple[str, ...], seeds: Sequence[Example], features: np.ndarray, described: np.ndarray, heard: np.ndarray
) -> Judge:
    """Fit a judge on the seeds, and take ``origin`` from their signals, each seed judged without itself; takes under a second.

    ``features`` are :meth:`Encoder.spans` of the seeds, ``described`` those of their :func:`described_seeds`, and ``heard`` is
    :meth:`Judging.hear_seeds`.
    """
    own = np.array([relations.index(seed.relation) for seed in seeds], np.int64)
    classes = 2 * len(relations)
    several = np.bincount(own)[own] > 1  # without a relation's only seed, its class is empty
    fold = np.array([np.count_nonzero(own[:row] == relation) for row, relation in enumerate(own)]) % _FOLDS  # each relation's in turn
    fold = np.where(several, fold, -1)
    plain, heads, tails = _features(features)
    orders = np.concatenate([plain, exchanged(plain)])
    parts = (orders[_head_first(orders) == order] for order in (0, 1))
    middle = on_grid(np.stack([part.mean(axis=0) if len(part) else np.zeros(orders.shape[1]) for part in parts]), FEATURE_GRID)
    known = np.concatenate([plain, _features(described)[0]])
    known, turned = (spans - middle[_head_first(spans)] for spans in (known, exchanged(known)))
    labels = np.concatenate([own, own + len(relations)])
    wordings = np.concatenate([own, own, own + len(relations), own + len(relations)])
    wording, scores = _fitted(np.concatenate([known, turned]), wordings, classes, SHRINKAGE, fold)
    entities, of_names = _fitted(np.concatenate([heads, tails]), labels, classes, ENTITY_SHRINKAGE, fold)
    logs = _logs(seeds)
    judge = Judge(relations, own, middle, known, float(logs.mean().round(_DIGITS)), wording, entities, np.zeros(len(SIGNALS)))
    same = own[:, None] == own[None, :]
    np.fill_diagonal(same, False)
    signals = _signals(judge, own, scores[: len(own)], np.split(of_names, 2), known[: len(own)], np.tile(same, 2))
    found = np.column_stack([signals, np.maximum(0.0, logs - judge.length)])[several if several.any() else slice(None)]
    return replace(judge, origin=np.concatenate([found.mean(axis=0), heard, [0.0]]).round(_DIGITS))


def described_seeds(relations: Sequence[Relation], seeds: Sequence[Example]) -> list[Example]:
    """For each seed its relation's description, with the seed's entities in place of the first "the head" and "the tail".  Where the
    description does not name both, the seed itself."""
    found, described = [], {relation.name: relation.description for relation in relations}
    for seed in seeds:
        text = described[seed.relation]
        head, tail = (re.search(rf"\b[Tt]he {name}\b", text) for name in ("head", "tail"))
        if head and tail:
            seed = Example(*replaced(text, head.span(), seed.head_text, tail.span(), seed.tail_text), seed.relation)
        found.append(seed)
    return found


def _fitted(inputs: np.ndarray, labels: np.ndarray, classes: int, shrinkage: float, fold: np.ndarray) -> tuple[Discriminant, np.ndarray]:
    """A discriminant of ``inputs`` (the seeds' features, kind after kind), and their scores by one fitted on the other folds.  Both are
    scaled to :data:`SPREAD`.  Rows of fold -1 get the score 0."""
    whole, folds = discriminant(inputs, labels, classes, shrinkage), np.tile(fold, len(inputs) // len(fold))
    scores = np.zeros((len(inputs), classes))
    for number in range(_FOLDS):
        left_out = folds == number
        if left_out.any() and not left_out.all():
            scores[left_out] = discriminant(inputs[~left_out], labels[~left_out], classes, shrinkage).scores(inputs[left_out])
    known = np.unique(labels)
    spread = float((scores[folds >= 0] if scores.any() else whole.scores(inputs))[:, known].std())
    factor = SPREAD / max(spread, _LEAST)
    return Discriminant(on_grid(factor * whole.weights, WEIGHT_GRID), on_grid(factor * whole.bias, WEIGHT_GRID)), factor * scores


def _features(features: np.ndarray) -> list[np.ndarray]:
    """Spans ``[n, BLOCKS * d]``, head and tail alone ``[n, d]``."""
    width = features.shape[1] // (BLOCKS + 2)
    return np.split(features.astype(np.float64), [BLOCKS * width, (BLOCKS + 1) * width], axis=1)


def _head_first(spans: np.ndarray) -> np.ndarray:
    """1 for a sentence in which the head comes first, else 0; by the blocks of the words between and outside."""
    blocks = np.any(spans.reshape(len(spans), BLOCKS, spans.shape[1] // BLOCKS), axis=2)
    return (blocks[:, 2] | blocks[:, 4]).astype(np.int64)


def _signals(
    judge: Judge, own: np.ndarray, scores: np.ndarray, entities: Sequence[np.ndarray], spans: np.ndarray, same: np.ndarray
) -> np.ndarray:
    rows, width, turned = np.arange(len(own)), spans.shape[1] // BLOCKS, own + len(judge.relations)
    (heads, tails), mine = entities, scores[rows, own]
    fitting = heads[rows, own] + tails[rows, turned]
    near = [_nearest(spans, judge.spans, same)]
    for view in (slice(0, width), slice(width, 2 * width)):
        near.append(_nearest(spans[:, view], judge.spans[: len(judge.own), view], same[:, : len(judge.own)]))
    roles, kinds = fitting - heads[rows, turned] - tails[rows, own], fitting - heads.mean(axis=1) - tails.mean(axis=1)
    return np.column_stack([mine, mine - scores[rows, turned], *near, roles, kinds])


def _nearest(mine: np.ndarray, theirs: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Cosine of each row to the nearest of ``theirs`` among those allowed; 0 where none is."""
    one, other = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST) for rows in (mine, theirs))
    cosines = np.where(among, one @ other.T, -1.0).max(axis=1)
    return np.asarray(np.where(among.any(axis=1), cosines, 0.0))


def _logs(examples: Sequence[Example]) -> np.ndarray:
    return np.log([float(max(1, len(example.text))) for example in examples])


def known_of(config: Config, relations: Sequence[Relation], seeds: Sequence[Example]) -> tuple[list[Relation], list[Example]]:
    """What a judge knows of a task: the relations except the none label, and their seeds sorted by id."""
    relations = stated(relations, config.task.none_label)
    names = {relation.name for relation in relations}
    return relations, sorted((seed for seed in seeds if seed.relation in names), key=lambda seed: seed.example_id)


class Judging:
    """Loads the models that a run's settings name; a worker makes one."""

    def __init__(self, config: Config, relations: Sequence[Relation], seeds: Sequence[Example]) -> None:
        self.relations, self.seeds = known_of(config, relations, seeds)
        self.encoder = Encoder(config.models.encoder)
        self.likelihood = Likelihood(config.correctness.fluency, self.encoder.device) if config.correctness.fluency else None
        self.answers = answers_of(config, self.encoder.device)
        self.probe = probe_for(PROBED, config.correctness.fluency)
        self.gate = PROBED if self.probe else FLUENCY if self.likelihood else PLAIN

    def hear(self, examples: Sequence[Example]) -> np.ndarray:
        """``fluency``, ``answer`` and ``probe``, float64 ``[n, 3]``; zeros where no model gives one."""
        known, found = (self.relations, self.seeds, examples), np.zeros((len(examples), 3))
        if self.likelihood is not None:
            found[:, [0, 2]] = readings(self.likelihood, *known, self.probe)[:, [0, 2]]
        if self.answers is not None:
            found[:, 1] = ask(self.answers, *known)
        return found

    def hear_seeds(self) -> np.ndarray:
        """Mean of ``fluency`` and ``answer`` over some of the seeds, float64 ``[2]``."""
        return self.hear(some_of(self.seeds)).mean(axis=0).round(3)[:2]

    def judge(self, heard: np.ndarray) -> Judge:
        """The task's judge; ``heard`` is :meth:`hear_seeds`."""
        names, described = tuple(relation.name for relation in self.relations), described_seeds(self.relations, self.seeds)
        return fit_judge(names, self.seeds, self.encoder.spans(self.seeds), self.encoder.spans(described), heard)

    def correctness(self, judge: Judge, examples: Sequence[Example]) -> np.ndarray:
        """The gate's probability that each example is right, float64 ``[n]``."""
        signals = judge.signals(examples, self.encoder.spans(examples), self.hear(examples))
        return probability(self.gate, dict(zip(SIGNALS, signals.T, strict=True)))
