"""The models that judge samples, with what they know of a task: the encoder, the LLM that reads, and the seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from divray.config import Config
from divray.datasets.tables import examples_table
from divray.diversity.embeddings import Encoder
from divray.diversity.texts import compared_texts
from divray.relations import Example, Relation
from divray.sampling.engine import ENDPOINT
from divray.scoring.features import sentence_features
from divray.scoring.judge import Judge, Seeds, fit_judge
from divray.scoring.likelihood import Likelihood
from divray.scoring.readings import READINGS, Reader
from divray.scoring.server import ServerAnswers
from divray.scoring.spans import SpanEncoder

SMALL = "embedded:smollm2"
"""Whose likelihoods are read where a server answers, which gives none."""


class Judging:
    """Loads the models; a worker makes one.

    Args:
        config: ``models.encoder``, ``correctness`` and ``engine`` count here.
        relations: Of the task; the none label is left out.
        seeds: Of the task.
    """

    def __init__(self, config: Config, relations: Sequence[Relation], seeds: Sequence[Example]) -> None:
        named = [relation for relation in relations if relation.name != config.task.none_label]
        self.relations = tuple(relation.name for relation in named)
        self.seeds = sorted((seed for seed in seeds if seed.relation in self.relations), key=lambda seed: seed.example_id)
        self.encoder = Encoder.of(config)
        self.spans = SpanEncoder(config.models.encoder, self.encoder.device)
        self.reader: Reader | None = None
        if config.correctness.llm is not None:
            served = config.correctness.llm == ENDPOINT and config.engine.endpoint is not None
            answerer = ServerAnswers(config.engine.endpoint) if served and config.engine.endpoint else None
            likelihood = Likelihood(SMALL if served else config.correctness.llm, self.encoder.device)
            self.reader = Reader(likelihood, named, self.seeds, answerer)

    def read(self, examples: Sequence[Example], without: Sequence[Example] | None = None) -> np.ndarray:
        """What the LLM reads of examples, ``[n, len(READINGS)]``; zeros where none is named."""
        return self.reader.read(examples, without) if self.reader else np.zeros((len(examples), len(READINGS)))

    def encode(self, rows: pa.Table, reverse: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the masked sentences, and the classifier's features; ``reverse`` exchanges head and tail for these."""
        return self.encoder.encode(compared_texts(rows, mask=True)), sentence_features(rows, self.encoder.encode, reverse)

    def read_seeds(self) -> np.ndarray:
        """The readings of each seed without itself, ``[seeds, len(READINGS)]``."""
        return self.read(self.seeds, without=self.seeds)

    def judge(self, readings: np.ndarray) -> Judge:
        """The task's judge.

        Args:
            readings: Of :meth:`read_seeds`.
        """
        table = examples_table(self.seeds)
        embeddings, features = self.encode(table)
        _, backward = self.encode(table, reverse=True)
        own = np.array([self.relations.index(seed.relation) for seed in self.seeds])
        return fit_judge(self.relations, Seeds(own, self.spans.encode(self.seeds), features, backward, embeddings, readings))

    def signals(self, examples: Sequence[Example]) -> np.ndarray:
        """The signals of examples by a judge made for them, ``[n, len(SIGNALS)]``."""
        embeddings, features = self.encode(examples_table(examples))
        judge = self.judge(self.read_seeds())
        return judge.signals(
            [example.relation for example in examples], self.spans.encode(examples), features, embeddings, self.read(examples)
        )
