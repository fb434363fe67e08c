from __future__ import annotations

import pytest
import torch

from divray import resources
from divray.config import load_config
from divray.engines import vllm
from divray.quickstart import folder


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


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_an_engine_on_a_cpu_computes_in_what_the_cpu_multiplies(monkeypatch: pytest.MonkeyPatch, precision: str, dtype: str) -> None:
    monkeypatch.setattr(vllm, "cpu_precision", lambda: precision)
    config = load_config(folder() / "quickstart.yaml")
    assert vllm.engine_arguments(config, gpu=False)["dtype"] == dtype
    assert "dtype" not in vllm.engine_arguments(config, gpu=True)
