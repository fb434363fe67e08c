"""What LLMs say about a sentence: the probability of each token, their hidden states, and whether the sentence states its relation.

An answer is the log-odds of yes against no as the first word, never free text.  It comes from a model on this machine or a server.
"""

from __future__ import annotations

import copy
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from divray.config import Config
from divray.embeddings import by_width
from divray.engines import ENDPOINT
from divray.errors import EngineError
from divray.models import local_model
from divray.prompts.record import as_lines, labels
from divray.relations import Example, Relation, render_marked
from divray.sections import EndpointConfig

SHOWN = 6
"""Most seeds before a sentence.  Before a question, the LLM also reads as many wrong examples."""

SEEDS_READ = 16
"""About how many seeds give a task's mean signals.  Using all takes too long, since the LLM reads each seed after others."""

BATCH_TOKENS = {"cpu": 1, "cuda": 1536}
"""Tokens in a batch, not counting the prefix.  On a CPU each text is a batch, so the other texts can't change how its values round."""
HARDEST = 3
"""Number of a sentence's least likely tokens; ``stumble`` is the mean of their log-probabilities."""

_TOP = 20
"""Alternatives of the first token to ask a server for; vLLM gives no more."""
_UNSEEN = math.log(1e-4)
"""Log-probability of an answer that is not among these alternatives."""

Answers: TypeAlias = Callable[[str, Sequence[str]], list[float]]
"""Log-odds of yes over no, in nats, after a text and each of some questions."""


def answers_of(config: Config, device: str) -> Answers | None:
    """The answers of the LLM that ``correctness.llm`` names, if any."""
    llm, endpoint = config.correctness.llm, config.engine.endpoint
    if llm is None:
        return None
    return server_answers(endpoint) if llm == ENDPOINT and endpoint else Likelihood(llm, device).answers


def ask(answers: Answers, relations: Sequence[Relation], seeds: Sequence[Example], examples: Sequence[Example]) -> np.ndarray:
    """Log-odds of yes for each example, float64 ``[n]``, three decimals.

    Before each example, the LLM sees right and wrong ones made from other seeds.  ``relations`` has all relations of both lists.
    """
    named = {relation.name: relation for relation in relations}
    found = np.zeros(len(examples))
    for (name, right), rows in _by_shown(seeds, examples).items():
        lines = [f"Does the sentence say that this holds? {named[name].description}\n\n"]
        for seed, wrong in zip(right, _wrong(named, seeds, name, right), strict=True):
            lines.append(f"Sentence: {render_marked(seed)}\nAnswer: yes\n\nSentence: {render_marked(wrong)}\nAnswer: no\n\n")
        found[rows] = answers("".join(lines), [f"Sentence: {render_marked(examples[row])}\nAnswer:" for row in rows])
    return found.round(3)


class Probe(NamedTuple):
    """A linear classifier of an LLM's hidden states after ``layer`` (Alain and Bengio 2017, arXiv 1610.01644).  ``weights`` ``[2 d]`` are
    for the mean of these states over the sentence's tokens, then for the last token's state."""

    layer: int
    weights: np.ndarray


def readings(
    likelihood: Likelihood, relations: Sequence[Relation], seeds: Sequence[Example], examples: Sequence[Example], probe: Probe | None = None
) -> np.ndarray:
    """Each example's mean log-probability per token, the mean of its :data:`HARDEST` tokens (``stumble``), and the value of ``probe`` (0
    without one); float64 ``[n, 3]``, three decimals.  The caller subtracts the seeds' means.
    The arguments are those of :func:`ask`."""
    found = np.zeros((len(examples), 3))
    for row, terms, states in read_after_seeds(likelihood, relations, seeds, examples, probe.layer if probe else None):
        found[row] = terms.mean(), np.sort(terms)[:HARDEST].mean(), states @ probe.weights if probe else 0.0
    return found.round(3)


def read_after_seeds(
    likelihood: Likelihood, relations: Sequence[Relation], seeds: Sequence[Example], examples: Sequence[Example], layer: int | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each example's row, and what :meth:`Likelihood.read` gives for its sentence after the records of seeds and its own entities."""
    named = {relation.name: relation for relation in relations}
    for (name, shown), rows in _by_shown(seeds, examples).items():
        records = "".join(f"{as_lines(named[name], seed)}\n\n" for seed in shown)
        prefix = f"Relation: {name}\nMeaning: {named[name].description}\n\n{records}"
        head, tail, sentence = labels(named[name])
        own = [examples[row] for row in rows]
        leads = [f"{head} {one.head_text}\n{tail} {one.tail_text}\n{sentence}" for one in own]
        for row, told in zip(rows, likelihood.read(prefix, leads, [f" {one.text}" for one in own], layer), strict=True):
            yield row, *told


def some_of(seeds: Sequence[Example]) -> Sequence[Example]:
    """About :data:`SEEDS_READ` of the seeds, spread over the list."""
    return seeds[:: max(1, round(len(seeds) / SEEDS_READ))]


def _by_shown(seeds: Sequence[Example], examples: Sequence[Example]) -> dict[tuple[str, tuple[Example, ...]], list[int]]:
    """Rows of examples by relation and shown seeds: its first :data:`SHOWN` whose text differs.  The examples of a group share a prefix."""
    found: dict[tuple[str, tuple[Example, ...]], list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        shown = [seed for seed in seeds if seed.relation == example.relation and seed.text != example.text][:SHOWN]
        found[example.relation, tuple(shown)].append(row)
    return found


def _wrong(named: dict[str, Relation], seeds: Sequence[Example], name: str, right: Sequence[Example]) -> list[Example]:
    """A wrong example for each seed in ``right``, by turns of two kinds: that seed with head and tail exchanged, and a seed of the second
    of the other relations, where those with the same types come first."""
    names, first = list(named), {seed.relation: seed for seed in reversed(seeds)}
    place, own = names.index(name), (named[name].head_type, named[name].tail_type)
    others = [other for other in names[place + 1 :] + names[:place] if other in first]
    others.sort(key=lambda other: (named[other].head_type, named[other].tail_type) != own)
    exchanged = [replace(seed, head=seed.tail, tail=seed.head) for seed in right]
    return [first[others[min(1, len(others) - 1)]] if n % 2 and others else seed for n, seed in enumerate(exchanged)]


class Likelihood:
    """A causal LLM that scores given texts; ``reference`` is one that :func:`divray.models.local_model` understands."""

    def __init__(self, reference: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = local_model(reference)
        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(device).eval()

    def read(
        self, prefix: str, leads: Sequence[str], texts: Sequence[str], layer: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every text, read after ``prefix`` and its lead: the log-probability of each token, float64 ``[tokens]`` in nats; the mean and
        the last of its tokens' hidden states after ``layer``, float64 ``[2 d]`` (empty without a layer).

        ``prefix`` ends where a token ends, such as after a newline, and ``texts`` begin where one does.
        """
        import torch

        before = self._tokens(leads)
        encoded = [lead + text for lead, text in zip(before, self._tokens(texts), strict=True)]
        found = [(np.zeros(0), np.zeros(0))] * len(texts)
        for row, scores, states in self._scores(prefix, encoded, [len(lead) for lead in before], layer):
            wanted = scores.new_tensor(encoded[row][len(before[row]) :], dtype=int)
            terms = scores[:-1].gather(1, wanted[:, None])[:, 0].double().cpu().numpy()
            kept = scores.new_zeros(0) if states is None else torch.cat([states[1:].double().mean(0), states[-1].double()])
            found[row] = terms, kept.cpu().numpy()
        return found

    def answers(self, prefix: str, questions: Sequence[str]) -> list[float]:
        """:data:`Answers` by `` yes`` and `` no``."""
        (yes, *_), (no, *_) = self._tokens([" yes", " no"])
        encoded = self._tokens(questions)
        found = {row: float(scores[-1, yes] - scores[-1, no]) for row, scores, _ in self._scores(prefix, encoded, list(map(len, encoded)))}
        return [found[row] for row in range(len(questions))]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    def _scores(
        self, prefix: str, encoded: Sequence[list[int]], starts: Sequence[int], layer: int | None = None
    ) -> Iterator[tuple[int, Any, Any]]:
        """Yield each row with the log-probabilities ``[n - start + 1, vocabulary]`` of the tokens at its positions ``start`` to ``n``, and
        the hidden states ``[n - start + 1, d]`` after ``layer`` of the tokens before those positions."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        with torch.inference_mode():
            ids = torch.tensor([self.tokenizer(prefix).input_ids], device=self.device)
            # The last token of the prefix is read again, since it predicts the first one of a text without a lead.
            read, last = ids.shape[1] - 1, int(ids[0, -1])
            cache = self.model(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
            lengths = [len(text) + 1 for text in encoded]
            for rows, _ in by_width(lengths, max(lengths, default=1), lambda width: max(1, BATCH_TOKENS[self.device] // width)):
                texts = [torch.tensor([last, *encoded[row]], device=self.device) for row in rows]
                block = pad_sequence(texts, batch_first=True, padding_value=last)
                ends = torch.tensor([read + len(text) for text in texts], device=self.device)
                mask = (torch.arange(read + block.shape[1], device=self.device) < ends[:, None]).long()
                past = copy.deepcopy(cache)
                past.batch_repeat_interleave(len(rows))
                first = min(starts[row] for row in rows)
                options = {"logits_to_keep": block.shape[1] - first, "output_hidden_states": layer is not None}
                said = self.model(block, attention_mask=mask, past_key_values=past, **options)
                for place, row in enumerate(rows):
                    start, end = starts[row], len(texts[place])
                    states = None if layer is None else said.hidden_states[layer][place, start:end]
                    yield row, said.logits[place, start - first : end - first].float().log_softmax(-1), states


def server_answers(settings: EndpointConfig) -> Answers:
    """:data:`Answers` of the server that ``engine.endpoint`` names; the key comes from the environment.

    They raise EngineError if the server refuses, or gives no probabilities.
    """
    from openai import APIError, OpenAI

    key = os.environ.get(settings.key_variable) or "none"
    client: Any = OpenAI(base_url=str(settings.url), api_key=key, max_retries=settings.max_retries, timeout=settings.timeout)
    how = {"model": settings.model, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": _TOP}

    def answer(text: str) -> float:
        asked = [{"role": "user", "content": f"{text}\nSay only yes or no."}]
        try:
            top = client.chat.completions.create(messages=asked, **how).choices[0].logprobs.content[0].top_logprobs
        except (APIError, AttributeError, IndexError, TypeError) as error:
            raise EngineError(f"{settings.url} gave no probabilities of yes and no ({type(error).__name__}: {error})") from error
        yes, no = (sum(math.exp(one.logprob) for one in top if one.token.strip().casefold() == word) for word in ("yes", "no"))
        return (math.log(yes) if yes else _UNSEEN) - (math.log(no) if no else _UNSEEN)

    def answers(prefix: str, questions: Sequence[str]) -> list[float]:
        with ThreadPoolExecutor(settings.concurrency) as pool:
            return list(pool.map(answer, [prefix + question for question in questions]))

    return answers
