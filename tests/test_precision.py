from __future__ import annotations

from pathlib import Path

import pytest
import torch

from divray import resources
from divray.engines import vllm


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"sve_bf16": True}, "bf16"),
    ],
)
def test_a_cpu_that_multiplies_in_bf16_does(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], chosen: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resources.cpu_precision() == chosen


def test_only_a_small_model_takes_twice_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm, "cpu_precision", lambda: "fp32")
    monkeypatch.setattr(vllm, "MOST_DOUBLED", 10)
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, size in ((small, 10), (large, 11)):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(size))
    assert vllm.cpu_dtype(str(small)) == vllm.cpu_dtype("embedded:smollm2") == "float32"
    assert vllm.cpu_dtype(str(large)) == vllm.cpu_dtype("owner/name") == "bfloat16"
    monkeypatch.setattr(vllm, "cpu_precision", lambda: "bf16")
    assert vllm.cpu_dtype("embedded:smollm2") == "bfloat16"
