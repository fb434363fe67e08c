"""The models that judge samples, with what they know of a task: the encoder, the LLM that is asked, and the seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divray.config import Config
from divray.embeddings import Encoder
from divray.relations import Example, Relation
from divray.scoring.answers import answerer_of, ask
from divray.scoring.judge import Judge, fit_judge
from divray.scoring.spans import SpanEncoder


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
        self.answerer = answerer_of(config, self.encoder.device)

    def ask(self, examples: Sequence[Example], without: Sequence[Example] | None = None) -> np.ndarray:
        """The LLM's log-odds of yes, ``[n]``; zeros where none is named."""
        if self.answerer is None:
            return np.zeros(len(examples))
        return ask(self.answerer, self.relations, self.seeds, examples, without)

    def judge(self, answers: np.ndarray) -> Judge:
        """The task's judge.

        Args:
            answers: Of the seeds, each asked about without itself.
        """
        own = np.array([self.names.index(seed.relation) for seed in self.seeds], np.int64)
        return fit_judge(self.names, own, [seed.text for seed in self.seeds], self.spans.encode(self.seeds), answers)

    def signals(self, examples: Sequence[Example]) -> np.ndarray:
        """The signals of examples by a judge made for them, ``[n, len(SIGNALS)]``."""
        judge = self.judge(self.ask(self.seeds, without=self.seeds))
        relations, texts = [example.relation for example in examples], [example.text for example in examples]
        return judge.signals(relations, texts, self.spans.encode(examples), self.ask(examples))
