"""What computes a sentence encoder: PyTorch, or OpenVINO where it is installed (``pip install divray[fast]``).

Both take one batch of token ids and give the averaged hidden states, scaled to unit length.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Runtime(Protocol):
    """An encoder on some device.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dimension: Length of an embedding.
        positions: Tokens that the model can take.
    """

    device: str
    dimension: int
    positions: int

    def forward(self, ids: Ids, mask: Ids) -> npt.NDArray[np.float32]:
        """Unit vectors float32 ``[n, d]`` of token ids and mask ``[n, tokens]``."""
        ...


def open_runtime(folder: str, device: str | None, precision: str, runtime: str) -> Runtime:
    """The encoder in ``folder``.

    Args:
        folder: A Hugging Face model folder or hub id.
        device: ``cpu`` or ``cuda``; default: a GPU where this process has one.
        precision: ``fp32``, ``bf16`` or ``fp16``; ``auto``: fp16 on a GPU, else fp32.
        runtime: ``torch``, or ``openvino``, which computes on CPUs alone; where it is not installed, or on a GPU, PyTorch does.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "fp16" if device.startswith("cuda") else "fp32"
    if runtime == "openvino" and device == "cpu":
        if importlib.util.find_spec("openvino") is not None:
            return OpenVinoRuntime(folder, precision)
        logging.getLogger(__name__).warning("OpenVINO is not installed; the encoder runs on PyTorch.")
    return TorchRuntime(folder, device, precision)


class TorchRuntime:
    """The encoder in PyTorch; on a CPU with one thread, so that the number of cores changes nothing."""

    def __init__(self, folder: str, device: str, precision: str) -> None:
        import torch

        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self.device = device
        self.model = _load(folder, kinds[precision]).to(device)
        self.dimension = int(self.model.config.hidden_size)
        self.positions = int(getattr(self.model.config, "max_position_embeddings", 512))

    def forward(self, ids: Ids, mask: Ids) -> npt.NDArray[np.float32]:
        import torch

        threads = torch.get_num_threads()
        if self.device == "cpu":
            torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                tokens, seen = torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
                hidden = self.model(input_ids=tokens, attention_mask=seen).last_hidden_state.float()
                weights = seen[..., None].float()
                mean = (hidden * weights).sum(1) / weights.sum(1)
                found: npt.NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
                return found
        finally:
            torch.set_num_threads(threads)


class OpenVinoRuntime:
    """The encoder compiled by OpenVINO for this CPU, with one thread."""

    def __init__(self, folder: str, precision: str) -> None:
        import openvino
        import torch

        model = _load(folder, torch.float32)
        self.device = "cpu"
        self.dimension = int(model.config.hidden_size)
        self.positions = int(getattr(model.config, "max_position_embeddings", 512))
        example = {name: torch.ones(2, 16, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = openvino.Core().compile_model(openvino.convert_model(model, example_input=example), "CPU", settings)

    def forward(self, ids: Ids, mask: Ids) -> npt.NDArray[np.float32]:
        hidden = self.compiled({"input_ids": ids, "attention_mask": mask})[0]
        weights = mask[..., None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        found: npt.NDArray[np.float32] = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        return found


def _load(folder: str, kind: Any) -> Any:
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return AutoModel.from_pretrained(folder, dtype=kind, use_safetensors=True).eval()
