"""vLLM's engine within the actor that feeds it, where one of another process would only cost.

``vllm.AsyncLLM`` puts the model into a process beside the caller's.  On a GPU that hides the caller's Python behind
the kernels; on a CPU it hides nothing, and the start takes longer, since vLLM is then imported twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

Arrival = tuple[Any, str | None, "Future[Any]"]
"""A request as vLLM's core takes it, the prompt's text, and where the answer goes."""


class InProcessEngine:
    """What Ray's stage asks of ``vllm.AsyncLLMEngine``, by vLLM's synchronous engine in a thread of this process.

    Args:
        arguments: ``vllm.EngineArgs``.
        threads: Of the model; ``None``: PyTorch's own choice.

    Raises:
        Exception: Whatever vLLM raises while the engine starts.
    """

    def __init__(self, arguments: Any, threads: int | None = None) -> None:
        self.arguments, self.threads = arguments, threads
        self.arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self.waiting: dict[str, Future[Any]] = {}
        self.started: Future[Any] = Future()
        threading.Thread(target=self._serve, name="vllm", daemon=True).start()
        self.engine: Any = self.started.result()
        self.tasks: Any = self.engine.get_supported_tasks()

    @classmethod
    def in_place_of_vllms(cls, threads: Callable[[], int] | None) -> None:
        """From now on this process makes its asynchronous engines of this class."""
        import vllm

        class Engine:
            @staticmethod
            def from_engine_args(arguments: Any, stat_loggers: Any = None) -> InProcessEngine:
                return cls(arguments, threads() if threads else None)

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        vllm.AsyncLLMEngine = Engine  # type: ignore[assignment]

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, lora_request: Any = None) -> AsyncIterator[Any]:
        """The finished ``vllm.RequestOutput``, once.

        Raises:
            EngineDeadError: The engine failed, not this request; its cause is ``__cause__``.
            ValueError: vLLM doesn't take the request.
        """
        # Tokens are made and the pattern is checked here, not between two steps of the model.
        process = self.engine.input_processor.process_inputs
        request = process(request_id, prompt, sampling_params, supported_tasks=self.tasks, lora_request=lora_request)
        answer: Future[Any] = Future()
        self.arrivals.put((request, prompt if isinstance(prompt, str) else prompt.get("prompt"), answer))
        yield await asyncio.wrap_future(answer)

    async def do_log_stats(self) -> None:
        """Nothing: where statistics are wanted, the synchronous engine logs them in its steps."""

    def shutdown(self) -> None:
        """No request after this one is answered."""
        self.arrivals.put(None)

    def _serve(self) -> None:
        import torch
        from vllm.v1.engine.exceptions import EngineDeadError
        from vllm.v1.engine.llm_engine import LLMEngine

        try:
            if self.threads is not None:  # of this very thread: OpenMP keeps the number apart for each
                torch.set_num_threads(self.threads)
            engine = LLMEngine.from_engine_args(self.arguments)
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(engine)
        try:
            while self._admit(engine):
                for output in engine.step():
                    if output.finished:
                        _settle(self.waiting.pop(output.request_id), output)
        except BaseException as error:
            dead = EngineDeadError()
            dead.__cause__ = error
            for answer in self.waiting.values():
                _settle(answer, dead)
            while (arrival := self.arrivals.get()) is not None:
                _settle(arrival[2], dead)

    def _admit(self, engine: Any) -> bool:
        """Hand the requests that have arrived to the engine, waiting for one if it has nothing to do; ``False``: leave."""
        while not self.waiting or not self.arrivals.empty():
            arrival = self.arrivals.get()
            if arrival is None:
                return False
            request, text, answer = arrival
            name = request.request_id
            try:
                engine.add_request(name, request, request.params, prompt_text=text)
                self.waiting[name] = answer
            except Exception as error:
                _settle(answer, error)
        return True


def _settle(answer: Future[Any], outcome: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # whoever asked has gone
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
