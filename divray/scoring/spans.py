"""What the encoder's last layer but one says of head, tail, the words between them and the rest, each place of its own by order.

The unmarked sentence goes through the encoder once.  Unit-length means of hidden states: the words between the entities and
the rest stand in one of two blocks, by which entity comes first, so that a linear classifier sees the direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divray.relations import Example

LAYER = -2
"""The last layer is made to sum up a text; the one before it knows more of who does what to whom."""
HEAD, TAIL, BETWEEN, REST = 0.5, 0.5, 1.0, 0.5
"""Weights of the views."""
BLOCKS = 6
"""Views of the encoder's width: head, tail, and between and rest in two places each."""
FEATURE_GRID = 2.0**-12
_BATCH, _WIDTH, _MOST = 32, 8, 192


class SpanEncoder:
    """Encodes examples by their spans.

    Args:
        reference: Encoder that :func:`divray.models.local_model` understands.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, reference: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        from divray.models import local_model

        folder = local_model(reference)
        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).to(device).eval()

    def encode(self, examples: Sequence[Example]) -> np.ndarray:
        """Features float32 ``[n, BLOCKS * d]``; :func:`exchanged` has them with head and tail exchanged."""
        import torch

        encoded = [self.tokenizer(example.text, truncation=True, max_length=_MOST, return_offsets_mapping=True) for example in examples]
        widths = np.array([-(-len(one["input_ids"]) // _WIDTH) * _WIDTH for one in encoded], dtype=np.int64)
        found: list[np.ndarray] = [np.zeros(0)] * len(examples)
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                ids = torch.full((len(part), int(width)), self.tokenizer.pad_token_id or 0, device=self.device)
                mask = torch.zeros_like(ids)
                for place, row in enumerate(part):
                    tokens = torch.tensor(encoded[row]["input_ids"], device=self.device)
                    ids[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
                with torch.inference_mode():
                    states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
                layer = states[LAYER].float().cpu().numpy()
                for place, row in enumerate(part):
                    offsets = np.array(encoded[row]["offset_mapping"])
                    found[row] = _views(examples[row], offsets, layer[place, : len(offsets)])
        size = self.model.config.hidden_size
        return on_grid(np.array(found).reshape(len(examples), BLOCKS * size), FEATURE_GRID).astype(np.float32)


def _views(example: Example, offsets: np.ndarray, states: np.ndarray) -> np.ndarray:
    starts, ends = offsets[:, 0], offsets[:, 1]
    real = ends > starts
    head, tail = (real & (starts < span[1]) & (ends > span[0]) for span in (example.head, example.tail))
    first, second = sorted((example.head, example.tail))
    between = real & (starts >= first[1]) & (ends <= second[0])
    views = [HEAD * _unit(states, head), TAIL * _unit(states, tail)]
    for weight, kept in ((BETWEEN, between), (REST, real & ~head & ~tail)):
        own, other = weight * _unit(states, kept), np.zeros(states.shape[1])
        views += [own, other] if example.head < example.tail else [other, own]
    return np.concatenate(views)


def _unit(states: np.ndarray, kept: np.ndarray) -> np.ndarray:
    if not kept.any():
        return np.zeros(states.shape[1])
    mean = states[kept].mean(axis=0, dtype=np.float64)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9))


def exchanged(features: np.ndarray) -> np.ndarray:
    """The features of the same sentences with head and tail exchanged."""
    blocks = features.reshape(len(features), BLOCKS, -1)
    return blocks[:, [1, 0, 3, 2, 5, 4]].reshape(features.shape)


def on_grid(values: np.ndarray, step: float) -> np.ndarray:
    """``values`` rounded to multiples of ``step``, float64."""
    return np.round(np.asarray(values, dtype=np.float64) / step) * step
