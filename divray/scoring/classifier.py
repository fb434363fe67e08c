"""Multinomial logistic regression whose probabilities do not depend on batch shape or BLAS.

Features and weights are multiples of powers of two, so that their products and sums are exact in
float64 in whatever order they are added up.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REGULARIZATION = 10.0
"""Inverse strength C of the logistic regressions, for views of unit length."""

FEATURE_GRID, WEIGHT_GRID = 2.0**-12, 2.0**-20

_ABSENT = -50.0


@dataclass(frozen=True, slots=True)
class Linear:
    """A multinomial linear classifier: ``weights`` ``[m, d]``, ``bias`` ``[m]``."""

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """What is linear in the features, float64 ``[n, m]``."""
        return np.asarray(features.astype(np.float64) @ self.weights.T + self.bias)

    def probability(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities, float64 ``[n, m]``."""
        logits = self.scores(features)
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        return exponentials / exponentials.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows to fit on: ``inputs`` ``[n, d]``; class number, weight and fold ``[n]`` each."""

    inputs: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    fold: np.ndarray

    def where(self, kept: np.ndarray) -> Labelled:
        return Labelled(self.inputs[kept], self.labels[kept], self.weight[kept], self.fold[kept])

    def plus(self, other: Labelled) -> Labelled:
        return Labelled(
            np.concatenate([self.inputs, other.inputs]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.weight, other.weight]),
            np.concatenate([self.fold, other.fold]),
        )


def fit(data: Labelled, classes: int) -> Linear:
    """Fit on one core; a class without rows gets no probability."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    present = np.unique(data.labels)
    weights, bias = np.zeros((classes, data.inputs.shape[1])), np.full(classes, _ABSENT)
    if len(present) == 1:
        bias[present] = 0.0
        return Linear(weights, bias)
    model = LogisticRegression(C=REGULARIZATION, max_iter=300)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data.inputs.astype(np.float64), data.labels, sample_weight=data.weight)
    if len(present) == 2:
        weights[present[1]], bias[present] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weights[present], bias[present] = model.coef_, model.intercept_
    return Linear(on_grid(weights, WEIGHT_GRID), on_grid(bias, WEIGHT_GRID))


def held_out(data: Labelled, folds: int, classes: int) -> np.ndarray:
    """Probabilities ``[n, classes]`` of each row from a classifier fitted without its fold."""
    models = [fit(data.where(data.fold != number), classes) if (data.fold != number).any() else None for number in range(folds)]
    return by_fold(models, data.inputs, data.fold, classes)


def by_fold(models: Sequence[Linear | None], inputs: np.ndarray, fold: np.ndarray, classes: int) -> np.ndarray:
    """Each row by the model of its own fold; uniform where a fold has none."""
    result = np.full((len(inputs), classes), 1.0 / classes)
    for number, model in enumerate(models):
        if model is not None and (fold == number).any():
            result[fold == number] = model.probability(inputs[fold == number])
    return result


def on_grid(values: np.ndarray, step: float) -> np.ndarray:
    """``values`` rounded to multiples of ``step``, float64."""
    return np.round(np.asarray(values, dtype=np.float64) / step) * step
