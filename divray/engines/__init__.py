"""Engines: requests in, completions out.

An engine is vLLM, an OpenAI-compatible server, or a plain function; all have the interface below.
:mod:`~divray.engines.pool` starts the Ray actors that hold them, and :mod:`~divray.engines.complete` sends a table through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

Answer = Callable[[Row], Row]
"""From a request row to columns of its completion: see :meth:`Engine.complete`."""

ENDPOINT = "endpoint"
"""Value of ``models.llm`` that stands for the server of ``engine.endpoint``."""


@dataclass(frozen=True, slots=True)
class Request:
    """The candidates that one prompt asks for."""

    rows: list[Row]  # of schemas.PROMPTS; the engine gets the same from each, except the seed
    parameters: dict[str, Any]  # for sampling, under vLLM's names
    adapter: str = ""  # folder or URI of the LoRA adapter that answers; empty: the model alone


class EngineDied(Exception):
    """The engine no longer answers; a new engine may.  The message gives the cause."""


class Engine:
    slots: int
    """Candidates that it accepts at a time; some of them wait."""

    async def complete(self, request: Request) -> list[Row]:
        """Columns of ``schemas.COMPLETIONS`` for each candidate: ``completion``, ``finish_reason``, ``prompt_tokens``,
        ``cached_tokens`` and ``generated_tokens``, or ``error``, where the request was refused.

        Raises:
            EngineDied: A new engine may get the same request.
            Exception: Every other request would fail, too.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release memory and processes; no request follows."""


class FunctionEngine(Engine):
    """Calls a function for each row, in a thread: the function may wait."""

    slots = 8192

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def complete(self, request: Request) -> list[Row]:
        return await asyncio.to_thread(lambda: [self.answer(row) for row in request.rows])
