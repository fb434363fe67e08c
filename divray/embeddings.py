"""Embeddings of sentences: the encoder's last hidden states, averaged over tokens and scaled to unit length (Reimers and Gurevych 2019,
arXiv 1908.10084).  Also features of a sentence's spans (:mod:`divray.spans`).

A text's embedding does not depend on the other texts in its batch.  The shape of a matrix product decides which kernel computes it,
so the last bits of a row change with the shape of the batch.  Therefore the text alone sets the shape: its length is rounded up to a
multiple of :data:`WIDTH`, and each width has a fixed number of rows, filled up with dummies.  The last bits also differ between kinds of
machine; rounding to :data:`DECIMALS` hides most of that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.models import local_model
from divray.relations import Example
from divray.spans import FEATURE_GRID, Batch, collate, encode_spans, means, on_grid, pooled

WIDTH = 8
DECIMALS = 6
TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens a batch, padding included, by kind of device."""

MAX_LENGTH = 256
"""Tokens after which a text is cut."""

LAYER = -2
"""Hidden state of the span features: the last layer is trained to sum up a text; the one before it knows more of who does what to whom."""
WEIGHTS = (0.5, 0.5, 1.0, 0.5)
"""Of head, tail, between, and all words outside the entities."""

_BATCH, _MOST = 32, 192


class Encoder:
    """``models.encoder`` in PyTorch, on ``device``; by default on this task's GPU, if any.  One thread computes embeddings on a CPU,
    so that the number of cores changes nothing."""

    def __init__(self, reference: str, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = local_model(reference)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval().to(self.device)
        self.dimension = int(self.model.config.hidden_size)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        positions = int(getattr(self.model.config, "max_position_embeddings", 512))
        self.max_length = min(MAX_LENGTH, positions, self.tokenizer.model_max_length)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed ``n`` texts: float32 ``[n, d]``, rows of unit length (to rounding)."""
        import torch

        out = np.empty((len(texts), self.dimension), np.float32)
        if not texts:
            return out
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False)["input_ids"]
        pad = self.tokenizer.pad_token_id or 0

        def size(width: int) -> int:
            return max(1, TOKENS[self.device] // width)

        for rows, width in by_width([len(row) for row in tokens], self.max_length, size):
            batch = [tokens[row] for row in rows]
            batch += [[]] * (size(width) - len(batch))  # dummies
            ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch], device=self.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=self.device)
            mask[:, 0] = 1  # of a dummy, too: the mean needs a token
            with one_thread(), torch.inference_mode():
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                weights = mask[..., None].float()
                mean = (hidden * weights).sum(1) / weights.sum(1)
                out[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()[: len(rows)]
        return np.round(out, DECIMALS)

    def spans(self, examples: Sequence[Example]) -> np.ndarray:
        """Features float32 ``[n, (BLOCKS + 2) * d]``: of the spans, then of head and tail, each encoded alone."""
        names = [*(one.head_text for one in examples), *(one.tail_text for one in examples)]
        distinct = sorted(set(names))
        entities = [Example(text, (0, len(text)), (0, 0), "") for text in distinct]
        alone = self._pooled(entities, lambda states, batch: means(states[(len(states) - 1) // 2], batch)[:, 0])
        heads, tails = np.split(alone[np.searchsorted(distinct, names)], 2)
        spans = self._pooled(examples, lambda states, batch: pooled(states[LAYER], batch, WEIGHTS))
        return np.concatenate([spans, heads, tails], axis=1)

    def _pooled(self, examples: Sequence[Example], pool: Callable[[Any, Batch], Any]) -> np.ndarray:
        """Apply ``pool`` to hidden states and batch; returns float32 ``[n, w]``. A sentence's features do not depend on the others."""
        import torch

        encoded = encode_spans(self.tokenizer, examples, _MOST)
        found: list[np.ndarray] = [np.zeros(0)] * len(examples)
        for rows, width in by_width([len(one.ids) for one in encoded], _MOST, lambda width: _BATCH):
            batch = collate([encoded[row] for row in rows], self.tokenizer.pad_token_id or 0, self.device, width)
            with torch.inference_mode():
                states = self.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
                for row, features in zip(rows, pool(states, batch).cpu().numpy(), strict=True):
                    found[row] = features
        return on_grid(np.array(found), FEATURE_GRID).astype(np.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread, so that the order of sums never changes; afterwards restore the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_width(lengths: Sequence[int], longest: int, most: Callable[[int], int]) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Yield rows (by number) whose lengths round up to the same multiple of :data:`WIDTH`, ``most(width)`` at a time, and that width."""
    widths = np.minimum(-(-np.maximum(1, lengths) // WIDTH) * WIDTH, longest)
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        for start in range(0, len(rows), most(width)):
            yield rows[start : start + most(width)], width


def embedding_column(embeddings: npt.NDArray[np.float32]) -> pa.Array:
    """``[n, d]`` as an Arrow list column."""
    return pa.array(list(embeddings), pa.list_(pa.float32()))


def embedding_matrix(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """An Arrow list column of equally long vectors as float32 ``[n, d]``."""
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(len(column), -1) if len(column) else np.zeros((0, 0), np.float32)
