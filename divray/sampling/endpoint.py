"""An OpenAI-compatible server in the engine's place: a running ``vllm serve`` or a vendor.

Ray Data's HTTP stage carries the rows; inside it the ``openai`` client sends them, many at a time, and
waits and tries again where the server is busy, as the server's ``Retry-After`` says.  (The stage's own
sender has one request of a batch in flight at a time, and ends the whole job at the first refusal.)
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from typing import Any

from divray.config import Config
from divray.sampling.actors import Reporter

_NUMBER = re.compile(r"^\s*\d+[.)](?=\s)")
_OPENAI = ("temperature", "top_p", "max_tokens", "stop", "seed")


class Key:
    """A key that no repr, log line or traceback shows."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Key(***)"


def endpoint_processor(config: Config, health: str, greedy: bool) -> Any:
    """Ray Data's HTTP processor for ``engine.endpoint``; the key comes from the driver's environment."""
    import ray.data
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    from divray.sampling.arguments import sampling_parameters

    endpoint = config.engine.endpoint
    assert endpoint is not None  # checked before the run began
    vllm, chat = endpoint.vllm, config.prompts.style == "chat"
    processor = build_processor(
        HttpRequestProcessorConfig(url=endpoint.url, batch_size=config.engine.batch_size, concurrency=1),
        preprocess=lambda row: {**row, "payload": json.dumps(payload(row, sampling_parameters(config, row, greedy), vllm, chat))},
    )
    stage = processor.get_stage_by_name("HttpRequestStage")
    batches = max(1, -(-endpoint.concurrency // config.engine.batch_size))
    pool = ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2 * batches)
    processor.stages["HttpRequestStage"] = type(stage).model_construct(
        fn=_endpoint_class(),
        fn_constructor_kwargs={
            "url": endpoint.url,
            "settings": endpoint,
            "key": Key(os.environ.get(endpoint.key_variable) or "none"),
            "health": health,
        },
        map_batches_kwargs={"compute": pool, "max_concurrency": batches, "num_cpus": 0.1, "zero_copy_batch": True},
    )
    return processor


def payload(row: dict[str, Any], parameters: dict[str, Any], vllm: bool, chat: bool) -> dict[str, Any]:
    """The request's body, without the model: OpenAI's own fields, and under ``extra_body`` what only vLLM knows."""
    body = {name: value for name, value in parameters.items() if name in _OPENAI}
    extra = {name: value for name, value in parameters.items() if name not in _OPENAI}
    asked = {"messages": [{"role": "user", "content": row["prompt"]}]} if chat else {"prompt": row["prompt"]}
    return {**asked, **body, **({"extra_body": extra} if vllm and extra else {})}


def _endpoint_class() -> type:
    from openai import APIConnectionError, APIError, AsyncOpenAI, AuthenticationError, NotFoundError, PermissionDeniedError
    from ray.llm._internal.batch.stages.http_request_stage import HttpRequestUDF

    class Endpoint(HttpRequestUDF):
        def __init__(self, data_column: str, expected_input_keys: list[str], url: str, settings: Any, key: Key, health: str) -> None:
            super().__init__(data_column, expected_input_keys, url, max_retries=settings.max_retries)
            self.settings, self.reporter, self.any_answer = settings, Reporter(health), False
            from openai import DefaultAsyncHttpxClient  # here, since it can't be sent to an actor

            sender = DefaultAsyncHttpxClient(event_hooks={"request": [self._turn_again]}, timeout=settings.timeout)
            self.client = AsyncOpenAI(
                base_url=url, api_key=key.value, max_retries=settings.max_retries, timeout=settings.timeout, http_client=sender
            )
            self.slots, self.next_at = asyncio.Semaphore(settings.concurrency), 0.0
            self.reporter.ready()

        async def _turn(self) -> None:
            if self.settings.requests_per_second:
                now = time.monotonic()
                self.next_at = max(now, self.next_at) + 1 / self.settings.requests_per_second
                await asyncio.sleep(self.next_at - now - 1 / self.settings.requests_per_second)

        async def _turn_again(self, request: Any) -> None:
            """The client's own further tries count, too."""
            if request.headers.get("x-stainless-retry-count", "0") != "0":
                await self._turn()

        async def _ask(self, row: dict[str, Any]) -> dict[str, Any]:
            body = json.loads(row["payload"])
            create = self.client.chat.completions.create if "messages" in body else self.client.completions.create
            async with self.slots:
                await self._turn()
                found: dict[str, Any] = {"started_at": time.time()}
                self.reporter.enter(1)
                try:
                    found |= answered(await create(model=self.settings.model, **body))
                except (AuthenticationError, PermissionDeniedError, NotFoundError) as error:  # no other request will fare better
                    await self.reporter.failed(f"{type(error).__name__}: {error} ({self.url})")
                    raise
                except (APIError, UnexpectedAnswer) as error:
                    found["__inference_error__"] = f"{type(error).__name__}: {error}"
                    if isinstance(error, APIConnectionError | UnexpectedAnswer) and not self.any_answer:
                        await self.reporter.failed(f"{found['__inference_error__']} ({self.url})")
                        raise
                finally:
                    self.reporter.enter(-1)
            self.any_answer = True
            place = {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], "engine": self.reporter.engine}
            return {**found, "finished_at": time.time(), **place}

        async def udf(self, batch: list[dict[str, Any]]) -> Any:
            relations = {row[self.IDX_IN_BATCH_COLUMN]: row["relation"] for row in batch}
            tasks = [asyncio.ensure_future(self._ask(row)) for row in batch]
            outputs = []
            for task in asyncio.as_completed(tasks):
                output = await task
                outputs.append((relations[output[self.IDX_IN_BATCH_COLUMN]], output))
                yield output
            self.reporter.batch(outputs)

    return Endpoint


class UnexpectedAnswer(Exception):
    """The server answered with something other than a completion, such as a page of HTML."""


def answered(response: Any) -> dict[str, Any]:
    """Columns of one completion from the server's answer; a list number that a chat model repeats goes.

    Raises:
        UnexpectedAnswer: It is no completion.
    """
    try:
        choice, usage = response.choices[0], response.usage
        text = choice.text if hasattr(choice, "text") else _NUMBER.sub("", choice.message.content or "")
    except (AttributeError, IndexError, TypeError) as error:
        raise UnexpectedAnswer(f"not a completion: {str(response)[:200]}") from error
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "generated_text": text,
        "finish_reason": choice.finish_reason or "",
        "num_input_tokens": usage.prompt_tokens if usage else 0,
        "num_generated_tokens": usage.completion_tokens if usage else 0,
        "cached_tokens": (details.cached_tokens or 0) if details else 0,
    }
