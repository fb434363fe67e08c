"""The CPU sampler's distribution and its draws, without an engine."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sampler = pytest.importorskip("divray.sampling.sampler", reason="vLLM is not installed")


def chosen(logits: torch.Tensor, temperature: float, min_p: float, drawn: np.ndarray) -> np.ndarray:
    n = len(logits)
    least = torch.full((n,), temperature * math.log(min_p) if min_p else -math.inf)
    return sampler.choose(logits, torch.full((n,), temperature), least, drawn).numpy()


@pytest.mark.parametrize(("temperature", "min_p"), [(1.0, 0.1), (0.6, 0.05), (1.5, 0.0)])
def test_the_distribution_is_that_of_temperature_and_min_p(temperature: float, min_p: float) -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, -math.inf, 1.5, -4.0]])
    scaled = torch.softmax(logits[0].double() / temperature, 0)
    scaled[scaled < min_p * scaled.max()] = 0
    expected = (scaled / scaled.sum()).numpy()
    draws = 20_000
    drawn = sampler.uniform(np.arange(draws, dtype=np.uint64), np.full(draws, 7, np.uint64))
    found = np.bincount(chosen(logits.repeat(draws, 1), temperature, min_p, drawn), minlength=6) / draws
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws))
    assert (found[expected == 0] == 0).all()


def test_each_row_is_drawn_for_itself() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 400)
    drawn = sampler.uniform(np.arange(50, dtype=np.uint64), np.zeros(50, np.uint64))
    together = chosen(logits, 1.0, 0.02, drawn)
    alone = [chosen(logits[row : row + 1], 1.0, 0.02, drawn[row : row + 1])[0] for row in range(50)]
    assert together.tolist() == alone
    assert (chosen(logits, 1.0, 0.02, np.zeros(50)) < 400).all()
    assert len({*together.tolist()}) > 20


def test_numbers_are_uniform_and_differ_by_seed_and_place() -> None:
    grid = [sampler.uniform(np.arange(200, dtype=np.uint64), np.full(200, place, np.uint64)) for place in range(50)]
    values = np.concatenate(grid)
    assert ((values >= 0) & (values < 1)).all() and len(np.unique(values)) == len(values)
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert np.histogram(values, 10, (0, 1))[0] == pytest.approx(np.full(10, 1000), abs=150)


def added(row: int, seed: int | None, written: list[int]) -> Any:
    own = None if seed is None else {sampler.SAMPLER_KEY: {"temperature": 1.0, "min_p": 0.1, "seed": seed}}
    return (row, SimpleNamespace(extra_args=own), [], written)


def test_only_requests_that_ask_for_it_and_wherever_they_move() -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality

    processor = sampler.MinPSampler(None, torch.device("cpu"), False)
    flat = torch.zeros(3, 100)
    flat[1, 42] = 1.0
    processor.update_state(BatchUpdate(3, removed=[], added=[added(0, 5, []), added(1, None, []), added(2, 6, [])], moved=[]))
    first = processor.apply(flat.clone()).argmax(dim=1).tolist()
    assert first[1] == 42
    swapped = BatchUpdate(3, removed=[], added=[], moved=[(0, 2, MoveDirectionality.SWAP)])
    processor.update_state(swapped)
    assert processor.apply(flat.clone()).argmax(dim=1).tolist() == first[::-1]
    processor.update_state(BatchUpdate(1, removed=[2], added=[], moved=[(1, 2, MoveDirectionality.UNIDIRECTIONAL)]))
    assert set(processor.requests) == {0}
    assert processor.apply(flat[:1].clone()).argmax(dim=1).tolist() == first[2:]
