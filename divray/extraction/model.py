"""The RE model: a frozen encoder, a linear classifier on span features, and, with ``epochs``, a tuned network beside them.

The features are unit-length means of hidden states (:mod:`divray.spans`) and hashed n-grams of the tokens between the entities.
The tuned network is a second copy of the encoder's lower layers with a classifier of its own; both classifiers' scores are added.

Importing this module imports torch and transformers, and turns off transformers' progress bars and warnings.
"""

from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import normalize
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from divray.dedup.storage import first_line
from divray.errors import InputError
from divray.models import local_model, tokenizer_in
from divray.relations import Example, Relation
from divray.spans import Batch, Encoded, by_order, collate, encode_spans, means

logging.disable_progress_bar()
logging.set_verbosity_error()

BATCH_TOKENS, NGRAMS = 4096, 2048
"""Maximum tokens in a batch; number of columns for the hashed n-grams."""
SPAN_BLOCKS = 7
"""Head, tail, between (2, one for each order of the entities), words outside the entities; in the last layer, these words and between."""
TUNED_BLOCKS = 4
"""Head, tail, and between (a block for each order of the entities)."""
TUNED_SCALES = (7.0, 7.0, 10.0)
"""Factors of head, tail and between in the tuned network; without them, unit-length means would leave the softmax flat."""


class RelationExtractorConfig(PreTrainedConfig):
    """The settings of a :class:`RelationExtractor`; ``id2label`` has the relation names in the order of the classifier's outputs.

    Attributes:
        encoder: The encoder's own configuration, as plain values.
        layer: Number of the hidden state that gives the span features, from 1.
        view_weights: Four: head and tail, all words outside them, the same words in the last layer, n-grams. Between has weight 1.
        tuned: Whether there is a tuned network of ``layer`` layers beside the frozen encoder.
    """

    model_type = "divray-relation-extractor"

    encoder: dict[str, Any] = field(default_factory=dict)
    layer: int = -1
    view_weights: list[float] = field(default_factory=list)
    max_tokens: int = 96
    tuned: bool = False

    @property
    def labels(self) -> list[str]:
        names: dict[Any, str] = self.id2label or {}
        return [names[index] for index in range(len(names))]


class Predictions(NamedTuple):
    """``labels`` (rows), and ``probabilities`` (rows, labels) in the order of the model's labels."""

    labels: list[str]
    probabilities: np.ndarray


class TunedNetwork(nn.Module):
    """The encoder's first ``layer`` layers and a linear classifier on head, tail and the words between, trained together."""

    def __init__(self, config: RelationExtractorConfig) -> None:
        super().__init__()
        encoder = shortened(config.encoder, config.layer)
        self.encoder = AutoModel.from_config(encoder)
        self.classifier = nn.Linear(TUNED_BLOCKS * encoder.hidden_size, len(config.labels))

    def pool(self, batch: Batch) -> Tensor:
        """Features (rows, TUNED_BLOCKS * width)."""
        states = self.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        head, tail, between = (scale * view for scale, view in zip(TUNED_SCALES, means(states, batch).unbind(1)[:3], strict=True))
        return torch.cat([head, tail, by_order(between, batch)], dim=-1)


class RelationExtractor(PreTrainedModel):
    """A linear relation classifier on the encoder's states, pooled by span, and the tuned network if there is one."""

    config_class = RelationExtractorConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: RelationExtractorConfig) -> None:
        super().__init__(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        encoder = AutoConfig.for_model(**config.encoder)
        self.encoder = AutoModel.from_config(encoder)
        self.classifier = nn.Linear(SPAN_BLOCKS * encoder.hidden_size + NGRAMS, len(config.labels))
        self.tuned = TunedNetwork(config) if config.tuned else None
        self.post_init()

    def pool(self, batch: Batch) -> Tensor:
        """The spans' features (rows, SPAN_BLOCKS * width) of a batch."""
        states = self.encoder(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
        head, tail, between, words = means(states[self.config.layer], batch).unbind(1)
        *_, last_between, last_words = means(states[-1], batch).unbind(1)
        entities, outside, last, _ = self.config.view_weights
        views = [entities * head, entities * tail, by_order(between, batch), outside * words, last * last_words, last_between]
        return torch.cat(views, dim=-1)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenize, give each token its view, and cut to ``max_tokens``."""
        return encode_spans(self.tokenizer, examples, self.config.max_tokens)

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Pad on the right to the longest sentence; the batch is on the model's device."""
        return collate(encoded, getattr(self.tokenizer, "pad_token_id", None) or 0, self.device)

    @torch.inference_mode()
    def features(self, examples: Sequence[Example]) -> np.ndarray:
        """The classifier's inputs, float32 (rows, NGRAMS + SPAN_BLOCKS * width); the last ``width`` are compared with :meth:`described`."""
        encoded = self.encode(examples)
        hashed = normalize(FeatureHasher(NGRAMS, input_type="string").transform(map(_ngrams, encoded)))
        spans = self._batched(self.pool, encoded)
        return np.concatenate([self.config.view_weights[-1] * hashed.toarray().astype(np.float32), spans], axis=1)

    @torch.inference_mode()
    def described(self, relations: Sequence[Relation]) -> np.ndarray:
        """Unit-length means ``[n, width]`` of the last layer over the words of each relation's description."""
        words = [Example(relation.description or "?", (0, 0), (0, 0), "") for relation in relations]
        return self._batched(lambda batch: means(self.encoder(batch.ids, batch.mask).last_hidden_state, batch)[:, -1], self.encode(words))

    def predict(self, examples: Sequence[Example]) -> Predictions:
        """Classify examples; ignores their own ``relation``."""
        if not examples:
            return Predictions([], np.zeros((0, len(self.config.labels))))
        return self.classify(self.features(examples), self.tuned_scores(examples))

    @torch.inference_mode()
    def tuned_scores(self, examples: Sequence[Example]) -> np.ndarray | None:
        """Scores (rows, labels) of the tuned network; ``None`` without one."""
        if (tuned := self.tuned) is None:
            return None
        return self._batched(lambda batch: tuned.classifier(tuned.pool(batch)), self.encode(examples))

    @torch.inference_mode()
    def classify(self, features: np.ndarray, tuned: np.ndarray | None = None) -> Predictions:
        """Labels and probabilities from :meth:`features`, or from the mean of their scores and :meth:`tuned_scores`.

        Probabilities have 4 decimals, since a sentence's batch may change the last bits.  They are float64, so that the written values are
        those that were compared.
        """
        logits = self.classifier(torch.from_numpy(features).to(self.device)).float().cpu()
        if tuned is not None:
            logits = (logits + torch.from_numpy(tuned)) / 2
        probabilities = logits.softmax(-1).numpy().round(4).astype(np.float64).round(4)
        return Predictions([self.config.labels[i] for i in probabilities.argmax(1)], probabilities)

    def _batched(self, function: Any, encoded: Sequence[Encoded]) -> np.ndarray:
        """Apply ``function`` to batches of similar length; returns float32 (rows, columns). Needs at least one row."""
        self.eval()
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].ids))
        batches: list[list[int]] = [[]]
        for row in order:
            if batches[-1] and len(encoded[row].ids) * (len(batches[-1]) + 1) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        with precision(self.device):
            parts = [function(self.collate([encoded[row] for row in rows])).float().cpu().numpy() for rows in batches]
        return np.asarray(np.concatenate(parts)[np.argsort(order)])

    def save(self, folder: str | Path) -> None:
        """Write everything that :meth:`load` needs: safetensors, configuration with labels, and tokenizer."""
        assert self.tokenizer is not None
        self.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, reference: str) -> Self:
        """Read a saved model from a local folder or a URI; :class:`InputError` if it is incomplete or of another release."""
        folder = local_model(reference)
        try:
            read: Any = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
            model: Self = read[0]
            if wrong := sorted({*read[1]["missing_keys"], *(name for name, *_ in read[1]["mismatched_keys"])}):
                raise ValueError(f"no weights of {wrong[0]} that fit config.json")
            model.tokenizer = tokenizer_in(folder)
            if max(model.tokenizer.get_vocab().values()) >= model.encoder.get_input_embeddings().num_embeddings:
                raise ValueError("the tokenizer has more words than the encoder")
            if model.config.layer < 1:
                raise ValueError(f"layer {model.config.layer} is below 1")
            found = model.predict([Example("a b" + " c" * model.config.max_tokens, (0, 1), (2, 3), "")])
            if not np.isfinite(found.probabilities).all():
                raise ValueError("its probabilities are not finite")
        except Exception as error:  # of transformers, tokenizers and safetensors
            problem = f"no whole relation extractor ({first_line(error)})"
            raise InputError(reference, "", problem, "Give the whole `model` folder of a run of this release.") from error
        return model


def shortened(encoder: dict[str, Any], layers: int) -> Any:
    """The configuration of an encoder's first ``layers`` layers."""
    kinds = {"layer_types": encoder["layer_types"][:layers]} if encoder.get("layer_types") else {}
    return AutoConfig.for_model(**{**encoder, **kinds, "num_hidden_layers": layers})


def precision(device: torch.device) -> torch.autocast:
    """bf16 where the hardware multiplies in it, full precision elsewhere."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def _ngrams(one: Encoded) -> list[str]:
    """Tokens between the entities, single and in pairs, each behind the entities' order; in pairs, ``(`` and ``)`` are the entities."""
    tokens = ["(", *(str(token) for token, view in zip(one.ids, one.view, strict=True) if view == 2), ")"]
    order = ">" if one.forward else "<"
    return [order + token for token in tokens[1:-1]] + [order + " ".join(pair) for pair in pairwise(tokens)]
