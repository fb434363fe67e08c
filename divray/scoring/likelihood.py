"""Log-likelihoods of sentences under an LLM, with the long shared prefix of many of them computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

BATCH_TOKENS = 1536
"""Tokens in a batch without the prefix; bounds the memory of the scores of a large vocabulary."""


class Likelihood:
    """A causal LLM that reads.

    Args:
        reference: Model that :func:`divray.models.local_model` understands.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, reference: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from divray.models import local_model

        folder = local_model(reference)
        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(device).eval()

    def log_probabilities(self, prefix: str, texts: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        """Log-probability of each token of each part of every text after ``prefix``, float64 ``[tokens]`` in nats.

        Args:
            prefix: What all begin with; ends where a token ends, such as after a newline.
            texts: Parts that follow each other; the first one, which may be empty, is only read.
        """
        encoded = [self._encoded(parts) for parts in texts]
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for row, scores in self._scores(prefix, [ids for ids, _ in encoded], [starts[0] for _, starts in encoded]):
            ids, starts = encoded[row]
            wanted = scores.new_tensor(ids[starts[0] :], dtype=int)
            values = scores[:-1].gather(1, wanted[:, None])[:, 0].double().cpu().numpy()
            found[row] = np.split(values, [start - starts[0] for start in starts[1:]])
        return found

    def answers(self, prefix: str, questions: Sequence[str]) -> list[float]:
        """Log-odds of `` yes`` over `` no`` after ``prefix`` and each question, in nats."""
        yes, no = (self.tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" yes", " no"))
        encoded = [self._encoded([question])[0] for question in questions]
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
            for rows in _batches(order, [len(tokens) + 1 for tokens in encoded]):
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

    def _encoded(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of the parts, and for each part but the first the number of the first token that reaches into it."""
        made = self.tokenizer("".join(parts), add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in made["offset_mapping"]]
        edges = np.cumsum([len(part) for part in parts[:-1]])
        return made["input_ids"], [int(np.searchsorted(ends, edge, side="right")) for edge in edges]


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Rows of similar length, at most :data:`BATCH_TOKENS` with the padding."""
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[row] <= BATCH_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
