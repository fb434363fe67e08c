"""Training of the RE model: a linear classifier in closed form, and, with ``epochs``, a tuned network beside it.

If a relation has an inverse, each of its examples also counts, with head and tail exchanged, as an example of the inverse.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer

from divray.embeddings import one_thread
from divray.extraction.model import RelationExtractor, RelationExtractorConfig, precision, shortened
from divray.models import local_model
from divray.relations import Example, Relation, replaced
from divray.spans import WEIGHT_GRID, Discriminant, discriminant, on_grid

NGRAM_WEIGHT, MAX_TOKENS = 0.5, 96
"""Weight of hashed n-grams of the words between the entities; maximum tokens of a sentence."""
DESCRIPTION_WEIGHT = 0.15
"""Spread of the similarity to the relation descriptions (:func:`closed_form`), as a share of the spread of the discriminant's scores."""

BATCH_SIZE, WARMUP, WEIGHT_DECAY, MAX_GRADIENT_NORM = 16, 0.1, 0.01, 1.0
"""Training settings of the tuned network; ``WARMUP`` is the share of its steps in which the rate rises."""
CLASSIFIER_RATE = 5.0
"""Learning rate of the tuned network's classifier, as a multiple of its encoder's."""
REPLACED = 0.5
"""Probability, in each epoch, that a head (or tail) is replaced by a head (or tail) of the same relation."""
CONTRASTIVE, TEMPERATURE = 0.3, 0.1
"""Weight and temperature of the supervised contrastive loss (arXiv 2004.11362)."""

SUREST, SELF_TRAINED = 8, 0.5
"""Unlabelled sentences that self-training adds, at most, per human example of a relation; and the weight of each."""

FOLDS, SCALES, UNFITTED_SCALE = 4, 2.0 ** np.arange(-8, 2.5, 0.5), 0.25
"""Number of cross-validation folds; candidate factors for the scores, chosen on held-out rows; the factor if there are no such rows."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The hyperparameters of an RE model, which the search may change.

    Attributes (the others are settings of :class:`~divray.sections.ExtractionConfig`):
        depth: Depth of the layer for spans, as a share of all layers; the middle layers best encode who does what to whom.
        entity_weight: Weight of head and tail; the words between them have weight 1.
        words_weight: Weight of all words outside of head and tail.
        last_weight: Weight of the same words in the last layer.
        shrinkage: Shrinkage of the covariance towards a multiple of the identity.
    """

    generated_weight: float = 0.125
    epochs: int = 0
    learning_rate: float = 2e-4
    depth: float = 0.5
    entity_weight: float = 0.7
    words_weight: float = 0.5
    last_weight: float = 0.5
    shrinkage: float = 0.8


class Rows(NamedTuple):
    """Training rows: the examples, then the mirrored ones; for each row the label's number, the weight, and the example's index."""

    examples: list[Example]
    targets: np.ndarray
    weights: np.ndarray
    origin: np.ndarray


def training_rows(examples: Sequence[Example], relations: Sequence[Relation]) -> Rows:
    """Examples and their mirrored forms as rows."""
    number = {relation.name: place for place, relation in enumerate(relations)}
    rows, origin = list(examples), list(range(len(examples)))
    for place, one in enumerate(examples):
        if inverse := relations[number[one.relation]].inverse:
            mirrored = replace(one, head=one.tail, tail=one.head, head_type=one.tail_type, tail_type=one.head_type)
            rows.append(replace(mirrored, relation=inverse))
            origin.append(place)
    return Rows(rows, np.array([number[row.relation] for row in rows]), np.array([row.weight for row in rows]), np.array(origin))


def train(
    examples: Sequence[Example], relations: Sequence[Relation], encoder: str, config: Hyperparameters, seed: int
) -> RelationExtractor:
    """Fit a model to weighted examples; their order does not matter.  Examples with the relation ``""`` are unlabelled (see :func:`fit`).

    The classifier's outputs are in the order of ``relations``; a relation may have no example.  ``encoder`` is a model reference (see
    :func:`divray.models.local_model`).  The tuned network depends on ``seed``; without ``epochs`` nothing is random.
    """
    examples = sorted(examples, key=lambda one: (one.text, one.head, one.tail, one.relation))
    with torch.random.fork_rng(range(torch.cuda.device_count())), one_thread():
        torch.manual_seed(seed)
        model = untrained(relations, encoder, config)
        rows, features = fit(model, examples, relations, config, model.features)
        if config.epochs:
            _tune(model, rows, config, seed)
            _balance(model, features, rows)
    return model.eval()


def fit(
    model: RelationExtractor,
    examples: Sequence[Example],
    relations: Sequence[Relation],
    config: Hyperparameters,
    encoded: Callable[[Sequence[Example]], np.ndarray],
) -> tuple[Rows, np.ndarray]:
    """Fit the classifier to the labelled examples; ``encoded`` computes features.

    If there are unlabelled examples (relation ``""``), the classifier labels them, and a second fit adds some of them (self-training).
    For each relation it adds the examples with the highest probabilities, each with weight :data:`SELF_TRAINED`: at most :data:`SUREST`
    per example of weight 1, as human ones have.  Returns the rows of the last fit and their features.
    """
    labelled = [one for one in examples if one.relation]
    rows, described = training_rows(labelled, relations), model.described(relations)
    features = encoded(rows.examples)
    fit_head(model, features, rows, described, config)
    known = {(one.text, one.head, one.tail) for one in labelled}
    unlabelled = [one for one in examples if not one.relation and (one.text, one.head, one.tail) not in known]
    if not unlabelled:
        return rows, features
    found = model.classify(encoded(unlabelled))
    sure = found.probabilities.max(axis=1)
    room = {name: SUREST * count for name, count in Counter(one.relation for one in labelled if one.weight >= 1).items()}
    added = []
    for place in np.argsort(-sure, kind="stable"):
        if room.get(label := found.labels[place], 0):
            room[label] -= 1
            added.append(replace(unlabelled[place], relation=label, weight=SELF_TRAINED))
    rows = training_rows([*labelled, *added], relations)
    features = encoded(rows.examples)
    fit_head(model, features, rows, described, config, given=len(labelled))
    return rows, features


def untrained(relations: Sequence[Relation], encoder: str, config: Hyperparameters) -> RelationExtractor:
    """A pretrained encoder and unfitted classifiers; with ``epochs``, also a network to tune that starts from the encoder's weights."""
    folder = local_model(encoder)
    values = AutoConfig.from_pretrained(folder)
    layer = max(1, round(config.depth * values.num_hidden_layers))
    model = RelationExtractor(
        RelationExtractorConfig(
            id2label={number: relation.name for number, relation in enumerate(relations)},
            label2id={relation.name: number for number, relation in enumerate(relations)},
            encoder=values.to_dict(),
            layer=layer,
            view_weights=[config.entity_weight, config.words_weight, config.last_weight, NGRAM_WEIGHT],
            max_tokens=min(MAX_TOKENS, getattr(values, "max_position_embeddings", MAX_TOKENS)),
            tuned=config.epochs > 0,
        )
    )
    model.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    if model.tuned is not None:
        model.tuned.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, config=shortened(values.to_dict(), layer))
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return model


def fit_head(
    model: RelationExtractor, features: np.ndarray, rows: Rows, described: np.ndarray, config: Hyperparameters, given: int | None = None
) -> None:
    """Set the classifier to that of :func:`closed_form`, scaled so that its probabilities fit held-out rows.  Only rows of the first
    ``given`` examples count for the scale: the model itself labelled the others."""
    whole = closed_form(features, rows.targets, rows.weights, described, config)
    scale = scale_of(held_out_scores(features, rows, fold_of(rows), described, config), rows, given)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(scale * whole.weights))
        model.classifier.bias.copy_(torch.from_numpy(np.maximum(scale * whole.bias, -1e4)))


def closed_form(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, described: np.ndarray, config: Hyperparameters
) -> Discriminant:
    """Linear discriminant of the features ``[n, d]``, plus the similarity of the words between the entities to each label's description.
    The last ``w`` feature columns stand for these words.  The discriminant leaves these columns out; they serve only for the similarity
    to ``described``, the descriptions' unit vectors ``[labels, w]``."""
    (classes, width), own = described.shape, features[:, : -described.shape[1]]
    fitted = discriminant(own, targets, classes, config.shrinkage, weights)
    likeness = features[:, -width:].astype(np.float64) @ described.T
    middle = np.average(likeness, axis=0, weights=weights)
    factor = DESCRIPTION_WEIGHT * _spread(fitted.scores(own)[:, np.unique(targets)], weights) / (_spread(likeness - middle, weights) or 1.0)
    return Discriminant(
        np.concatenate([fitted.weights, on_grid(factor * described, WEIGHT_GRID)], axis=1),
        fitted.bias - on_grid(factor * middle, WEIGHT_GRID),
    )


def _spread(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard deviation of all ``values`` ``[n, m]``, where each row counts by its weight."""
    middle = np.average(values, axis=0, weights=weights).mean()
    return float(np.sqrt(np.average(np.square(values - middle).mean(axis=1), weights=weights)))


def held_out_scores(features: np.ndarray, rows: Rows, fold: np.ndarray, described: np.ndarray, config: Hyperparameters) -> np.ndarray:
    """Scores ``[n, labels]`` of each row, from a fit to the other folds; nan if those folds have no row of the row's relation."""
    scores = np.full((len(rows.targets), len(described)), np.nan)
    for number in range(FOLDS):
        out = fold == number
        known = out & np.isin(rows.targets, rows.targets[~out])
        if known.any():
            fitted = closed_form(features[~out], rows.targets[~out], rows.weights[~out], described, config)
            scores[known] = fitted.scores(features[known])
    return scores


def fold_of(rows: Rows, order: np.ndarray | None = None) -> np.ndarray:
    """The fold of each row.  Each label's examples go to the folds in turn, in ``order``; a mirrored row is in the fold of its example."""
    count = int(rows.origin.max()) + 1
    order, fold = np.arange(count) if order is None else order, np.zeros(count, np.int64)
    for label in np.unique(rows.targets[:count]):
        own = order[rows.targets[order] == label]
        fold[own] = np.arange(len(own)) % FOLDS
    return fold[rows.origin]


def scale_of(scores: np.ndarray, rows: Rows, given: int | None = None) -> float:
    """The factor of :func:`held_out_scores` with the least cross-entropy on rows of the first ``given`` examples.  Targets are those of
    Platt (1999): n rows can't show a certainty of 1."""
    kept = np.flatnonzero(~np.isnan(scores[:, 0]) & (rows.origin < (len(rows.origin) if given is None else given)))
    if not len(kept):
        return UNFITTED_SCALE
    present = np.unique(rows.targets[kept])
    scores, places = scores[np.ix_(kept, present)], np.searchsorted(present, rows.targets[kept])
    doubt = 1.0 / (np.bincount(places)[places] + 2)
    wanted = np.repeat(doubt[:, None] / max(1, len(present) - 1), len(present), axis=1)
    wanted[np.arange(len(kept)), places] = 1 - doubt
    losses = [-np.average((wanted * log_softmax(scale * scores, axis=1)).sum(axis=1), weights=rows.weights[kept]) for scale in SCALES]
    return float(SCALES[int(np.argmin(losses))])


def _tune(model: RelationExtractor, rows: Rows, config: Hyperparameters, seed: int) -> None:
    """Tune by AdamW with linear warm-up and decay, on cross-entropy and the supervised contrastive loss; reproducible by ``seed``.

    The input embeddings stay frozen: few examples touch few of them, and they are half of a small encoder's weights.
    """
    tuned = model.tuned
    assert tuned is not None
    rng = random.Random(seed)
    wanted = torch.tensor(rows.targets, device=model.device)
    counted = torch.tensor(rows.weights, device=model.device, dtype=torch.float32)
    steps = -(-len(rows.examples) // BATCH_SIZE) * config.epochs
    tuned.encoder.get_input_embeddings().requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in tuned.encoder.parameters() if weight.requires_grad]},
        {"params": tuned.classifier.parameters(), "lr": config.learning_rate * CLASSIFIER_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
    tuned.train()
    for _ in range(config.epochs):
        encoded = model.encode(_replaced(rows.examples, rng))
        for batch in torch.randperm(len(encoded)).split(BATCH_SIZE):
            with precision(model.device):
                features = tuned.pool(model.collate([encoded[row] for row in batch.tolist()]))
                logits = tuned.classifier(features)
            losses = cross_entropy(logits.float(), wanted[batch], reduction="none")
            losses = losses + CONTRASTIVE * _contrastive(features.float(), wanted[batch])
            (losses * counted[batch]).mean().backward()
            torch.nn.utils.clip_grad_norm_(tuned.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def _contrastive(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of each row; 0 if no other row has its label."""
    unit = normalize(features, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    likely = (unit @ unit.T / TEMPERATURE).masked_fill(itself, float("-1e9")).log_softmax(dim=-1)
    same = (labels[:, None] == labels[None]) & ~itself
    return -(likely * same).sum(dim=1) / same.sum(dim=1).clamp(min=1)


def _replaced(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """The examples with some of their entities replaced by those of other examples of the relation."""
    heads, tails = defaultdict(list), defaultdict(list)
    for one in examples:
        heads[one.relation].append(one.head_text)
        tails[one.relation].append(one.tail_text)
    found = []
    for one in examples:
        head = rng.choice(heads[one.relation]) if rng.random() < REPLACED else one.head_text
        tail = rng.choice(tails[one.relation]) if rng.random() < REPLACED else one.tail_text
        text, head_span, tail_span = replaced(one.text, one.head, head, one.tail, tail)
        found.append(replace(one, text=text, head=head_span, tail=tail_span))
    return found


def _balance(model: RelationExtractor, features: np.ndarray, rows: Rows) -> None:
    """Scale the tuned network's scores to the spread of the closed form's, so that both count alike."""
    present = np.unique(rows.targets)
    tuned = model.tuned_scores(rows.examples)
    assert model.tuned is not None and tuned is not None
    with torch.no_grad():
        closed = model.classifier(torch.from_numpy(features).to(model.device)).float().cpu().numpy()
        factor = float(closed[:, present].std() / max(tuned[:, present].std(), 1e-6))
        for weight in model.tuned.classifier.parameters():
            weight.mul_(factor)
