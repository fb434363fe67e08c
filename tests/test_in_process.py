"""The thread in which an engine runs within its actor, with a stand-in for vLLM's engine; the real one is in test_engine.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from divray.sampling.in_process import InProcessEngine

llm_engine = pytest.importorskip("vllm.v1.engine.llm_engine")
exceptions = pytest.importorskip("vllm.v1.engine.exceptions")


MOST_STEPS = 5000
"""What ``Counting`` takes."""


def processed(request_id: str, prompt: dict[str, Any], params: Any, *, supported_tasks: Any, lora_request: Any) -> Any:
    """In place of vLLM's tokens and checks."""
    assert supported_tasks == ("generate",)
    if not prompt["prompt"]:
        raise ValueError("the prompt is empty")
    return SimpleNamespace(request_id=request_id, steps=prompt["steps"], params=params)


class Counting:
    """Finishes each request after as many steps as its prompt says, once ``waits_for`` of them are there together."""

    def __init__(self, fails_at: int | None, waits_for: int) -> None:
        self.left: dict[str, int] = {}
        self.steps, self.fails_at, self.waits_for = 0, fails_at, waits_for
        self.input_processor = SimpleNamespace(process_inputs=processed)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def add_request(self, request_id: str, request: Any, params: Any, prompt_text: str | None) -> None:
        assert params is request.params
        assert request.request_id == request_id
        if request.steps > MOST_STEPS:
            raise ValueError("more than the engine holds")
        self.left[request_id] = request.steps

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
    prompt = {"prompt": name if steps else "", "steps": steps}
    answers = [answer.request_id async for answer in engine.generate(prompt, {"n": 1}, name)]
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


def test_a_request_that_is_refused_before_or_by_the_engine_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    one, empty, two, large = asyncio.run(ask_all(made, {"one": 3, "empty": 0, "two": 2, "large": MOST_STEPS + 1}))
    assert (one, two) == ("one", "two")
    assert isinstance(empty, ValueError)
    assert isinstance(large, ValueError)
    assert (str(empty), str(large)) == ("the prompt is empty", "more than the engine holds")
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
