"""The RE model: an encoder, the spans' features of two of its layers (:mod:`divray.spans`), and one linear layer on them.

Importing this module imports torch and transformers; everything else does so inside its functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from divray.models import local_model
from divray.relations import Example
from divray.spans import BLOCKS, Batch, Encoded, by_order, collate, encode_spans, pooled

BATCH_TOKENS = 4096


class RelationExtractorConfig(PreTrainedConfig):
    """What a :class:`RelationExtractor` is built from.

    Args:
        encoder: The encoder's own configuration, as plain values.
        labels: Relation names in the order of the classifier's outputs.
        layer: Hidden state of the spans; 0 is that of the embeddings.
        view_weights: Of head, tail, the words between them, all words outside of the two, and the same in the last layer.
        max_tokens: Most tokens of a sentence.
    """

    model_type = "divray-relation-extractor"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        layer: int = -1,
        view_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0),
        max_tokens: int = 96,
        **kwargs: Any,
    ) -> None:
        self.encoder = dict(encoder or {})
        self.layer = layer
        self.view_weights = list(view_weights)
        self.max_tokens = max_tokens
        if labels is not None:
            kwargs["id2label"] = dict(enumerate(labels))
            kwargs["label2id"] = {label: index for index, label in enumerate(labels)}
        super().__init__(**kwargs)

    @property
    def labels(self) -> list[str]:
        names: dict[Any, str] = self.id2label or {}
        return [names[index] for index in range(len(names))]


class Predictions(NamedTuple):
    """``labels`` (rows), and ``probabilities`` (rows, labels) in the order of the model's labels."""

    labels: list[str]
    probabilities: np.ndarray


class RelationExtractor(PreTrainedModel):
    """A linear relation classifier on the encoder's states, pooled by spans."""

    config_class = RelationExtractorConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: RelationExtractorConfig) -> None:
        super().__init__(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        encoder = AutoConfig.for_model(**config.encoder)
        self.encoder = AutoModel.from_config(encoder)
        self.classifier = nn.Linear((BLOCKS + 2) * encoder.hidden_size, len(config.labels))
        self.post_init()

    @classmethod
    def on_encoder(
        cls, reference: str, labels: Sequence[str], depth: float, view_weights: Sequence[float], max_tokens: int
    ) -> RelationExtractor:
        """A pretrained encoder, and a classifier that is still to be fitted.

        Args:
            reference: Model that :func:`divray.models.local_model` understands.
            labels: The classifier's outputs.
            depth: Of the spans' layer, as a share of all, in (0, 1].
            view_weights: See :class:`RelationExtractorConfig`.
            max_tokens: Most tokens of a sentence.
        """
        folder = local_model(reference)
        values = AutoConfig.from_pretrained(folder)
        layer = max(1, round(depth * values.num_hidden_layers))
        model = cls(RelationExtractorConfig(values.to_dict(), labels, layer, view_weights, max_tokens))
        with _quietly():
            model.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
        return model

    def pool(self, batch: Batch) -> Tensor:
        """Features (rows, (BLOCKS + 2) * width) of a batch."""
        states = self.encoder(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
        *weights, last = self.config.view_weights
        words = last * nn.functional.normalize((batch.views[:, -1:] @ states[-1].float()).squeeze(1), dim=-1)
        return torch.cat([pooled(states[self.config.layer], batch, weights), by_order(words, batch)], dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (rows, labels) of a batch."""
        return self.classifier(self.pool(batch))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenized, with the view of each token, and cut to the model's length."""
        return encode_spans(self.tokenizer, examples, self.config.max_tokens)

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Pad on the right to the longest, on the model's device."""
        return collate(encoded, getattr(self.tokenizer, "pad_token_id", None) or 0, self.device)

    @torch.inference_mode()
    def features(self, examples: Sequence[Example], batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """The spans' features of examples, float32 (rows, (BLOCKS + 2) * width), in batches of like length."""
        self.eval()
        encoded = self.encode(examples)
        found = np.zeros((len(encoded), self.classifier.in_features), np.float32)
        for rows in _length_batches(encoded, batch_tokens):
            with precision(self.device):
                found[rows] = self.pool(self.collate([encoded[i] for i in rows])).float().cpu().numpy()
        return found

    def predict(self, examples: Sequence[Example], batch_tokens: int = BATCH_TOKENS) -> Predictions:
        """Classify examples (their own ``relation`` is not looked at)."""
        return self.classify(self.features(examples, batch_tokens))

    @torch.inference_mode()
    def classify(self, features: np.ndarray) -> Predictions:
        """Labels and probabilities of features; rounded to 4 decimals, since a sentence's batch may move the last bits."""
        logits = self.classifier(torch.from_numpy(features).to(self.device)).float()
        probabilities = logits.softmax(-1).cpu().numpy().round(4)
        return Predictions([self.config.labels[i] for i in probabilities.argmax(1)], probabilities)

    def save(self, folder: str | Path) -> None:
        """Write safetensors, configuration with labels, and tokenizer, everything :meth:`load` needs."""
        assert self.tokenizer is not None
        self.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, reference: str) -> RelationExtractor:
        """Read a saved model from a local folder or a URI."""
        folder = local_model(reference)
        with _quietly():
            model = cls.from_pretrained(folder)
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
        return model


def precision(device: torch.device) -> torch.autocast:
    """bf16 where the hardware multiplies in it, full precision elsewhere."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' bars and remarks on loading off the terminal."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _length_batches(encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    rows: list[int] = []
    for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids)):
        if rows and len(encoded[index].ids) * (len(rows) + 1) > batch_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows
