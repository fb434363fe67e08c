"""Min-p sampling for vLLM on CPU, as a logits processor of the engine's.

vLLM's own CPU sampler draws one exponential number a vocabulary entry and seeded request, twice: 30 % of the engine's
time with a 135M model and 128 requests.  This one draws a single number a token.  It samples from the same distribution
(temperature, then min-p; arXiv 2407.01082) by inverting its cumulative sum over the few tokens that min-p leaves, and
hands vLLM the result as the largest logit; its requests are greedy ones to vLLM, with
:data:`~divray.sampling.arguments.SAMPLER_KEY` among their ``extra_args``.

The number is a hash of the request's seed and of the token's place, so that a request is drawn alike in any batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from divray.sampling.arguments import SAMPLER_KEY

_SLICE = 128
_PEAK = 1e9
"""The logit of the chosen token; above any that a model or a penalty gives."""


class MinPSampler(LogitsProcessor):
    """Chooses the next token of each request that asks for it by ``temperature``, ``min_p`` and ``seed`` under ``SAMPLER_KEY``."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, tuple[float, float, int, list[int]]] = {}
        self.changed = True

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self.changed = process_dict_updates(self.requests, batch_update, _state) or self.changed

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.requests:
            return logits
        if self.changed:
            self.rows = torch.tensor(sorted(self.requests))
            ordered = [self.requests[row] for row in self.rows.tolist()]
            self.temperature = torch.tensor([request[0] for request in ordered])
            self.least = torch.tensor([request[0] * math.log(request[1]) if request[1] else -math.inf for request in ordered])
            self.seeds = np.array([request[2] for request in ordered], np.uint64)
            self.written = [request[3] for request in ordered]
            self.changed = False
        own = logits if len(self.rows) == len(logits) else logits[self.rows]
        places = np.array([len(tokens) for tokens in self.written], np.uint64)
        chosen = choose(own, self.temperature, self.least, uniform(self.seeds, places))
        logits[self.rows, chosen] = _PEAK
        return logits


def _state(parameters: SamplingParams, prompt: list[int] | None, written: list[int]) -> tuple[float, float, int, list[int]] | None:
    own = (parameters.extra_args or {}).get(SAMPLER_KEY)
    return (own["temperature"], own["min_p"], own["seed"], written) if own else None


def choose(logits: torch.Tensor, temperature: torch.Tensor, least: torch.Tensor, drawn: npt.NDArray[np.float64]) -> torch.Tensor:
    """One token a row, by inversion.

    Args:
        logits: float32 ``[n, vocabulary]``; ``-inf`` for tokens that the grammar forbids.
        temperature: ``[n]``, above 0.
        least: ``[n]``: how far below the row's largest a logit may be, ``temperature * log(min_p)``.
        drawn: ``[n]`` in [0, 1).

    Returns:
        int64 ``[n]``.
    """
    rows, tokens, top = _likely(logits, least)
    weights = torch.exp((logits[rows, tokens] - top[rows]) / temperature[rows]).double().numpy()
    sums = np.cumsum(weights)
    last = np.cumsum(np.bincount(rows.numpy(), minlength=len(logits))) - 1
    before = np.concatenate([[0.0], sums[last[:-1]]])
    wanted = before + drawn * (sums[last] - before)
    first = np.concatenate([[0], last[:-1] + 1])
    return tokens[torch.from_numpy(np.clip(np.searchsorted(sums, wanted, side="right"), first, last))]


def _likely(logits: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows and tokens of the logits at most ``-least`` below their row's largest, in order, and each row's largest.

    The vocabulary is read once, for the largest of each slice; only slices that hold such a logit are looked into.
    """
    count, size = logits.shape
    width = -(-size // _SLICE) * _SLICE
    sliced = logits if width == size else torch.nn.functional.pad(logits, (0, width - size), value=-math.inf)
    sliced = sliced.view(count, width // _SLICE, _SLICE)
    tops = sliced.amax(dim=2)
    top = tops.amax(dim=1)
    bound = (top + least).clamp(min=torch.finfo().min)
    rows, slices = torch.nonzero(tops >= bound[:, None], as_tuple=True)
    found, places = torch.nonzero(sliced[rows, slices] >= bound[rows, None], as_tuple=True)
    return rows[found], slices[found] * _SLICE + places, top


def uniform(seeds: npt.NDArray[np.uint64], places: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) by SplitMix64 (Steele, Lea & Flood 2014): of each seed's sequence the one at ``places``."""
    with np.errstate(over="ignore"):
        z = _mix(seeds) + (places + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
