"""An encoder's features of head, tail, the words between them and all words outside them, and a linear classifier in closed form.

The four views are unit-length means of hidden states of the unmarked sentence.  The views of the words between and of the words
outside have two blocks each, one for each order of the entities, so that a linear classifier sees the direction.  The
classifier is linear discriminant analysis with a covariance shrunk towards a multiple of the identity, as in Friedman 1989
(regularized discriminant analysis), whose weights need one solve in the space of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from divray.relations import Example, Span

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = 6
"""Blocks of features, each as wide as the encoder: one for head, one for tail, two for the words between, two for those outside."""
FEATURE_GRID, WEIGHT_GRID = 2.0**-12, 2.0**-20
_ABSENT = -1e4
_LEAST = 1e-6


class Encoded(NamedTuple):
    """Token ids, the place of each (0 head, 1 tail, 2 between, 3 outside, -1 none), and whether the head comes first."""

    ids: list[int]
    view: list[int]
    forward: bool


class Batch(NamedTuple):
    """Encoded sentences side by side: ``ids`` and ``mask`` ``[n, t]``, ``forward`` ``[n]``, and ``views``
    ``[n, 4, t]`` of 0 and 1: head, tail, between, and all words outside of the entities, those between among them."""

    ids: Tensor
    mask: Tensor
    views: Tensor
    forward: Tensor


def encode_spans(tokenizer: Any, examples: Sequence[Example], max_tokens: int) -> list[Encoded]:
    """Tokenize; a sentence of more than ``max_tokens`` loses the tokens farthest from both entities, but no special ones."""
    if not examples:
        return []
    made = tokenizer([one.text for one in examples], return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    rows = zip(examples, made["input_ids"], made["offset_mapping"], made["special_tokens_mask"], strict=True)
    return [_encoded(example, ids, offsets, special, max_tokens) for example, ids, offsets, special in rows]


def _encoded(example: Example, ids: list[int], offsets: list[Span], special: list[int], max_tokens: int) -> Encoded:
    first, second = sorted((example.head, example.tail))

    def view(start: int, end: int) -> int:
        for number, span in enumerate((example.head, example.tail)):
            if start < span[1] and end > span[0]:
                return number
        return 2 if start >= first[1] and end <= second[0] else 3

    views = [-1 if hidden or end <= start else view(start, end) for (start, end), hidden in zip(offsets, special, strict=True)]
    if len(ids) > max_tokens:
        entity = [place for place, one in enumerate(views) if one in (0, 1)] or [0]

        def distance(place: int) -> int:
            return -1 if special[place] else min(abs(place - other) for other in entity)

        kept = sorted(sorted(range(len(ids)), key=distance)[:max_tokens])
        ids, views = [ids[place] for place in kept], [views[place] for place in kept]
    return Encoded(list(ids), views, example.head < example.tail)


def collate(encoded: Sequence[Encoded], pad: int, device: Any, width: int = 0) -> Batch:
    """Pad on the right to the longest sentence, or to ``width`` if that is longer."""
    import torch

    width = max(width, *(len(one.ids) for one in encoded))
    ids = torch.tensor([one.ids + [pad] * (width - len(one.ids)) for one in encoded], device=device)
    mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in encoded], device=device)
    view = torch.tensor([one.view + [-1] * (width - len(one.view)) for one in encoded], device=device)
    views = torch.stack([view == 0, view == 1, view == 2, view >= 2], dim=1).float()
    return Batch(ids, mask, views, torch.tensor([one.forward for one in encoded], device=device))


def means(states: Tensor, batch: Batch) -> Tensor:
    """Unit-length means ``[n, 4, d]`` of hidden states ``[n, t, d]``; zeros where a view has no token."""
    import torch

    return torch.nn.functional.normalize(batch.views @ states.float(), dim=-1)


def pooled(states: Tensor, batch: Batch, weights: Sequence[float]) -> Tensor:
    """Features ``[n, BLOCKS * d]`` of hidden states ``[n, t, d]``; ``weights`` are those of the views."""
    import torch

    weighted = means(states, batch) * torch.tensor(list(weights), device=states.device)[:, None]
    head, tail, between, words = weighted.unbind(1)
    return torch.cat([head, tail, by_order(between, batch), by_order(words, batch)], dim=-1)


def by_order(view: Tensor, batch: Batch) -> Tensor:
    """Put a view ``[n, d]`` in the first half of ``[n, 2 d]`` if the head comes first, else in the second; the other half is 0."""
    import torch

    ahead = batch.forward[:, None].float()
    return torch.cat([view * ahead, view * (1 - ahead)], dim=-1)


def exchanged(features: np.ndarray) -> np.ndarray:
    """The features of the same sentences with head and tail exchanged."""
    blocks = features.reshape(len(features), BLOCKS, -1)
    return blocks[:, [1, 0, 3, 2, 5, 4]].reshape(features.shape)


@dataclass(frozen=True, slots=True)
class Discriminant:
    """A linear classifier: ``weights`` ``[m, d]``, ``bias`` ``[m]``."""

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores linear in the features, float64 ``[n, m]``.  They are sums of multiples of powers of two, so exact in any order."""
        return np.asarray(features.astype(np.float64) @ self.weights.T + self.bias)


def discriminant(
    inputs: np.ndarray, labels: np.ndarray, classes: int, shrinkage: float, row_weights: np.ndarray | None = None
) -> Discriminant:
    """Linear discriminant analysis with equal priors; a class without rows always scores ``_ABSENT``.

    Solves in the space of the rows (Woodbury) if there are fewer rows than features.

    Args:
        inputs: Features ``[n, d]``.
        labels: Number, below ``classes``, of each row.
        shrinkage: How far the covariance shrinks towards the mean of its diagonal, in (0, 1].
        row_weights: How much each row counts; default: 1.
    """
    inputs, (rows, width) = inputs.astype(np.float64), inputs.shape
    row_weights = np.ones(rows) if row_weights is None else np.asarray(row_weights, np.float64)
    present = np.unique(labels)
    means = np.zeros((classes, width))
    for label in present:
        own = labels == label
        means[label] = np.average(inputs[own], axis=0, weights=row_weights[own])
    centred = (inputs - means[labels]) * np.sqrt(row_weights)[:, None]
    total = row_weights.sum()
    # Where each class has one row, nothing varies within a class; the spread of the means then gives the scale.
    scatter = float(np.square(centred).sum()) / total or float(np.square(means[present] - means[present].mean(axis=0)).mean(axis=0).sum())
    ridge = shrinkage * scatter / width + _LEAST
    share = (1 - shrinkage) / total
    if rows < width:
        inner = np.eye(rows) + share / ridge * (centred @ centred.T)
        weights = means / ridge - share / ridge**2 * (np.linalg.solve(inner, centred @ means.T).T @ centred)
    else:
        weights = np.linalg.solve(share * (centred.T @ centred) + ridge * np.eye(width), means.T).T
    bias = np.where(np.isin(np.arange(classes), present), -0.5 * (weights * means).sum(axis=1), _ABSENT)
    return Discriminant(on_grid(weights, WEIGHT_GRID), on_grid(bias, WEIGHT_GRID))


def on_grid(values: np.ndarray, step: float) -> np.ndarray:
    """``values`` rounded to multiples of ``step``, float64."""
    return np.round(np.asarray(values, dtype=np.float64) / step) * step
