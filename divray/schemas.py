"""The Arrow schema of every table that one stage hands to the next, and what its JSON records must hold.

A row keeps its ``candidate_id`` from its prompt to the data set.
"""

from __future__ import annotations

from typing import Any, NotRequired

import pyarrow as pa
from pydantic import ConfigDict
from typing_extensions import TypedDict

BASE, TUNED = "base", "tuned"
"""The model before DPO, and after it."""

NAIVE = "naive"
"""Strategy of the baseline prompt: fixed demonstrations, no wish for difference; it never counts as part of the loop."""

SENTENCES = 4
"""Candidates that one completion of the strategy ``all_at_once`` writes."""

PAIRS_STRATEGY, PAIRS_A_COMPLETION = "pairs", 12
"""Of the requests for entity pairs, not for samples: their strategy, and the pairs that each asks for."""


def _fields(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names]


_SPANS = [
    *_fields(pa.string(), "text"),
    *_fields(pa.int32(), "head_start", "head_end", "tail_start", "tail_end"),
    *_fields(pa.string(), "head_type", "tail_type"),
]

EXAMPLES = pa.schema([*_fields(pa.string(), "example_id", "relation"), *_SPANS])
"""``data/seeds.parquet`` and ``data/test.parquet``: labelled human sentences."""

PROMPTS = pa.schema(
    [
        *_fields(pa.string(), "candidate_id", "relation"),
        *_fields(pa.int32(), "round"),
        *_fields(pa.string(), "strategy", "prompt_id", "prompt", "head", "tail", "pattern"),
        *_fields(pa.int64(), "seed"),
        *_fields(pa.list_(pa.string()), "demonstrations"),
        *_fields(pa.int32(), "sentences"),
        *_fields(pa.string(), "policy"),
    ]
)
"""One row a request, for ``sentences`` candidates, mostly one (null: one). The candidates of one prompt text share ``prompt_id``;
``head`` and ``tail`` are the pair that the prompt gives, ``""`` where the LLM writes it; ``pattern`` is the JSON schema or the regular
expression of the completion, ``""`` for free text; ``demonstrations`` are ids of examples and of earlier samples; ``policy`` is the
model asked: ``base`` in round 0, ``tuned``, the round's own policy, after it."""

COMPLETIONS = pa.schema(
    [
        *PROMPTS,
        *_fields(pa.string(), "completion"),
        *_fields(pa.int32(), "prompt_tokens", "cached_tokens", "generated_tokens"),
        *_fields(pa.string(), "finish_reason"),
        *_fields(pa.float64(), "started_at", "finished_at"),
        *_fields(pa.string(), "engine", "error"),
    ]
)
"""What came back from the engine. ``cached_tokens`` of the prompt were not computed again (candidates of one request share the
figure); ``finish_reason`` is ``length`` where a limit cut the completion. Times are Unix seconds, of the time inside the engine;
``error`` is ``""`` for a success."""

SAMPLES = pa.schema(
    [
        *_fields(pa.string(), "candidate_id", "relation"),
        *_fields(pa.int32(), "round"),
        *_fields(pa.string(), "strategy", "prompt_id", "prompt", "completion", "policy"),
        *_SPANS,
        *_fields(pa.string(), "rejection"),
    ]
)
"""Sorted by ``candidate_id``. ``rejection`` is ``""`` for a valid sample; of a rejected one ``text`` is ``""`` and the spans are 0."""

SCORES = pa.schema(
    [
        *SAMPLES,
        *_fields(pa.float64(), "correctness"),
        *_fields(pa.bool_(), "correct"),
        *_fields(pa.string(), "cluster", "nearest_id"),
        *_fields(pa.float64(), "similarity"),
        *_fields(pa.bool_(), "unique"),
        *_fields(pa.float64(), "novelty"),
        *_fields(pa.string(), "conflict", "conflict_relation", "near_test", "reason"),
        *_fields(pa.list_(pa.float32()), "embedding"),
    ]
)
"""The valid samples only, sorted by ``candidate_id``.

``correctness`` in [0, 1] is the judge's probability that the sentence is right; ``correct`` is the gate on it.  ``cluster`` is the
smallest id of the connected component of near-duplicates; ``nearest_id`` and ``similarity`` (exact Jaccard of shingles) name the
nearest other sample of the relation, or a seed as ``seed:<example_id>``; ``unique`` is whether this one stays, and ``reason`` says
why. ``novelty`` is 1 - cosine to the nearest other unique sample of its relation. ``conflict`` and ``conflict_relation`` name a row (a
sample of this or an earlier round, or a seed) that has the same sentence and entities under another relation, and ``near_test`` a
test example that this one comes near; both ``""`` for none. ``embedding`` is the unit vector of the masked sentence."""

PAIRS = pa.schema(_fields(pa.string(), "pair_id", "relation", "prompt", "chosen", "rejected", "kind", "chosen_id", "rejected_id"))
"""TRL's preference format (``prompt``, ``chosen``, ``rejected``) plus where each side came from."""

DATASET = pa.schema(
    [
        *_fields(pa.string(), "sample_id", "relation"),
        *_fields(pa.int32(), "rank"),
        *_SPANS,
        *_fields(pa.int32(), "round"),
        *_fields(pa.string(), "strategy", "policy"),
        *_fields(pa.float64(), "correctness", "audit", "novelty"),
    ]
)
"""The data set: every accepted sample. ``sample_id`` is the ``candidate_id`` of the sample; ``rank`` counts from 1 in each
relation, and the samples up to rank K (``selection.k``) are the selected ones.  ``correctness`` is the gate's judge's probability that
the sentence is right, ``audit`` that of a second judge with other signals, on which nothing in the loop depends; it reads the
first K alone, and is null for the others."""

# JSON records: the keys that another stage or the report counts on ------------------------------------------------


class StageRecord(TypedDict):
    stage: str
    finished_at: str
    seconds: float
    counts: dict[str, Any]


class Holder(TypedDict):
    host: str
    process: int
    since: str


class RelationRecord(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    name: str
    description: str
    head_type: NotRequired[str]
    tail_type: NotRequired[str]
    inverse: NotRequired[str]


class Search(TypedDict):
    best: dict[str, float]
    trials: list[dict[str, Any]]


class SetRecord(TypedDict):
    metric: str
    mean: float
    std: float
    per_draw: list[float]


class Alignment(TypedDict):
    curve: list[dict[str, float | None]]


class Quota(TypedDict):
    quota: int
    missing: int
    relations: dict[str, dict[str, int]]


class Engines(TypedDict):
    ended_at: float | None
    engines: dict[str, dict[str, float | None]]


class ReviewAnswer(TypedDict):
    sample_id: str
    reader: str
    right: bool | None
    sentence: NotRequired[str]
