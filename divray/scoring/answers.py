"""The second LLM as a judge (``correctness.llm``): how likely its first word is yes, asked whether a sentence says its relation.

Never its free text: label probabilities, from a model on this machine or from a server.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from divray.config import Config
from divray.engines.face import ENDPOINT
from divray.errors import EngineError
from divray.relations import Example, Relation, render_marked
from divray.scoring.likelihood import Likelihood
from divray.sections import EndpointConfig

SHOWN = 6
"""Right seeds before a question, at most, and as many wrong ones."""


class Answerer(Protocol):
    """Who says how likely a yes is."""

    def answers(self, prefix: str, questions: Sequence[str]) -> list[float]:
        """Log-odds of `` yes`` over `` no`` after ``prefix`` and each question, in nats."""
        ...


def answerer_of(config: Config, device: str) -> Answerer | None:
    """The LLM that ``correctness.llm`` names, if any."""
    if config.correctness.llm is None:
        return None
    if config.correctness.llm == ENDPOINT and config.engine.endpoint is not None:
        return ServerAnswers(config.engine.endpoint)
    return Likelihood(config.correctness.llm, device)


def ask(
    answerer: Answerer,
    relations: Sequence[Relation],
    seeds: Sequence[Example],
    examples: Sequence[Example],
) -> np.ndarray:
    """Log-odds of yes for each example, float64 ``[n]``, three decimals; those of one relation share what they are asked after.

    Args:
        answerer: Who is asked.
        relations: All that examples may have.
        seeds: Examples of these relations.
        examples: What is asked about; a seed among them is not shown to the LLM.
    """
    named = {relation.name: relation for relation in relations}
    shown: dict[str, list[Example]] = {name: [seed for seed in seeds if seed.relation == name] for name in named}
    asked: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        right = [seed for seed in shown[example.relation] if seed.text != example.text][:SHOWN]
        wrong = _wrong(named, shown, example.relation, right)
        lines = [f"Does the sentence say that this holds? {named[example.relation].description}\n\n"]
        for pair in zip(right, wrong, strict=True):
            lines += [f"Sentence: {render_marked(one)}\nAnswer: {answer}\n\n" for one, answer in zip(pair, ("yes", "no"), strict=True)]
        asked["".join(lines)].append(row)
    found = np.zeros(len(examples))
    for prefix in sorted(asked):
        rows = asked[prefix]
        found[rows] = answerer.answers(prefix, [f"Sentence: {render_marked(examples[row])}\nAnswer:" for row in rows])
    return found.round(3)


def _wrong(named: dict[str, Relation], shown: dict[str, list[Example]], name: str, right: list[Example]) -> list[Example]:
    """For each right seed one with its roles exchanged or, in turn, one of another relation, first of those with the same types."""
    names = list(named)
    later = names[names.index(name) + 1 :] + names[: names.index(name)]
    own = named[name].head_type, named[name].tail_type
    others = sorted((other for other in later if shown[other]), key=lambda other: (named[other].head_type, named[other].tail_type) != own)
    exchanged = [replace(seed, head=seed.tail, tail=seed.head) for seed in right]
    return [shown[others[min(1, len(others) - 1)]][0] if n % 2 and others else seed for n, seed in enumerate(exchanged)]


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
