from __future__ import annotations

from pathlib import Path

import pytest
import torch

from divray import resources
from divray.engines import vllm


@pytest.mark.parametrize(("bf16", "fp32", "chosen"), [(2.0, 1.0, "fp32"), (1.1, 1.0, "bf16"), (1.0, 1.0, "bf16"), (0.5, 1.0, "bf16")])
def test_fp32_must_be_faster_for_twice_the_memory(monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float, chosen: str) -> None:
    monkeypatch.setattr(resources, "_seconds", lambda dtype: {torch.bfloat16: bf16, torch.float32: fp32}[dtype])
    resources.cpu_precision.cache_clear()
    assert resources.cpu_precision() == chosen
    resources.cpu_precision.cache_clear()


def test_it_is_measured_here() -> None:
    assert resources._seconds(torch.float32) > 0
    assert resources.cpu_precision() in ("bf16", "fp32")


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
