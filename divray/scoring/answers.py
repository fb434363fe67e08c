"""What LLMs say of sentences: how likely one is, token by token, and whether it says its relation.

An answer is the odds of the first word, yes against no, never free text: from a model on this machine or from a server.
"""

from __future__ import annotations

import copy
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from divray.config import Config
from divray.engines import ENDPOINT
from divray.errors import EngineError
from divray.models import local_model
from divray.prompts.record import as_lines, labels
from divray.relations import Example, Relation, render_marked
from divray.sections import EndpointConfig

SHOWN = 6
"""Seeds before a sentence, at most; before a question as many wrong ones as well."""

SEEDS_READ = 16
"""About so many seeds say what is usual; each is read after others, which takes time."""

BATCH_TOKENS = {"cpu": 1, "cuda": 1536}
"""Tokens in a batch without the prefix. On a CPU each text is read alone, so that its last bits do not depend on the others."""
_HARDEST = 3

_TOP = 20
"""Alternatives of the first token that are asked for: what vLLM gives at most."""
_UNSEEN = math.log(1e-4)
"""For an answer that is not among them."""


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
    """Log-odds of yes for each example, float64 ``[n]``, three decimals.

    Seeds of its relation and of others are shown before it, but never itself. ``relations`` are all that seeds and examples may have.
    """
    named = {relation.name: relation for relation in relations}
    of_relation = {name: [seed for seed in seeds if seed.relation == name] for name in named}

    def prefix(name: str, right: list[Example]) -> str:
        lines = [f"Does the sentence say that this holds? {named[name].description}\n\n"]
        for pair in zip(right, _wrong(named, of_relation, name, right), strict=True):
            lines += [f"Sentence: {render_marked(one)}\nAnswer: {answer}\n\n" for one, answer in zip(pair, ("yes", "no"), strict=True)]
        return "".join(lines)

    found = np.zeros(len(examples))
    for before, rows in by_prefix(prefix, seeds, examples):
        found[rows] = answerer.answers(before, [f"Sentence: {render_marked(examples[row])}\nAnswer:" for row in rows])
    return found.round(3)


def readings(
    likelihood: Likelihood,
    relations: Sequence[Relation],
    seeds: Sequence[Example],
    examples: Sequence[Example],
) -> np.ndarray:
    """``sentence`` and ``stumble`` of each example, not yet less the seeds', float64 ``[n, 2]``, three decimals.

    The arguments are those of :func:`ask`.
    """
    named = {relation.name: relation for relation in relations}

    def prefix(name: str, shown: list[Example]) -> str:
        records = "".join(f"{as_lines(named[name], seed)}\n\n" for seed in shown)
        return f"Relation: {name}\nMeaning: {named[name].description}\n\n{records}"

    found = np.zeros((len(examples), 2))
    for before, rows in by_prefix(prefix, seeds, examples):
        leads = []
        for row in rows:
            head, tail, sentence = labels(named[examples[row].relation])
            leads.append(f"{head} {examples[row].head_text}\n{tail} {examples[row].tail_text}\n{sentence}")
        for row, terms in zip(rows, likelihood.log_probabilities(before, leads, [f" {examples[row].text}" for row in rows]), strict=True):
            found[row] = terms.mean(), np.sort(terms)[:_HARDEST].mean()
    return found.round(3)


def some_of(seeds: Sequence[Example]) -> Sequence[Example]:
    """About :data:`SEEDS_READ` of the seeds, from all over the list."""
    return seeds[:: max(1, round(len(seeds) / SEEDS_READ))]


def by_prefix(
    prefix: Callable[[str, list[Example]], str],
    seeds: Sequence[Example],
    examples: Sequence[Example],
) -> list[tuple[str, list[int]]]:
    """The rows of examples that have the same text before them: ``prefix`` of their relation and its first :data:`SHOWN` seeds."""
    found: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        shown = [seed for seed in seeds if seed.relation == example.relation and seed.text != example.text][:SHOWN]
        found[prefix(example.relation, shown)].append(row)
    return sorted(found.items())


def _wrong(named: dict[str, Relation], shown: dict[str, list[Example]], name: str, right: list[Example]) -> list[Example]:
    """For each right seed one with its roles exchanged or, in turn, one of another relation, first of those with the same types."""
    names = list(named)
    later = names[names.index(name) + 1 :] + names[: names.index(name)]
    own = named[name].head_type, named[name].tail_type
    others = sorted((other for other in later if shown[other]), key=lambda other: (named[other].head_type, named[other].tail_type) != own)
    exchanged = [replace(seed, head=seed.tail, tail=seed.head) for seed in right]
    return [shown[others[min(1, len(others) - 1)]][0] if n % 2 and others else seed for n, seed in enumerate(exchanged)]


class Likelihood:
    """A causal LLM that reads; ``reference`` is one that :func:`divray.models.local_model` understands."""

    def __init__(self, reference: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = local_model(reference)
        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(device).eval()

    def log_probabilities(self, prefix: str, leads: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        """Log-probability of each token of every text after ``prefix`` and its lead, float64 ``[tokens]`` in nats.

        Args:
            prefix: What all begin with; ends where a token ends, such as after a newline.
            leads: What stands before each text and is only read.
            texts: Begin where a token does.
        """
        before = [self.tokenizer(lead, add_special_tokens=False).input_ids for lead in leads]
        encoded = [lead + self.tokenizer(text, add_special_tokens=False).input_ids for lead, text in zip(before, texts, strict=True)]
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for row, scores in self._scores(prefix, encoded, [len(lead) for lead in before]):
            wanted = scores.new_tensor(encoded[row][len(before[row]) :], dtype=int)
            found[row] = scores[:-1].gather(1, wanted[:, None])[:, 0].double().cpu().numpy()
        return found

    def answers(self, prefix: str, questions: Sequence[str]) -> list[float]:
        """Log-odds of `` yes`` over `` no`` after ``prefix`` and each question, in nats."""
        yes, no = (self.tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" yes", " no"))
        encoded = [self.tokenizer(question, add_special_tokens=False).input_ids for question in questions]
        found = [0.0] * len(questions)
        for row, scores in self._scores(prefix, encoded, [len(ids) for ids in encoded]):
            found[row] = float(scores[-1, yes] - scores[-1, no])
        return found

    def _scores(self, prefix: str, encoded: Sequence[list[int]], starts: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Each row with the log-probabilities ``[n - start + 1, vocabulary]`` of what may stand at its places from ``start`` to ``n``."""
        import torch

        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        with torch.inference_mode():
            ids = torch.tensor([self.tokenizer(prefix).input_ids], device=self.device)
            # The last token of the prefix is read again, since it predicts the first one of a text without a lead.
            cache = self.model(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
            for rows in _batches(order, [len(tokens) + 1 for tokens in encoded], BATCH_TOKENS[self.device]):
                width = max(len(encoded[row]) for row in rows) + 1
                block = torch.full((len(rows), width), int(ids[0, -1]), device=self.device)
                mask = torch.zeros((len(rows), ids.shape[1] - 1 + width), dtype=torch.long, device=self.device)
                for place, row in enumerate(rows):
                    block[place, 1 : len(encoded[row]) + 1] = torch.tensor(encoded[row], device=self.device)
                    mask[place, : ids.shape[1] + len(encoded[row])] = 1
                past = copy.deepcopy(cache)
                past.batch_repeat_interleave(len(rows))
                first = min(starts[row] for row in rows)
                output = self.model(block, attention_mask=mask, past_key_values=past, logits_to_keep=width - first)
                for place, row in enumerate(rows):
                    kept = output.logits[place, starts[row] - first : len(encoded[row]) + 1 - first]
                    yield row, kept.float().log_softmax(-1)


def _batches(order: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows of similar length, at most so many tokens with the padding."""
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[row] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


class ServerAnswers:
    """Answers of the server that ``engine.endpoint`` names; the key comes from the process's environment."""

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
            how: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": _TOP}
            response: Any = self.client.chat.completions.create(model=self.settings.model, messages=asked, **how)
            top = response.choices[0].logprobs.content[0].top_logprobs
        except (APIError, AttributeError, IndexError, TypeError) as error:
            raise EngineError(f"{self.settings.url} gave no label probabilities ({type(error).__name__}: {error})") from error
        yes, no = (sum(math.exp(one.logprob) for one in top if one.token.strip().casefold() == word) for word in ("yes", "no"))
        return (math.log(yes) if yes else _UNSEEN) - (math.log(no) if no else _UNSEEN)


Answerer: TypeAlias = Likelihood | ServerAnswers
"""Who says how likely a yes is."""
