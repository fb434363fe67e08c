"""Diversity of a run's sentences, by round and compared with the seeds', and how well a classifier separates them from human ones.

The scores are those of :mod:`divray.measures` on masked sentences, and the share of sentences that name an entity of the seeds.
Each is computed for every relation, then averaged.  A Vendi score grows with the number of sentences, so sets of different size
are also compared at equal size.
"""

import hashlib
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray.embeddings import embedding_matrix
from divray.layout import SEED_EMBEDDINGS, SEEDS, SELECTED, TEST, TEST_EMBEDDINGS
from divray.measures import diversity_of
from divray.run_folder import RunFolder
from divray.scan import scored_rounds, table_of
from divray.schemas import NAIVE, SCORES
from divray.texts import SENTENCE, compared_texts, names_of

NAMES = ("vendi_ngram", "vendi_embedding", "distinct_2", "seed_names")
"""The last is the share of sentences whose head or tail is an entity of their relation's seeds; masking hides it from the other scores."""

_PARTS, _LEAST = 8, 3
"""Most disjoint parts of a set at equal size; fewest sentences in a part."""
_FOLDS = 5
_SCORED = pa.schema([SCORES.field(name) for name in ("candidate_id", "relation", "round", "strategy", *SENTENCE, "embedding")])

Scores = dict[str, float | None]


def diversity(run: RunFolder, relations: list[str]) -> dict[str, Any]:
    """All diversity figures of the summary; empty where nothing has been scored yet.

    Returns ``diversity`` (set -> scores), ``diversity_per_relation`` (set -> relation -> scores) and ``diversity_at_equal_size``
    (``size`` per relation, ``mean`` and ``per_relation`` of each set); sets are the rounds, ``seeds``, ``test``, ``naive``, ``selected``.
    """
    if not (rounds := scored_rounds(run)):
        return {}
    selected = table_of(run, SELECTED, ["sample_id"])
    examples = {"seeds": _examples(run, SEEDS, SEED_EMBEDDINGS), "test": _examples(run, TEST, TEST_EMBEDDINGS)}
    whole: dict[str, dict[str, Scores]] = defaultdict(dict)
    level: dict[str, dict[str, Scores]] = defaultdict(dict)
    sizes: dict[str, int] = {}
    for relation in relations:
        scored = table_of(run, [own.scores for own in rounds], _SCORED.names, pc.field("relation") == relation) or _SCORED.empty_table()
        loop = pc.field("strategy") != NAIVE
        sets = {own.name: scored.filter(loop & (pc.field("round") == int(own.name[6:]))) for own in rounds}
        sets |= {name: table.filter(pc.field("relation") == relation) for name, table in examples.items() if table}
        size = min(table.num_rows for name, table in sets.items() if name != "test")
        known = {name for row in sets.get("seeds", _SCORED.empty_table()).select(SENTENCE).to_pylist() for name in names_of(row)}
        sets["naive"] = scored.filter(~loop)
        if selected:
            sets["selected"] = scored.filter(pc.is_in(scored["candidate_id"], selected["sample_id"].combine_chunks()))
        for name, table in sets.items():
            if table.num_rows > 1:
                whole[name][relation] = _score(table, known)
        if size >= _LEAST:
            sizes[relation] = size
            _score_at(level, relation, sets, size, known)
    found: dict[str, Any] = {"diversity": {name: _mean(scores) for name, scores in whole.items()}, "diversity_per_relation": whole}
    if sizes:
        equal = {name: _mean(scores) for name, scores in level.items() if scores.keys() == sizes.keys()}
        found["diversity_at_equal_size"] = {"size": sizes, "mean": equal, "per_relation": level}
    return found


def likeness(run: RunFolder) -> dict[str, float]:
    """How well a new logistic regression on embeddings of masked sentences separates a run's from human ones, in cross-validation.

    Returns set (``round-00``, …, ``selected``) -> AUC against the embedded human test sentences; 0.5: the two look the same.
    Leaves out a set if it, or the test set, has fewer than ten embedded sentences.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    human = table_of(run, TEST_EMBEDDINGS, ["embedding"])
    found: dict[str, float] = {}
    for name in sorted({file.split("/")[1] for file in run.files("comparison", ".parquet")} - {"naive"}):
        if not (ids := table_of(run, f"comparison/{name}", ["sample_id"])):
            continue
        own = pc.field("candidate_id").isin(ids["sample_id"].combine_chunks())
        made = table_of(run, [one.scores for one in scored_rounds(run)], ["embedding"], own)
        if not (human and made) or min(human.num_rows, made.num_rows) < 2 * _FOLDS:
            continue
        vectors = np.concatenate([embedding_matrix(table["embedding"]) for table in (human, made)])
        labels = np.repeat([0, 1], [human.num_rows, made.num_rows])
        model, folds = LogisticRegression(max_iter=1000, class_weight="balanced"), StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
        scores = cross_val_predict(model, vectors, labels, cv=folds, method="decision_function")
        found[name] = round(float(roc_auc_score(labels, scores)), 4)
    return found


def _examples(run: RunFolder, name: str, embeddings: str) -> pa.Table | None:
    """The human examples that have an embedding, with it: all seeds, and test sentences that stand for the others."""
    found = table_of(run, name, ["example_id", "relation", *SENTENCE])
    known = table_of(run, embeddings, ["example_id", "embedding"])
    if not found or not known:
        return None
    places = pc.index_in(known["example_id"], found["example_id"].combine_chunks())
    return found.take(places).append_column("embedding", known["embedding"])


def _score(table: pa.Table, known: set[str]) -> Scores:
    """The scores of a table; those of embeddings are ``None`` unless every row has one. ``known``: the seeds' entities, case-folded."""
    vectors = None if table["embedding"].null_count else embedding_matrix(table["embedding"])
    found = diversity_of(compared_texts(table, mask=True), vectors)
    named = [not known.isdisjoint(names_of(row)) for row in table.select(SENTENCE).to_pylist()]
    found["seed_names"] = float(np.mean(named)) if known else None
    return {name: round(float(value), 4) if (value := found.get(name)) is not None and math.isfinite(value) else None for name in NAMES}


def _score_at(found: dict[str, dict[str, Scores]], relation: str, sets: dict[str, pa.Table], size: int, known: set[str]) -> None:
    """Put into ``found``, for each set, the mean scores of up to eight disjoint parts of ``size`` rows, split by a hash of the ids."""
    for name, table in sets.items():
        order = np.argsort([hashlib.sha256(one.encode()).hexdigest() for one in table[0].to_pylist()])
        starts = range(0, table.num_rows - size + 1, size)[:_PARTS]
        if starts:
            found[name][relation] = _mean({str(start): _score(table.take(order[start : start + size]), known) for start in starts})


def _mean(scores: dict[str, Scores]) -> Scores:
    """Mean of each score over the entries that have it, to four decimals."""
    values = {name: [value for entry in scores.values() if (value := entry[name]) is not None] for name in NAMES}
    return {name: round(math.fsum(some) / len(some), 4) if some else None for name, some in values.items()}
