"""The models that judge samples, with what they know of a task: the encoder, the LLM that is asked, and the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from divray.config import Config
from divray.embeddings import Encoder
from divray.models import local_model
from divray.relations import Example, Relation
from divray.scoring.answers import answerer_of, ask
from divray.scoring.judge import Judge, described_seeds, fit_judge
from divray.scoring.likelihood import Likelihood, readings, some_of
from divray.spans import BLOCKS, FEATURE_GRID, Batch, collate, encode_spans, means, on_grid, pooled


class Judging:
    """Loads the models; a worker makes one.

    Args:
        config: ``models.encoder``, ``correctness`` and ``engine`` count here.
        relations: Of the task; the none label is left out.
        seeds: Of the task.
    """

    def __init__(self, config: Config, relations: Sequence[Relation], seeds: Sequence[Example]) -> None:
        self.relations = [relation for relation in relations if relation.name != config.task.none_label]
        self.names = tuple(relation.name for relation in self.relations)
        self.seeds = sorted((seed for seed in seeds if seed.relation in self.names), key=lambda seed: seed.example_id)
        self.encoder = Encoder.of(config)
        self.spans = SpanEncoder(config.models.encoder, self.encoder.device)
        self.likelihood = Likelihood(config.correctness.fluency, self.encoder.device) if config.correctness.fluency else None
        self.answerer = answerer_of(config, self.encoder.device)

    def hear(self, examples: Sequence[Example]) -> np.ndarray:
        """``fluency`` and ``answer``, float64 ``[n, 2]``; zeros where no LLM is named."""
        known, found = (self.relations, self.seeds, examples), np.zeros((len(examples), 2))
        if self.likelihood is not None:
            found[:, 0] = readings(self.likelihood, *known)[:, 0]
        if self.answerer is not None:
            found[:, 1] = ask(self.answerer, *known)
        return found

    def hear_seeds(self) -> np.ndarray:
        """Mean of :meth:`hear` over some of the seeds, float64 ``[2]``."""
        return self.hear(some_of(self.seeds)).mean(axis=0).round(3)

    def judge(self, heard: np.ndarray) -> Judge:
        """The task's judge.

        Args:
            heard: :meth:`hear_seeds`.
        """
        own = np.array([self.names.index(seed.relation) for seed in self.seeds], np.int64)
        features, described = self.spans.encode(self.seeds), self.spans.encode(described_seeds(self.relations, self.seeds))
        return fit_judge(self.names, own, [seed.text for seed in self.seeds], features, described, heard)

    def signals(self, examples: Sequence[Example]) -> np.ndarray:
        """The signals of examples by a judge made for them, ``[n, len(SIGNALS)]``."""
        judge = self.judge(self.hear_seeds())
        relations, texts = [example.relation for example in examples], [example.text for example in examples]
        return judge.signals(relations, texts, self.spans.encode(examples), self.hear(examples))


LAYER = -2
"""The last layer is trained to sum up a text; the one before it knows more of who does what to whom."""
WEIGHTS = (0.5, 0.5, 1.0, 0.5)
"""Of head, tail, between and rest."""
_BATCH, _WIDTH, _MOST = 32, 8, 192


class SpanEncoder:
    """Encodes examples by their spans.

    Args:
        reference: Encoder that :func:`divray.models.local_model` understands.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, reference: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = local_model(reference)
        self.device = device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).to(device).eval()

    def encode(self, examples: Sequence[Example]) -> np.ndarray:
        """Features float32 ``[n, (BLOCKS + 2) * d]``: the spans', behind them head and tail read alone."""

        def spans(states: Any, batch: Batch) -> Any:
            return pooled(states[LAYER], batch, WEIGHTS)

        def name(states: Any, batch: Batch) -> Any:
            return means(states[(len(states) - 1) // 2], batch)[:, 0]

        if not examples:
            return np.zeros((0, (BLOCKS + 2) * self.model.config.hidden_size), np.float32)
        names = [*(one.head_text for one in examples), *(one.tail_text for one in examples)]
        distinct = sorted(set(names))
        alone = self._encode([Example(text, (0, len(text)), (0, 0), "") for text in distinct], name)
        heads, tails = np.split(alone[np.searchsorted(distinct, names)], 2)
        return np.concatenate([self._encode(examples, spans), heads, tails], axis=1)

    def _encode(self, examples: Sequence[Example], pool: Callable[[Any, Batch], Any]) -> np.ndarray:
        """Float32 ``[n, w]`` of what ``pool`` makes of hidden states and batch; a sentence's features do not depend on the others."""
        import torch

        encoded = encode_spans(self.tokenizer, examples, _MOST)
        widths = np.array([-(-len(one.ids) // _WIDTH) * _WIDTH for one in encoded], dtype=np.int64)
        found: dict[int, np.ndarray] = {}
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                batch = collate([encoded[row] for row in part], self.tokenizer.pad_token_id or 0, self.device, int(width))
                with torch.inference_mode():
                    states = self.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
                    found |= zip(part.tolist(), pool(states, batch).cpu().numpy(), strict=True)
        return on_grid(np.array([found[row] for row in range(len(found))]).reshape(len(found), -1), FEATURE_GRID).astype(np.float32)
