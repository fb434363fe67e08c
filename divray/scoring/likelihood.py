"""Log-likelihoods of sentences under a small LLM, with the long shared prefix of many of them computed once."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from divray.models import local_model
from divray.prompts.record import as_lines, labels
from divray.relations import Example, Relation

BATCH_TOKENS = {"cpu": 1, "cuda": 1536}
"""Tokens in a batch without the prefix. On a CPU each text is read alone, which costs no time and keeps its last bits."""
SHOWN = 6
"""Seed records before a sentence, at most."""
SEEDS_READ = 16
"""About so many seeds say what is usual; each is read after others, which takes time."""
_HARDEST = 3


class Likelihood:
    """A causal LLM that reads.

    Args:
        reference: Model that :func:`divray.models.local_model` understands.
        device: ``"cpu"`` or ``"cuda"``.
    """

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


def some_of(seeds: Sequence[Example]) -> Sequence[Example]:
    """About :data:`SEEDS_READ` of the seeds, from all over the list."""
    return seeds[:: max(1, round(len(seeds) / SEEDS_READ))]


def readings(
    likelihood: Likelihood,
    relations: Sequence[Relation],
    seeds: Sequence[Example],
    examples: Sequence[Example],
) -> np.ndarray:
    """``sentence`` and ``stumble`` of each example, not yet less the seeds', float64 ``[n, 2]``, three decimals.

    Args:
        likelihood: The LLM.
        relations: All that examples may have.
        seeds: Examples of these relations.
        examples: What is read; a seed among them is read without itself.
    """
    named = {relation.name: relation for relation in relations}
    under: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        relation = named[example.relation]
        shown = [seed for seed in seeds if seed.relation == example.relation and seed.text != example.text][:SHOWN]
        records = "".join(f"{as_lines(relation, seed)}\n\n" for seed in shown)
        under[f"Relation: {relation.name}\nMeaning: {relation.description}\n\n{records}"].append(row)
    found = np.zeros((len(examples), 2))
    for prefix in sorted(under):
        rows = under[prefix]
        leads = []
        for row in rows:
            head, tail, sentence = labels(named[examples[row].relation])
            leads.append(f"{head} {examples[row].head_text}\n{tail} {examples[row].tail_text}\n{sentence}")
        for row, terms in zip(rows, likelihood.log_probabilities(prefix, leads, [f" {examples[row].text}" for row in rows]), strict=True):
            found[row] = terms.mean(), np.sort(terms)[:_HARDEST].mean()
    return found.round(3)
