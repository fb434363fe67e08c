"""The RE model: an encoder, its states at the two entity markers, and a small classifier on them.

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

from divray.extraction.markers import EncodedText, encode_marked, mark_entities
from divray.models import local_model
from divray.relations import Example

BATCH_TOKENS = 4096


class RelationExtractorConfig(PreTrainedConfig):
    """What a :class:`RelationExtractor` is built from.

    Args:
        encoder: The encoder's own configuration, as plain values.
        labels: Relation names in the order of the classifier's outputs.
        typed: Whether entity types stand in the markers.
        max_tokens: Most tokens of a marked sentence.
        head_dropout: Dropout of the classifier.
    """

    model_type = "divray-relation-extractor"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        typed: bool = True,
        max_tokens: int = 96,
        head_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.encoder = dict(encoder or {})
        self.typed = typed
        self.max_tokens = max_tokens
        self.head_dropout = head_dropout
        if labels is not None:
            kwargs["id2label"] = dict(enumerate(labels))
            kwargs["label2id"] = {label: index for index, label in enumerate(labels)}
        super().__init__(**kwargs)

    @property
    def labels(self) -> list[str]:
        names: dict[Any, str] = self.id2label or {}
        return [names[index] for index in range(len(names))]


class Batch(NamedTuple):
    """Encoded sentences side by side: ``ids`` and ``mask`` (rows, tokens), ``head`` and ``tail`` (rows,) marker indices."""

    ids: Tensor
    mask: Tensor
    head: Tensor
    tail: Tensor


class Predictions(NamedTuple):
    """``labels`` (rows), and ``probabilities`` (rows, labels) in the order of the model's labels."""

    labels: list[str]
    probabilities: np.ndarray


class RelationExtractor(PreTrainedModel):
    """Relation classifier on the encoder states at the head's and the tail's opening marker.

    The classifier is Linear, ReLU, Dropout, Linear, as in Zhou and Chen 2022 (arXiv 2102.01373).
    """

    config_class = RelationExtractorConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: RelationExtractorConfig) -> None:
        super().__init__(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        encoder = AutoConfig.for_model(**config.encoder)
        self.encoder = AutoModel.from_config(encoder)
        size = encoder.hidden_size
        self.classifier = nn.Sequential(
            nn.Linear(2 * size, size), nn.ReLU(), nn.Dropout(config.head_dropout), nn.Linear(size, len(config.labels))
        )
        self.post_init()

    @classmethod
    def on_encoder(cls, reference: str, labels: Sequence[str], typed: bool, max_tokens: int, head_dropout: float) -> RelationExtractor:
        """A fresh classifier on a pretrained encoder; the classifier's weights come from torch's global generator."""
        folder = local_model(reference)
        values = AutoConfig.from_pretrained(folder).to_dict()
        model = cls(RelationExtractorConfig(values, labels, typed, max_tokens, head_dropout))
        with _quietly():
            model.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
        return model

    def forward(self, ids: Tensor, mask: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        """Logits (rows, labels) of a :class:`Batch`."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.arange(len(ids), device=ids.device)
        return self.classifier(torch.cat([states[rows, head], states[rows, tail]], dim=-1))

    def encode(self, examples: Sequence[Example]) -> list[EncodedText]:
        """Markers set, tokenized and cut to the model's length."""
        assert self.tokenizer is not None
        marked = [mark_entities(example, self.config.typed) for example in examples]
        return encode_marked(self.tokenizer, marked, self.config.max_tokens)

    def collate(self, encoded: Sequence[EncodedText]) -> Batch:
        """Pad on the right to the longest, on the model's device."""
        width = max(len(e.ids) for e in encoded)
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in encoded])
        mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in encoded])
        head, tail = torch.tensor([e.head for e in encoded]), torch.tensor([e.tail for e in encoded])
        return Batch(*(tensor.to(self.device) for tensor in (ids, mask, head, tail)))

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example], batch_tokens: int = BATCH_TOKENS) -> Predictions:
        """Classify examples (their own ``relation`` is not looked at), in batches of like length.

        Probabilities are rounded to 4 decimals, since a sentence's batch may move the last bits.
        """
        self.eval()
        encoded = self.encode(examples)
        probabilities = np.zeros((len(encoded), len(self.config.labels)))
        for rows in _length_batches(encoded, batch_tokens):
            with precision(self.device):
                logits = self(*self.collate([encoded[i] for i in rows]))
            probabilities[rows] = logits.float().softmax(-1).cpu().numpy()
        probabilities = probabilities.round(4)
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


def _length_batches(encoded: Sequence[EncodedText], batch_tokens: int) -> Iterator[list[int]]:
    rows: list[int] = []
    for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids)):
        if rows and len(encoded[index].ids) * (len(rows) + 1) > batch_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows
