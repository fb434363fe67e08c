"""The Arrow schemas of the tables between the stages, and the keys of JSON records that a stage or the report counts on.

A candidate keeps its ``candidate_id`` up to the data set (there ``sample_id``); a request has the id of its first candidate.
"""

from typing import Any, NotRequired

import pyarrow as pa
from pydantic import ConfigDict
from typing_extensions import TypedDict

BASE, TUNED = "base", "tuned"
"""Values of ``policy``: the LLM before DPO, and after it."""

NAIVE = "naive"
"""Strategy of the baseline prompt: fixed demonstrations, no request for variety.  The loop never uses its samples."""

SENTENCES = 4
"""Candidates that one completion of the strategy ``all_at_once`` writes."""

PAIRS_STRATEGY, PAIRS_A_COMPLETION = "pairs", 12
"""For requests that ask for entity pairs, not samples: their strategy, and how many pairs each asks for."""


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
"""One row per request for ``sentences`` candidates, mostly one (null means one). The candidates of one prompt text share ``prompt_id``;
``head`` and ``tail`` are the pair that the prompt gives, ``""`` where the LLM writes it; ``pattern`` is the JSON schema or the regular
expression of the completion, ``""`` for free text; ``demonstrations`` are ids of examples and of earlier samples; ``policy`` is the
model asked: ``base`` in round 0, ``tuned`` (the round's own policy) in later rounds."""

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
"""What came back from the engine. ``cached_tokens`` counts the prompt tokens that came from the cache (candidates of one request
share the figure); ``finish_reason`` is ``length`` where a limit cut the completion. Times are the Unix seconds at which the engine took
the request and answered it; ``error`` is ``""`` for a success."""

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

``correctness`` in [0, 1] is the judge's probability that the sentence is right; ``correct`` says whether it passes the gate.
``cluster`` is the smallest id of the connected component of near-duplicates. ``unique`` says whether the sample stays, ``reason`` why.
``nearest_id`` and ``similarity`` (exact Jaccard of shingles) name what a dropped sample is too near to: a kept sample of its relation, a
seed (``seed:<example_id>``), a conflict or a test example (``test:<example_id>``). ``novelty`` is 1 - cosine to the
nearest other unique sample of its relation and round. ``conflict`` and ``conflict_relation`` name a row (a sample of this or an earlier
round, or a seed) that says nearly the same of the same entities under another relation; ``near_test`` names the nearest test example, if
one is near. Each of the three is ``""`` for none. ``embedding`` is the unit vector of the masked sentence."""

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
relation, and the samples up to rank K (``selection.k``) are the selected ones.  ``correctness`` is the probability that the sentence
is right according to the judge behind the gate, ``audit`` according to a second judge with other signals. Nothing in the loop depends on
``audit``; it is null for all but the selected samples."""


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
