"""Diversity of a run's sentences, round by round and against the seeds.

The scores are those of :mod:`divray.measures.diversity`, on entity-masked sentences, a relation at a
time and then averaged over relations.  A Vendi score grows with the number of sentences, so sets of
different size are compared a second time at equal size.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divray.measures.diversity import diversity_of
from divray.relations import mask_entities
from divray.report.account import rounds_of
from divray.report.scan import SPANS, batches, rows
from divray.schemas import NAIVE
from divray.texts import connective_pattern

if TYPE_CHECKING:
    import numpy as np
    import pyarrow.compute as pc

    from divray.config import Config
    from divray.run_folder import RunFolder

SCORES = (
    "vendi_ngram",
    "vendi_embedding",
    "distinct_2",
    "mean_cosine",
    "distinct_1",
    "distinct_3",
    "self_bleu",
    "rouge_l",
    "pattern_entropy",
)
REFERENCES = ("seeds", "test", "naive", "selected")
_CHUNKS = 8
_LEAST = 3

Scores = dict[str, float | None]


@dataclass
class Sentences:
    """Sentences of one relation.

    Attributes:
        ids: ``n`` of them.
        texts: Their masked texts.
        patterns: Their connective patterns.
        vectors: Embeddings of shape ``(n, d)``, or none.
    """

    ids: list[str]
    texts: list[str]
    patterns: list[str]
    vectors: np.ndarray | None

    def score(self) -> Scores:
        """The scores; those that need embeddings are ``None`` without them."""
        found = diversity_of(self.texts, self.vectors, self.patterns)
        return {name: _plain(found.get(name)) for name in SCORES}

    def score_at(self, size: int) -> Scores:
        """Mean scores of up to eight disjoint parts of ``size`` sentences, dealt by a hash of their ids."""
        order = sorted(range(len(self.ids)), key=lambda i: hashlib.sha256(self.ids[i].encode()).digest())
        parts = [order[start : start + size] for start in range(0, len(order) - size + 1, size)][:_CHUNKS]
        return mean_scores([self.take(part).score() for part in parts])

    def take(self, rows: list[int]) -> Sentences:
        vectors = self.vectors[rows] if self.vectors is not None else None
        return Sentences([self.ids[i] for i in rows], [self.texts[i] for i in rows], [self.patterns[i] for i in rows], vectors)


def mean_scores(scores: list[Scores]) -> Scores:
    """Mean of each score over the entries that have it, to four decimals."""
    found: Scores = {}
    for name in SCORES:
        values = [value for entry in scores if (value := entry.get(name)) is not None]
        found[name] = round(math.fsum(values) / len(values), 4) if values else None
    return found


def diversity(config: Config, run: RunFolder, relations: list[str]) -> dict[str, Any]:
    """All diversity figures of the summary; empty where nothing has been scored yet.

    Returns:
        ``diversity`` (round -> scores), ``diversity_per_relation`` (set -> relation -> scores),
        ``diversity_reference`` (seeds, test, naive, selected -> scores) and ``diversity_at_equal_size``
        (``size`` per relation, ``mean`` and ``per_relation`` of each set).
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    rounds = [f"round-{number:02d}" for number in rounds_of(config, run) if run.files(f"round-{number:02d}/scores", ".parquet")]
    if not rounds:
        return {}
    selected = {i for batch in batches(run, "comparison/selected", ["sample_id"]) for i in batch["sample_id"].to_pylist()}
    whole: dict[str, dict[str, Scores]] = {}
    level: dict[str, dict[str, Scores]] = {}
    sizes: dict[str, int] = {}
    for relation in relations:
        of_relation = pads.field("relation") == relation
        loop = of_relation & (pads.field("strategy") != NAIVE)
        sets = {name: _read(run, [f"{name}/scores"], "candidate_id", loop) for name in rounds}
        if seeds := _examples(run, "seed", of_relation):
            sets["seeds"] = seeds
        if test := _examples(run, "test", of_relation):
            sets["test"] = test
        sets["naive"] = _read(run, [f"{name}/scores" for name in rounds], "candidate_id", of_relation & (pads.field("strategy") == NAIVE))
        if selected:
            chosen = of_relation & pc.is_in(pads.field("candidate_id"), _strings(selected))
            sets["selected"] = _read(run, [f"{name}/scores" for name in rounds], "candidate_id", chosen)
        for name, sentences in sets.items():
            if len(sentences.ids) > 1:
                whole.setdefault(name, {})[relation] = sentences.score()
        size = min(len(sentences.ids) for name, sentences in sets.items() if name not in REFERENCES[1:])
        if size >= _LEAST:
            sizes[relation] = size
            for name, sentences in sets.items():
                if len(sentences.ids) >= size:
                    level.setdefault(name, {})[relation] = sentences.score_at(size)
    means = {name: mean_scores(list(scores.values())) for name, scores in whole.items()}
    found: dict[str, Any] = {
        "diversity": {name: means[name] for name in rounds if name in means},
        "diversity_reference": {name: means[name] for name in REFERENCES if name in means},
        "diversity_per_relation": whole,
    }
    if sizes:
        equal = {name: mean_scores(list(scores.values())) for name, scores in level.items() if scores.keys() == sizes.keys()}
        found["diversity_at_equal_size"] = {"size": sizes, "mean": equal, "per_relation": level}
    return found


def strategy_diversity(config: Config, run: RunFolder, relations: list[str]) -> dict[str, Scores]:
    """Strategy -> mean scores of its valid samples of all rounds, at equal size where strategies are several.

    A relation counts if every strategy has at least three samples of it.
    """
    import pyarrow.dataset as pads

    tables = [f"round-{number:02d}/scores" for number in rounds_of(config, run)]
    found: dict[str, list[Scores]] = {}
    for relation in relations:
        own = pads.field("relation") == relation
        sets = {name: _read(run, tables, "candidate_id", own & (pads.field("strategy") == name)) for name in config.prompts.strategies}
        size = min((len(sentences.ids) for sentences in sets.values()), default=0)
        if len(sets) > 1 and size >= _LEAST:
            for name, sentences in sets.items():
                found.setdefault(name, []).append(sentences.score_at(size))
    return {name: mean_scores(scores) for name, scores in found.items()}


def _read(run: RunFolder, names: list[str], identity: str, where: pc.Expression, vectors: bool = True) -> Sentences:
    import numpy as np

    ids: list[str] = []
    texts: list[str] = []
    patterns: list[str] = []
    parts: list[np.ndarray] = []
    for name in names:
        for batch in batches(run, name, [identity, *SPANS, *(["embedding"] if vectors else [])], where):
            ids += batch[identity].to_pylist()
            for text, *spans in zip(*(batch[column].to_pylist() for column in SPANS), strict=True):
                head, tail = (spans[0], spans[1]), (spans[2], spans[3])
                texts.append(mask_entities(text, head, tail))
                patterns.append(connective_pattern(text, head, tail))
            if vectors:
                flat = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
                parts.append(flat.reshape(batch.num_rows, -1) if flat.size % batch.num_rows == 0 else np.empty((0, 0)))
    complete = bool(parts) and len({part.shape[1] for part in parts}) == 1 and parts[0].shape[1] > 0
    return Sentences(ids, texts, patterns, np.concatenate(parts) if complete else None)


def _examples(run: RunFolder, kind: str, where: pc.Expression) -> Sentences | None:
    """The seeds of one relation, with vectors where ``data/seed_embeddings`` has all of them, or its test sentences.

    Of the test sentences those that have an embedding stand for all; before the evaluation none has, and none is read.
    """
    import numpy as np

    name = "data/seeds" if kind == "seed" else "data/test"
    if not run.files(name if kind == "seed" else "data/test_embeddings", ".parquet"):
        return None
    found = _read(run, [name], "example_id", where, vectors=False)
    known = {row["example_id"]: row["embedding"] for row in rows(run, f"data/{kind}_embeddings", ["example_id", "embedding"])}
    if kind == "test":
        found = found.take([place for place, name in enumerate(found.ids) if name in known])
    if found.ids and all(name in known for name in found.ids):
        found.vectors = np.array([known[name] for name in found.ids], dtype=np.float32)
    return found


def _strings(values: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def _plain(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)
