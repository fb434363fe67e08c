"""The judge: two classifiers made from the seed examples and the samples, and their calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from divray.correctness.classifier import Labelled, Linear, by_fold, fit, held_out
from divray.relations import mask_entities
from divray.sections import CorrectnessConfig

_LEAST = 1e-6
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Judge:
    """The fitted classifiers; small enough to travel to every worker (5 MB for 20 relations).

    Class ``r`` of a classifier is relation ``r``, class ``len(relations) + r`` is its reversal.

    Attributes:
        relations: Names, in the order of the columns of :meth:`probability`.
        directed: Whether the direction counts, per relation.
        seeds: Classifier of the ``seeds`` signal, or ``None`` where unused.
        folds: One classifier a fold of the ``out_of_fold`` signal; empty where unused.
        slope: Calibration: factor on the mean log-odds.
        offset: Calibration: what is added to them.
    """

    relations: tuple[str, ...]
    directed: np.ndarray
    seeds: Linear | None
    folds: tuple[Linear, ...]
    slope: float
    offset: float

    def probability(self, features: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Calibrated probability of every relation for every row, float64 ``[n, r]``; rows need not sum to 1.

        Args:
            features: As made by :func:`~divray.correctness.features.sentence_features`.
            groups: Per row the name that decides its fold, which is the same for sentences that are near copies.
        """
        return _sigmoid(self._log_odds(features, groups))

    def score(self, samples: pa.Table, features: np.ndarray) -> np.ndarray:
        """Probability in [0, 1] that each sample expresses its own ``relation``, float64 ``[n]``, 6 decimals.

        Near-duplicates are judged by the same fold: rows of one ``cluster`` where there is such a column,
        else sentences that differ only in their entities.  A column ``llm_score`` (the LLM's own
        probability that the relation holds, in [0, 1]) joins the mean of the log-odds as one more signal
        of equal weight.

        Raises:
            ValueError: A relation that the judge does not know.
        """
        names = samples["relation"].to_pylist()
        unknown = set(names) - set(self.relations)
        if unknown:
            raise ValueError(f"relations without seed examples: {sorted(unknown)}")
        column = {name: number for number, name in enumerate(self.relations)}
        log_odds = self._log_odds(features, _groups(samples))[np.arange(len(names)), [column[name] for name in names]]
        if "llm_score" in samples.column_names:
            signals = (self.seeds is not None) + bool(self.folds)
            llm = samples["llm_score"].to_numpy().astype(np.float64)
            log_odds = (signals * log_odds + _logit(llm)) / (signals + 1)
        return np.round(_sigmoid(log_odds), _DIGITS)

    def _log_odds(self, features: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        count = len(self.relations)
        if not len(features):
            return np.zeros((0, count))
        signals = [self.seeds.probability(features)] if self.seeds is not None else []
        if self.folds:
            signals.append(by_fold(self.folds, features, _fold_numbers(groups, len(self.folds)), 2 * count))
        mean = np.mean([_logit(_undirected(signal, self.directed))[:, :count] for signal in signals], axis=0)
        return self.slope * mean + self.offset


def fit_judge(
    seeds: pa.Table,
    seed_features: np.ndarray,
    reversed_features: np.ndarray,
    config: CorrectnessConfig,
    samples: pa.Table | None = None,
    sample_features: np.ndarray | None = None,
    none_label: str | None = None,
) -> Judge:
    """Fit the classifiers and the calibration: seconds on one core.

    Without samples, or where none is given, only the seeds judge.

    Args:
        seeds: Seed examples (``schemas.EXAMPLES``).
        seed_features: Their ``sentence_features``.
        reversed_features: The same with ``reverse=True``.
        config: Which signals, how many folds.
        samples: Generated samples (``schemas.SAMPLES``, valid ones) with ``cluster`` where it is known; of a
            large table only :func:`fitting_rows`.
        sample_features: Their ``sentence_features``.
        none_label: A relation that has no direction by its nature ("none of these").
    """
    relations = tuple(sorted(set(seeds["relation"].to_pylist())))
    count = len(relations)
    order = _by_name(seeds["example_id"].to_pylist())
    own = np.array([relations.index(name) for name in seeds["relation"].to_pylist()])[order]
    forward = seed_features[order]
    has_reverse = np.array([relation != none_label for relation in relations])
    reversible = has_reverse[own]
    fold = _rank_within(own) % config.folds
    data = Labelled(
        np.concatenate([forward, reversed_features[order][reversible]]),
        np.concatenate([own, own[reversible] + count]),
        np.ones(len(own) + reversible.sum()),
        np.concatenate([fold, fold[reversible]]),
    )
    probability = held_out(data, config.folds, 2 * count)[: len(own)]
    directed = has_reverse & (_shows_direction(probability, own, count) if count > 1 else True)

    seed_model = fit(data, 2 * count)
    folds: tuple[Linear, ...] = ()
    signals = []
    if "out_of_fold" in config.signals and samples is not None and sample_features is not None and samples.num_rows:
        both = _weighted(samples, sample_features, relations, seed_model, directed, config.folds).plus(data)
        folds = tuple(fit(both.where(both.fold != number), 2 * count) for number in range(config.folds))
        signals.append(by_fold(folds, forward, fold, 2 * count))
    use_seeds = "seeds" in config.signals or not folds
    if use_seeds:
        signals.append(probability)
    slope, offset = _calibration(np.mean([_logit(_undirected(signal, directed)) for signal in signals], axis=0), own)
    return Judge(relations, directed, seed_model if use_seeds else None, folds, slope, offset)


def correctness_scores(
    samples: pa.Table,
    features: np.ndarray,
    seeds: pa.Table,
    seed_features: np.ndarray,
    reversed_features: np.ndarray,
    config: CorrectnessConfig,
    none_label: str | None = None,
) -> np.ndarray:
    """:func:`fit_judge` on the :func:`fitting_rows`, then :meth:`Judge.score` of all, in the order of the rows."""
    fitted = fitting_rows(samples, config.fit_per_relation)
    judge = fit_judge(seeds, seed_features, reversed_features, config, samples.take(fitted), features[fitted], none_label)
    return judge.score(samples, features)


def fitting_rows(samples: pa.Table, per_relation: int) -> np.ndarray:
    """Row numbers, ascending, that the out-of-fold classifiers are fitted on.

    One row of each group of near-duplicates (see :meth:`Judge.score`), so that a sentence said often
    does not count often, and of these the ``per_relation`` of each relation with the smallest hash of
    their ``candidate_id``.
    """
    relations, identities = samples["relation"].to_pylist(), samples["candidate_id"].to_pylist()
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for row, (relation, group) in enumerate(zip(relations, _groups(samples), strict=True)):
        entry = (_hash(identities[row]), row)
        first[relation, group] = min(entry, first.get((relation, group), entry))
    candidates: dict[str, list[tuple[int, int]]] = {}
    for (relation, _), entry in first.items():
        candidates.setdefault(relation, []).append(entry)
    return np.array(sorted(row for some in candidates.values() for _, row in sorted(some)[:per_relation]), dtype=np.int64)


def _weighted(
    samples: pa.Table, features: np.ndarray, relations: tuple[str, ...], model: Linear, directed: np.ndarray, folds: int
) -> Labelled:
    """The samples under their intended labels, weighted by what the seeds' classifier says of them."""
    order = _by_name(samples["candidate_id"].to_pylist())
    intended = np.array([relations.index(name) for name in samples["relation"].to_pylist()])[order]
    probability = _undirected(model.probability(features[order]), directed)
    weight = np.round(probability[np.arange(len(order)), intended], _DIGITS)
    return Labelled(features[order], intended, weight, _fold_numbers(_groups(samples), folds)[order])


def _shows_direction(probability: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Per relation, whether held-out seeds look more like it than like its reversal, by the mean log ratio."""
    rows = np.arange(len(own))
    ratio = _logit(probability[rows, own]) - _logit(probability[rows, own + count])
    return np.array([ratio[own == number].mean() > 0 for number in range(count)])


def _undirected(probability: np.ndarray, directed: np.ndarray) -> np.ndarray:
    """``[n, 2 r]`` with the reversal of an undirected relation counted as the relation."""
    forward, backward = np.split(probability, 2, axis=1)
    return np.concatenate([forward + backward * ~directed, backward * directed], axis=1)


def _calibration(log_odds: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """Platt scaling (1999) of the held-out seeds: own class against the likeliest wrong class.

    A relation with one seed has none to hold out; where all are so, chance among the classes is 0.5.
    """
    from sklearn.linear_model import LogisticRegression

    usable = np.flatnonzero(np.bincount(own)[own] > 1)
    if not len(usable):
        return 1.0, round(float(np.log(log_odds.shape[1] - 1)), _DIGITS)
    right = log_odds[usable, own[usable]]
    others = log_odds[usable].copy()
    others[np.arange(len(usable)), own[usable]] = -np.inf
    wrong = others.max(axis=1)
    model = LogisticRegression(C=1.0).fit(np.concatenate([right, wrong])[:, None], np.repeat([1, 0], len(usable)))
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:  # the seeds do not resemble each other: keep the order, centre it between the two
        slope, offset = 1.0, -float(right.mean() + wrong.mean()) / 2
    return round(slope, _DIGITS), round(offset, _DIGITS)


def _groups(samples: pa.Table) -> list[str]:
    """Samples of one group never vouch for each other: the clusters, or the sentences with the same words around their entities."""
    if "cluster" in samples.column_names:
        clusters: list[str] = samples["cluster"].to_pylist()
        return clusters
    columns = [samples[name].to_pylist() for name in ("text", "head_start", "head_end", "tail_start", "tail_end")]
    return [mask_entities(text, (hs, he), (ts, te)).casefold() for text, hs, he, ts, te in zip(*columns, strict=True)]


def _by_name(names: list[str]) -> np.ndarray:
    return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)


def _fold_numbers(groups: Sequence[str], folds: int) -> np.ndarray:
    return np.array([_hash(group) % folds for group in groups], dtype=np.int64)


def _rank_within(labels: np.ndarray) -> np.ndarray:
    """Of each row, how many earlier rows carry the same label."""
    seen: dict[int, int] = {}
    ranks = []
    for label in labels.tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return np.array(ranks, dtype=np.int64)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-log_odds))
