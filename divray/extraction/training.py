"""Training of the RE model: AdamW with linear warm-up and decay, the same model for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from divray.relations import Example
from divray.sections import ExtractionConfig

if TYPE_CHECKING:
    from divray.extraction.model import RelationExtractor

WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
CLASSIFIER_RATE = 10.0
"""Learning rate of the fresh classifier over that of the pretrained encoder."""

POOL_BATCHES = 4
"""Batches that are drawn together and sorted by length, so that little is spent on padding."""


def train(
    examples: Sequence[Example],
    labels: Sequence[str],
    encoder: str,
    config: ExtractionConfig,
    seed: int,
    typed: bool = True,
    on_epoch: Callable[[int, RelationExtractor], None] | None = None,
) -> RelationExtractor:
    """Fine-tune an encoder on examples; the order of ``examples`` does not matter.

    The encoder's input embeddings stay as they are: a few examples touch a few of them, and they are
    half of a small encoder's weights.

    Args:
        examples: Their relations are among ``labels``; a label may have no example.
        labels: The classifier's outputs, in this order.
        encoder: Model reference (see :func:`divray.models.local_model`).
        config: Learning rate, epochs, batch size, warm-up share, dropout, tokens a sentence.
        seed: Of the fresh weights, dropout and the order of the batches.
        typed: Put entity types into the markers.
        on_epoch: Called after each epoch (from 1) with the model; it may raise to stop.

    Raises:
        ValueError: No examples, or one with a relation that is no label.
    """
    import torch

    from divray.extraction.model import RelationExtractor, precision

    index = {label: i for i, label in enumerate(labels)}
    unknown = {e.relation for e in examples} - index.keys()
    if unknown or not examples:
        raise ValueError(f"examples of no label: {sorted(unknown)}" if unknown else "no training examples")
    with _reproducible(seed):
        model = RelationExtractor.on_encoder(encoder, labels, typed, config.max_length, config.dropout)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        ordered = sorted(examples, key=lambda e: (e.text, e.head, e.tail, e.relation))
        encoded = model.encode(ordered)
        targets = torch.tensor([index[e.relation] for e in ordered], device=model.device)
        steps = -(-len(encoded) // config.batch_size) * config.epochs
        model.encoder.get_input_embeddings().requires_grad_(False)
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in model.encoder.parameters() if weight.requires_grad]},
            {"params": model.classifier.parameters(), "lr": config.learning_rate * CLASSIFIER_RATE},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        warmup = max(1, round(config.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        )
        for epoch in range(1, config.epochs + 1):
            model.train()
            for rows in _batches([len(e.ids) for e in encoded], config.batch_size):
                with precision(model.device):
                    logits = model(*model.collate([encoded[i] for i in rows]))
                loss = torch.nn.functional.cross_entropy(logits.float(), targets[rows])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if on_epoch:
                on_epoch(epoch, model)
    model.eval()
    return model


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
