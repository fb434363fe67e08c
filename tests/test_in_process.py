"""The thread in which an engine runs within its actor, with a stand-in for vLLM's engine; the real one is in test_engine.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from divray.sampling.in_process import InProcessEngine

llm_engine = pytest.importorskip("vllm.v1.engine.llm_engine")
exceptions = pytest.importorskip("vllm.v1.engine.exceptions")


class Counting:
    """Finishes each request after as many steps as its prompt says, once ``waits_for`` of them are there together."""

    def __init__(self, fails_at: int | None, waits_for: int) -> None:
        self.left: dict[str, int] = {}
        self.steps, self.fails_at, self.waits_for = 0, fails_at, waits_for

    def add_request(self, request_id: str, prompt: int, params: Any, lora_request: Any) -> None:
        if prompt < 0:
            raise ValueError("the prompt is empty")
        self.left[request_id] = prompt

    def step(self) -> list[Any]:
        if len(self.left) < self.waits_for:
            return []
        self.steps, self.waits_for = self.steps + 1, 0
        if self.steps == self.fails_at:
            raise RuntimeError("out of paper")
        self.left = {name: steps - 1 for name, steps in self.left.items()}
        made = [SimpleNamespace(request_id=name, finished=steps <= 0) for name, steps in self.left.items()]
        self.left = {name: steps for name, steps in self.left.items() if steps > 0}
        return made


def engine(monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None, waits_for: int = 0) -> InProcessEngine:
    monkeypatch.setattr(llm_engine.LLMEngine, "from_engine_args", lambda arguments: Counting(fails_at, waits_for))
    return InProcessEngine("arguments")


async def ask(engine: InProcessEngine, name: str, steps: int) -> str:
    answers = [answer.request_id async for answer in engine.generate(steps, None, name)]
    assert len(answers) == 1
    return str(answers[0])


async def ask_all(engine: InProcessEngine, steps: dict[str, int]) -> list[Any]:
    return await asyncio.gather(*(ask(engine, name, count) for name, count in steps.items()), return_exceptions=True)


def test_requests_advance_together_and_each_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch, waits_for=40)
    wanted = {f"{i}": 1 + i % 7 for i in range(40)}
    assert asyncio.run(ask_all(made, wanted)) == list(wanted)
    assert asyncio.run(ask_all(made, {"later": 1})) == ["later"]
    made.shutdown()


def test_a_request_that_the_engine_refuses_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    one, bad, two = asyncio.run(ask_all(made, {"one": 3, "bad": -1, "two": 2}))
    assert (one, two) == ("one", "two")
    assert isinstance(bad, ValueError)
    made.shutdown()


def test_a_dead_engine_fails_all_that_wait_or_come_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch, fails_at=3, waits_for=2)
    failed = asyncio.run(ask_all(made, {"one": 1000, "two": 1000}))
    assert all(isinstance(error, exceptions.EngineDeadError) for error in failed)
    assert str(failed[0].__cause__) == "out of paper"
    (later,) = asyncio.run(ask_all(made, {"later": 1}))
    assert isinstance(later, exceptions.EngineDeadError)
    made.shutdown()


def test_an_engine_that_does_not_start_raises_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: Any) -> Any:
        raise OSError("no such model")

    monkeypatch.setattr(llm_engine.LLMEngine, "from_engine_args", broken)
    with pytest.raises(OSError, match="no such model"):
        InProcessEngine("arguments")
