"""A server that is asked yes or no: the label's probabilities of an OpenAI-compatible API, never its free text."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from divray.errors import EngineError
from divray.sections import EndpointConfig

_TOP = 20
"""Alternatives of the first token that are asked for: what vLLM gives at most."""
_UNSEEN = math.log(1e-4)
"""For an answer that is not among them."""


class ServerAnswers:
    """Answers of the server that ``engine.endpoint`` names.

    Args:
        settings: Its address, model and limits; the key comes from the process's environment.
    """

    def __init__(self, settings: EndpointConfig) -> None:
        from openai import OpenAI

        key = os.environ.get(settings.key_variable) or "none"
        self.settings = settings
        self.client = OpenAI(base_url=settings.url, api_key=key, max_retries=settings.max_retries, timeout=settings.timeout)

    def answers(self, prefix: str, questions: Sequence[str]) -> list[float]:
        """Log-odds of yes over no after ``prefix`` and each question, in nats.

        Raises:
            EngineError: The server refused, or gives no probabilities.
        """
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            return list(pool.map(self._answer, [f"{prefix}{question}" for question in questions]))

    def _answer(self, prompt: str) -> float:
        from openai import APIError

        asked: Any = [{"role": "user", "content": f"{prompt}\nSay only yes or no."}]
        try:
            response: Any = self.client.chat.completions.create(
                model=self.settings.model,
                messages=asked,
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=_TOP,
            )
            top = response.choices[0].logprobs.content[0].top_logprobs
        except (APIError, AttributeError, IndexError, TypeError) as error:
            raise EngineError(f"{self.settings.url} gave no label probabilities ({type(error).__name__}: {error})") from error
        return self._mass(top, "yes") - self._mass(top, "no")

    @staticmethod
    def _mass(top: Sequence[Any], word: str) -> float:
        mass = sum(math.exp(one.logprob) for one in top if one.token.strip().casefold() == word)
        return math.log(mass) if mass else _UNSEEN
