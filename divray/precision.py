"""The number format in which this CPU multiplies matrices fastest.

bf16 takes half the memory of fp32.  With AMX, or on AMD's processors with AVX-512 BF16, it is also faster; on Intel's
without AMX it takes nearly twice as long, and elsewhere it is emulated.  No flag tells these apart, so it is measured.
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp32"]

LEAST_GAIN = 1.2
"""How many times as fast as bf16 fp32 must be for twice the memory."""

_ROWS, _WIDTH, _TRIES = 256, 1024, 7


@cache
def cpu_precision() -> Precision:
    """``fp32`` where its products are at least :data:`LEAST_GAIN` times as fast, else ``bf16``; measured once a process (0.1 s)."""
    import torch

    return "fp32" if _seconds(torch.bfloat16) >= LEAST_GAIN * _seconds(torch.float32) else "bf16"


def _seconds(dtype: torch.dtype) -> float:
    import torch

    rows, weights = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    taken = []
    with torch.inference_mode():
        for _ in range(1 + _TRIES):
            began = time.perf_counter()
            torch.nn.functional.linear(rows, weights)
            taken.append(time.perf_counter() - began)
    return min(taken[1:])
