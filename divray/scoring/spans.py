"""The features of spans by which the gate judges, from the encoder's last layer but one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divray.models import local_model
from divray.relations import Example
from divray.spans import BLOCKS, FEATURE_GRID, collate, encode_spans, on_grid, pooled

LAYER = -2
"""The last layer is trained to sum up a text; the one before it knows more of who does what to whom."""
WEIGHTS = (0.5, 0.5, 1.0, 0.5)
"""Of head, tail, between and rest."""
_BATCH, _WIDTH, _MOST = 32, 8, 192


class SpanEncoder:
    """Encodes examples by their spans.

    Args:
        reference: Encoder that :func:`divray.models.local_model` understands.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, reference: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = local_model(reference)
        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).to(device).eval()

    def encode(self, examples: Sequence[Example]) -> np.ndarray:
        """Features float32 ``[n, BLOCKS * d]``; :func:`divray.spans.exchanged` has them with head and tail exchanged."""
        import torch

        encoded = encode_spans(self.tokenizer, examples, _MOST)
        widths = np.array([-(-len(one.ids) // _WIDTH) * _WIDTH for one in encoded], dtype=np.int64)
        found = np.zeros((len(examples), BLOCKS * self.model.config.hidden_size))
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                batch = collate([encoded[row] for row in part], self.tokenizer.pad_token_id or 0, self.device, int(width))
                with torch.inference_mode():
                    states = self.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
                    found[part] = pooled(states[LAYER], batch, WEIGHTS).cpu().numpy()
        return on_grid(found, FEATURE_GRID).astype(np.float32)
