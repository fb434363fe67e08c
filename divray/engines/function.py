"""A plain function in the engine's place: recorded completions, tests, a measurement of all but the engine."""

from __future__ import annotations

import asyncio

from divray.engines.face import Answer, Request, Row


class FunctionEngine:
    """Answers each row at once, in a thread: the function may wait.

    Args:
        answer: From a request row to columns of its completion.
    """

    slots = 1024

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def complete(self, request: Request) -> list[Row]:
        return await asyncio.to_thread(lambda: [self.answer(row) for row in request.rows])

    def close(self) -> None:
        pass
