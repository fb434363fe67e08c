"""Training of the RE model: a linear classifier in closed form, and from there, with ``epochs``, the encoder with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from divray.relations import Example
from divray.sections import ExtractionConfig
from divray.spans import discriminant

if TYPE_CHECKING:
    from divray.extraction.model import RelationExtractor

WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
CLASSIFIER_RATE = 10.0
"""Learning rate of the classifier over that of the pretrained encoder."""

POOL_BATCHES = 4
"""Batches that are drawn together and sorted by length, so that little is spent on padding."""

FOLDS = 4
SCALES = 2.0 ** np.arange(-8, 2.5, 0.5)
"""Factors of the discriminant's scores, of which the likeliest out of fold is taken."""
UNFITTED_SCALE = 0.25
"""Where no relation has two rows."""


def train(
    examples: Sequence[Example],
    labels: Sequence[str],
    encoder: str,
    config: ExtractionConfig,
    seed: int,
    weights: Sequence[float] | None = None,
) -> RelationExtractor:
    """Fit a model to examples; their order does not matter.

    Args:
        examples: Their relations are among ``labels``; a label may have no example.
        labels: The classifier's outputs, in this order.
        encoder: Model reference (see :func:`divray.models.local_model`).
        config: Depth, views, shrinkage; for the tuning of the encoder learning rate, epochs, batch size, warm-up share.
        seed: Of the order of the batches; without ``epochs`` nothing is drawn.
        weights: How much each example counts; default: 1.

    Raises:
        ValueError: No examples, or one with a relation that is no label.
    """
    order = sorted(range(len(examples)), key=lambda row: _identity(examples[row]))
    ordered = [examples[row] for row in order]
    counted = np.ones(len(order)) if weights is None else np.array([weights[row] for row in order])
    targets = targets_of(ordered, labels)
    with _reproducible(seed):
        model = untrained(labels, encoder, config)
        fit_head(model, model.features(ordered), targets, counted, config.shrinkage)
        if config.epochs:
            _tune(model, ordered, targets, counted, config)
    return model.eval()


def untrained(labels: Sequence[str], encoder: str, config: ExtractionConfig) -> RelationExtractor:
    """The encoder of a model that :func:`fit_head` completes."""
    import torch

    from divray.extraction.model import RelationExtractor

    views = (config.entity_weight, config.entity_weight, 1.0, config.words_weight, config.last_weight)
    model = RelationExtractor.on_encoder(encoder, labels, config.depth, views, config.max_length)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return model


def targets_of(examples: Sequence[Example], labels: Sequence[str]) -> np.ndarray:
    """The label numbers of examples.

    Raises:
        ValueError: No examples, or one with a relation that is no label.
    """
    index = {label: i for i, label in enumerate(labels)}
    if unknown := {e.relation for e in examples} - index.keys():
        raise ValueError(f"examples of no label: {sorted(unknown)}")
    if not examples:
        raise ValueError("no training examples")
    return np.array([index[e.relation] for e in examples])


def fit_head(model: RelationExtractor, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, shrinkage: float) -> None:
    """Set the classifier to the linear discriminant of ``features``, scaled so that its probabilities fit rows that it has not seen."""
    import torch

    classes = len(model.config.labels)
    whole = discriminant(features, targets, classes, shrinkage, weights)
    scale = _scale(features, targets, weights, classes, shrinkage)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(scale * whole.weights))
        model.classifier.bias.copy_(torch.from_numpy(np.maximum(scale * whole.bias, -1e4)))


def held_out_scores(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, classes: int, shrinkage: float) -> np.ndarray:
    """Discriminant scores ``[n, classes]`` of each row by the others' folds; nan where its relation has no other row."""
    fold = fold_of(targets)
    scores = np.full((len(targets), classes), np.nan)
    for number in range(FOLDS):
        out = fold == number
        known = out & np.isin(targets, targets[~out])
        if known.any():
            scores[known] = discriminant(features[~out], targets[~out], classes, shrinkage, weights[~out]).scores(features[known])
    return scores


def fold_of(targets: np.ndarray) -> np.ndarray:
    """A fold for each row, the rows of each label shared out evenly."""
    fold = np.zeros(len(targets), np.int64)
    for label in np.unique(targets):
        own = np.flatnonzero(targets == label)
        fold[own] = np.arange(len(own)) % FOLDS
    return fold


def _scale(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, classes: int, shrinkage: float) -> float:
    """The factor of the least cross-entropy out of fold, against Platt's (1999) targets: n rows can't show a certainty of 1."""
    from scipy.special import log_softmax

    scores = held_out_scores(features, targets, weights, classes, shrinkage)
    rows = np.flatnonzero(~np.isnan(scores[:, 0]))
    if not len(rows):
        return UNFITTED_SCALE
    present = np.unique(targets[rows])
    scores, places = scores[np.ix_(rows, present)], np.searchsorted(present, targets[rows])
    doubt = 1.0 / (np.bincount(places)[places] + 2)
    wanted = np.repeat(doubt[:, None] / max(1, len(present) - 1), len(present), axis=1)
    wanted[np.arange(len(rows)), places] = 1 - doubt
    losses = [-np.average((wanted * log_softmax(scale * scores, axis=1)).sum(axis=1), weights=weights[rows]) for scale in SCALES]
    return float(SCALES[int(np.argmin(losses))])


def _identity(example: Example) -> tuple[Any, ...]:
    return example.text, example.head, example.tail, example.relation


def _tune(model: RelationExtractor, ordered: Sequence[Example], targets: np.ndarray, weights: np.ndarray, config: ExtractionConfig) -> None:
    """AdamW with linear warm-up and decay from the closed form on; the same model for the same seed.

    The encoder's input embeddings stay as they are: a few examples touch a few of them, and they are half of a small
    encoder's weights.
    """
    import torch

    from divray.extraction.model import precision

    encoded = model.encode(ordered)
    wanted = torch.tensor(targets, device=model.device)
    counted = torch.tensor(weights, device=model.device, dtype=torch.float32)
    steps = -(-len(encoded) // config.batch_size) * config.epochs
    model.encoder.get_input_embeddings().requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.encoder.parameters() if weight.requires_grad]},
        {"params": model.classifier.parameters(), "lr": config.learning_rate * CLASSIFIER_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    warmup = max(1, round(config.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
    for _ in range(config.epochs):
        model.train()
        for rows in _batches([len(e.ids) for e in encoded], config.batch_size):
            with precision(model.device):
                logits = model(model.collate([encoded[i] for i in rows]))
            losses = torch.nn.functional.cross_entropy(logits.float(), wanted[rows], reduction="none")
            (losses * counted[rows]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def _batches(lengths: list[int], size: int) -> list[list[int]]:
    """All rows in random batches of like length, in random order; drawn from torch's global generator."""
    import torch

    drawn = torch.randperm(len(lengths)).tolist()
    pools = [sorted(drawn[i : i + POOL_BATCHES * size], key=lengths.__getitem__) for i in range(0, len(drawn), POOL_BATCHES * size)]
    batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeded generators and, on a CPU, one thread: the order of sums then never changes; both are put back."""
    import torch

    threads = torch.get_num_threads()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
