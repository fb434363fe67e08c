"""The Arrow schema of every table that one stage hands to the next.

Rows keep their ``candidate_id`` for life: each stage reads a table and writes one with columns
added under the same id, so that a row can be followed from its prompt to the data set.
"""

from __future__ import annotations

import pyarrow as pa

BASE, TUNED = "base", "tuned"
"""The model before DPO, and after it."""

NAIVE = "naive"
"""Strategy of the baseline prompt: fixed demonstrations, no wish for difference; it never counts as part of the loop."""

SENTENCES = 4
"""Candidates that one completion of the strategy ``all_at_once`` writes."""

PAIRS_STRATEGY, PAIRS_A_COMPLETION = "pairs", 12
"""Of the requests for entity pairs, not for samples: their strategy, and the pairs that each asks for."""

_SPANS = [
    pa.field("text", pa.string()),
    pa.field("head_start", pa.int32()),
    pa.field("head_end", pa.int32()),
    pa.field("tail_start", pa.int32()),
    pa.field("tail_end", pa.int32()),
    pa.field("head_type", pa.string()),
    pa.field("tail_type", pa.string()),
]

EXAMPLES = pa.schema([pa.field("example_id", pa.string()), pa.field("relation", pa.string()), *_SPANS])
"""``data/seeds.parquet`` and ``data/test.parquet``: labelled human sentences."""

PROMPTS = pa.schema(
    [
        pa.field("candidate_id", pa.string()),
        pa.field("relation", pa.string()),
        pa.field("round", pa.int32()),
        pa.field("strategy", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("head", pa.string()),
        pa.field("tail", pa.string()),
        pa.field("pattern", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("demonstrations", pa.list_(pa.string())),
        pa.field("sentences", pa.int32()),
        pa.field("policy", pa.string()),
    ]
)
"""One row a request, which is one candidate, or ``sentences`` of them (null: 1). ``prompt_id`` is shared
by the candidates of one prompt text; ``head`` and ``tail`` are the pair that the prompt gives, ``""`` where the LLM writes
it; ``pattern`` is the JSON schema or the regular expression of the completion, ``""`` for free text; ``demonstrations``
are ids of examples and of earlier samples; ``policy`` is the model asked: ``tuned``, the round's own policy, or ``base``,
the one that it was tuned from."""

COMPLETIONS = pa.schema(
    [
        *PROMPTS,
        pa.field("completion", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("generated_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("started_at", pa.float64()),
        pa.field("finished_at", pa.float64()),
        pa.field("engine", pa.string()),
        pa.field("error", pa.string()),
    ]
)
"""What came back from the engine. ``cached_tokens`` of the prompt were not computed again (candidates of one request
share the figure);
``finish_reason`` is ``length`` where a limit cut the completion. Times are Unix seconds, of the time inside
the engine; ``error`` is ``""`` for a success."""

FAILED = pa.schema(
    [
        pa.field("candidate_id", pa.string()),
        pa.field("relation", pa.string()),
        pa.field("strategy", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
    ]
)
"""The ledger of requests that gave no whole completion, each file sorted by ``candidate_id``; ``reason`` is one of
``engine_error``, ``rejected_request``, ``prompt_too_long``, ``truncated`` and ``empty``."""

SAMPLES = pa.schema(
    [
        pa.field("candidate_id", pa.string()),
        pa.field("relation", pa.string()),
        pa.field("round", pa.int32()),
        pa.field("strategy", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("policy", pa.string()),
        *_SPANS,
        pa.field("rejection", pa.string()),
    ]
)
"""Sorted by ``candidate_id``. ``rejection`` is ``""`` for a valid sample; then the spans hold.
For a rejected one ``text`` is ``""`` and the spans are 0."""

SCORES = pa.schema(
    [
        *SAMPLES,
        pa.field("correctness", pa.float64()),
        pa.field("correct", pa.bool_()),
        pa.field("cluster", pa.string()),
        pa.field("nearest_id", pa.string()),
        pa.field("similarity", pa.float64()),
        pa.field("unique", pa.bool_()),
        pa.field("novelty", pa.float64()),
        pa.field("conflict", pa.string()),
        pa.field("conflict_relation", pa.string()),
        pa.field("near_test", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)
"""The valid samples only, sorted by ``candidate_id``.

``correctness`` in [0, 1] is the judge's probability that the sentence is right; ``correct`` is the gate on it.  ``cluster`` is the
smallest id of the connected component of near-duplicates; ``nearest_id`` and ``similarity`` (exact Jaccard of shingles)
name the nearest other sample of the relation, or a seed as ``seed:<example_id>``; ``unique`` is whether
this one stays, and ``reason`` says why. ``novelty`` is 1 - cosine to the nearest other unique
sample of its relation. ``conflict`` and ``conflict_relation`` name a row (a sample of this or an earlier
round, or a seed) that has the same sentence and entities under another relation, and ``near_test`` a test
example that this one comes near; both ``""`` for none. ``embedding`` is the unit vector of the entity-masked sentence."""

PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string()),
        pa.field("relation", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("chosen", pa.string()),
        pa.field("rejected", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("chosen_id", pa.string()),
        pa.field("rejected_id", pa.string()),
    ]
)
"""TRL's preference format (``prompt``, ``chosen``, ``rejected``) plus where each side came from."""

DATASET = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("relation", pa.string()),
        pa.field("rank", pa.int32()),
        *_SPANS,
        pa.field("round", pa.int32()),
        pa.field("strategy", pa.string()),
        pa.field("policy", pa.string()),
        pa.field("correctness", pa.float64()),
        pa.field("audit", pa.float64()),
        pa.field("novelty", pa.float64()),
    ]
)
"""The data set: every accepted sample. ``sample_id`` is the ``candidate_id`` of the sample; ``rank`` counts from 1 in each
relation, and the samples up to rank K (``selection.k``) are the selected ones.  ``correctness`` is the gate's judge's probability that
the sentence is right, ``audit`` that of a second judge with other signals, on which nothing in the loop depends; it reads the
first K alone, and is null for the others."""
