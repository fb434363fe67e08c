"""An OpenAI-compatible server as the engine: a running ``vllm serve`` or a vendor.

Each candidate is one request, since not every server takes ``n``.  Where the server is busy, the ``openai`` client waits
as the server's ``Retry-After`` says, up to two minutes, and tries again, ``max_retries`` times.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import SecretStr

from divray.engines import Engine, Request, Row
from divray.sections import EndpointConfig

_OPENAI = ("temperature", "top_p", "max_tokens", "stop", "seed")


class OpenAIEngine(Engine):
    """The server of ``engine.endpoint``; ``key`` is the bearer token; with ``chat``, the prompt is a user message."""

    def __init__(self, settings: EndpointConfig, key: SecretStr, chat: bool) -> None:
        from openai import AsyncOpenAI

        self.settings, self.chat, self.any_answer = settings, chat, False
        self.client = AsyncOpenAI(
            base_url=str(settings.url),
            api_key=key.get_secret_value(),
            max_retries=settings.max_retries,
            timeout=settings.timeout,
        )
        self.room = asyncio.Semaphore(settings.concurrency)
        self.slots = 2 * settings.concurrency

    async def complete(self, request: Request) -> list[Row]:
        return await asyncio.gather(*(self._ask(row, {**request.parameters, "seed": row["seed"]}) for row in request.rows))

    async def _ask(self, row: Row, parameters: dict[str, Any]) -> Row:
        from openai import APIStatusError, AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        create: Any = self.client.chat.completions.create if self.chat else self.client.completions.create
        async with self.room:
            started = time.time()
            try:
                found = answered(await create(model=self.settings.model, **payload(row, parameters, self.settings.vllm, self.chat)))
            except OpenAIError as error:
                cause = f"{type(error).__name__}: {error}"
                silent = not isinstance(error, APIStatusError) and not self.any_answer
                if silent or isinstance(error, AuthenticationError | PermissionDeniedError | NotFoundError):
                    raise RuntimeError(f"{cause} ({self.settings.url})") from None  # Ray can't pass on the client's own errors
                found = {"error": cause}
        self.any_answer = True
        return {**found, "started_at": started}


def payload(row: Row, parameters: dict[str, Any], vllm: bool, chat: bool) -> dict[str, Any]:
    """The request's body, without the model: OpenAI's own fields, and under ``extra_body`` what only vLLM knows."""
    body = {name: value for name, value in parameters.items() if name in _OPENAI}
    extra = {name: value for name, value in parameters.items() if name not in _OPENAI}
    asked = {"messages": [{"role": "user", "content": row["prompt"]}]} if chat else {"prompt": row["prompt"]}
    return {**asked, **body, **({"extra_body": extra} if vllm and extra else {})}


def answered(response: Any) -> Row:
    """Columns of one completion from the server's answer.

    Raises:
        OpenAIError: The answer is not a completion, but for example an HTML page.
    """
    from openai import OpenAIError

    try:
        choice, usage = response.choices[0], response.usage
        text = choice.text if hasattr(choice, "text") else choice.message.content or ""
    except (AttributeError, IndexError, TypeError) as error:
        raise OpenAIError(f"not a completion: {str(response)[:200]}") from error
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "completion": text,
        "finish_reason": choice.finish_reason or "",
        "prompt_tokens": usage.prompt_tokens if usage else 0,
        "generated_tokens": usage.completion_tokens if usage else 0,
        "cached_tokens": (details.cached_tokens or 0) if details else 0,
    }
