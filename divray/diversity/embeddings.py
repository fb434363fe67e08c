"""Sentence embeddings: the encoder's last hidden states, averaged over tokens, scaled to unit length
(Reimers and Gurevych 2019, arXiv 1908.10084).

A text's embedding does not depend on what it is encoded with.  The kernels behind a matrix product
are chosen by its shape, so the last bits of a row change with the shape of its batch (up to 1.6e-7
a component here, in one row of ten, between batch sizes and against one text at a time).  So the
shape follows from the text alone: its length is rounded up to a multiple of :data:`WIDTH`, and each
width has one fixed number of rows, filled up with dummies.  Rows then came out bit for bit the same
under any order and company; it costs a quarter of the time of batches packed by length.  Between
kinds of machine the last bits still differ; rounding to :data:`DECIMALS` hides most of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from divray.diversity.texts import compared_texts
from divray.models import local_model

WIDTH = 8
DECIMALS = 6
TOKENS = {"cpu": 512, "cuda": 16_384}
"""Tokens a batch, padding included, by kind of device."""

_CHUNK = 8192


class Encoder:
    """A sentence encoder; also an actor class for Ray Data (``map_batches(Encoder, batch_format="pyarrow", …)``).

    Args:
        reference: Model, as in ``models.encoder`` of the configuration.
        mask_entities: Whether a batch's texts are embedded with their entities masked (only for calls on tables).
        max_length: Tokens of a text beyond which it is cut.
        device: ``cpu`` or ``cuda``; default: a GPU where this process has one.
    """

    def __init__(self, reference: str, mask_entities: bool = True, max_length: int = 256, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.mask_entities = mask_entities
        folder = local_model(reference)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval().to(self.device)
        positions = getattr(self.model.config, "max_position_embeddings", max_length)
        self.max_length = min(max_length, positions, self.tokenizer.model_max_length)

    @property
    def dimension(self) -> int:
        return int(self.model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed ``n`` texts: float32 ``[n, d]``, rows of unit length (to rounding).

        On a CPU one thread is used, so that the number of cores changes nothing.
        """
        import torch

        threads = torch.get_num_threads()
        if self.device == "cpu":
            torch.set_num_threads(1)
        try:
            out = np.empty((len(texts), self.dimension), np.float32)
            for start in range(0, len(texts), _CHUNK):
                part = list(texts[start : start + _CHUNK])
                out[start : start + len(part)] = self._encode_chunk(part)
            return out
        finally:
            torch.set_num_threads(threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``batch`` with a column ``embedding`` (list of float32), put in or replaced."""
        column = embedding_column(self.encode(compared_texts(batch, self.mask_entities)))
        at = batch.schema.get_field_index("embedding")
        return batch.append_column("embedding", column) if at < 0 else batch.set_column(at, "embedding", column)

    def _encode_chunk(self, texts: list[str]) -> npt.NDArray[np.float32]:
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)["input_ids"]
        lengths = np.maximum(1, np.array([len(row) for row in tokens]))
        widths = np.minimum(-(-lengths // WIDTH) * WIDTH, max(self.max_length, 1))
        out = np.empty((len(texts), self.dimension), np.float32)
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            size = max(1, TOKENS.get(self.device.partition(":")[0], TOKENS["cpu"]) // int(width))
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                out[some] = self._forward([tokens[row] for row in some], size, int(width))
        return np.round(out, DECIMALS)

    def _forward(self, tokens: list[list[int]], size: int, width: int) -> Any:
        import torch

        ids = torch.full((size, width), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros((size, width), dtype=torch.long)
        mask[:, 0] = 1
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, : len(sequence)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask[..., None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)[: len(tokens)].cpu().numpy()


def embedding_column(embeddings: npt.NDArray[np.float32]) -> pa.Array:
    """``[n, d]`` as an Arrow list column."""
    n, d = embeddings.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * d, pa.int32()), pa.array(embeddings.reshape(-1), pa.float32()))


def embedding_matrix(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """An Arrow list column of equally long vectors as float32 ``[n, d]``."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(len(array), -1) if len(array) else np.zeros((0, 0), np.float32)
