"""Find what must not be in a data set: one sentence under two labels, and a sentence near one of the test set.

Two rows are in conflict where their labels differ and they say the same of the same entities:

1. their texts are near-duplicates (Jaccard of shingles, as everywhere), and so are their texts with head, tail and numbers masked;
2. their entities agree in their roles: heads share words with heads and tails with tails, in all more than heads with tails.

The second condition tells ``Cause-Effect(e1,e2)`` from ``Cause-Effect(e2,e1)`` on one long sentence with head and tail exchanged.

One Ray task compares all texts of a round.  If two samples of the round are in conflict, either may be wrong, so both are dropped.  A
seed or a sample of an earlier round stays.  Deduplication ignores samples dropped for a conflict, but a later sample in conflict with
one is dropped, too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.dedup.decide import Numbers, best_of, nearest_given
from divray.dedup.shingle import fold, shingle
from divray.dedup.verify import near_duplicates
from divray.layout import SEEDS, TEST, score_tables
from divray.run_folder import RunFolder
from divray.scan import table_of
from divray.schemas import NAIVE, SCORES
from divray.scoring.near_copies import with_columns
from divray.sections import DiversityConfig
from divray.texts import SEED_PREFIX, SENTENCE, SPANS, compared_texts

_MARKS = ("conflict", "conflict_relation", "near_test", "nearest_id", "similarity", "reason")
MARKS = pa.schema([SCORES.field(name) for name in ("candidate_id", *_MARKS)])
"""A sample to drop: what it conflicts with or is near to, and why.  Null stands for nothing."""
BARRED = pc.field("reason") != ""
"""The :func:`marked` rows to drop."""

_COMPARED = ["candidate_id", "relation", *SENTENCE]


def label_conflicts(table: pa.Table, config: DiversityConfig, known: pa.Table) -> pa.Table:
    """The rows of ``table`` that are in conflict with another row of ``table`` or with one of ``known`` (seeds and earlier rounds).  The
    rows of ``known`` are not compared with each other.  Both tables have ``candidate_id`` (distinct), ``relation``, ``text`` and spans.

    Returns:
        Columns ``candidate_id``, ``conflict`` (id of the most similar row in conflict; of equals first one of ``known``, then the
        smallest id), ``conflict_relation`` and ``similarity`` (Jaccard of the texts); sorted, rows in conflict only.
    """
    rows = pa.concat_tables([part.select(_COMPARED).sort_by("candidate_id") for part in (table, known)])
    new, labels = np.arange(rows.num_rows) < table.num_rows, _codes(rows["relation"])
    # Rows of one table with equal text, label and spans are one item, named by the smallest id.  Items of ``table`` come first.
    keys = np.column_stack([~new, _codes(rows["text"]), labels, *(rows[name].to_numpy() for name in SPANS)])
    _, items, item_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    sets = shingle(rows["text"].cast(pa.large_string()).take(pa.array(items)))
    left, right, similarity = near_duplicates(sets, config.threshold, own=int(np.count_nonzero(new[items])))
    crossing = labels[items[left]] != labels[items[right]]
    left, right, similarity = left[crossing], right[crossing], similarity[crossing]
    involved, places = np.unique(items[np.append(left, right)], return_inverse=True)
    same = _same_fact(rows.take(pa.array(involved)), config, *np.split(places, 2))
    left, right, similarity = left[same], right[same], similarity[same]
    other, best = best_of(len(items), left, right, similarity, np.where(new[items], len(rows), 0) + items)
    found = np.flatnonzero(new & (other[item_of] >= 0))
    against = pa.array(items[other[item_of[found]]])
    made = {
        "candidate_id": rows["candidate_id"].take(pa.array(found)),
        "conflict": rows["candidate_id"].take(against),
        "conflict_relation": rows["relation"].take(against),
        "similarity": pa.array(best[item_of[found]], pa.float64()),
    }
    return pa.table(made).combine_chunks()


def _codes(values: pa.ChunkedArray) -> Numbers:
    """Equal integers for equal strings."""
    return np.asarray(values.cast(pa.large_string()).combine_chunks().dictionary_encode().indices, np.int64)


def _same_fact(rows: pa.Table, config: DiversityConfig, left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
    """Whether the entities of each pair of rows agree in their roles, and the masked texts are near-duplicates."""
    masked = shingle(compared_texts(rows, mask=True))
    shingles = [set(own.tolist()) for own in np.split(masked.values, masked.offsets[1:-1])]
    texts, spans = rows["text"].to_pylist(), (rows[name].to_pylist() for name in SPANS)
    words = [(set(text[a:b].lower().split()), set(text[c:d].lower().split())) for text, a, b, c, d in zip(texts, *spans, strict=True)]
    same = np.zeros(len(left), bool)
    for pair, (a, b) in enumerate(zip(left, right, strict=True)):
        (head_a, tail_a), (head_b, tail_b) = words[a], words[b]
        heads, tails = len(head_a & head_b), len(tail_a & tail_b)
        roles = bool(heads and tails) and heads + tails > len(head_a & tail_b) + len(tail_a & head_b)
        same[pair] = roles and len(shingles[a] & shingles[b]) / len(shingles[a] | shingles[b]) >= config.threshold
    return same


def near_reference(table: pa.Table, reference: pa.Table, config: DiversityConfig) -> pa.Table:
    """The rows of ``table`` that are near-duplicates of a row of ``reference``, such as a test set, under whatever label.

    Compares the texts and, with ``config.mask_entities``, also the texts with head, tail and numbers masked; one match is enough.

    Returns:
        Columns ``candidate_id``, ``near`` (``example_id`` of the most similar row; of equals the smallest) and ``similarity`` (the larger
        of plain and masked); sorted, near rows only.
    """
    reference, m = reference.sort_by("example_id"), reference.num_rows
    nearest, best = np.full(table.num_rows, -1), np.zeros(table.num_rows)
    for mask in (False, True) if config.mask_entities else (False,):
        # The reference comes first, so that rows of the table are not compared with each other.
        sets, first, group = fold(shingle(compared_texts(reference, mask) + compared_texts(table, mask)))
        pairs = near_duplicates(sets, config.threshold, own=int(np.searchsorted(first, m)))
        places, values = (found[group[m:]] for found in nearest_given(group[:m], len(sets), pairs))
        better = (places >= 0) & ((values > best) | (values == best) & (places < nearest))
        nearest[better], best[better] = places[better], values[better]
    near = np.flatnonzero(nearest >= 0)
    made = {
        "candidate_id": table["candidate_id"].take(pa.array(near)),
        "near": reference["example_id"].take(pa.array(nearest[near])),
        "similarity": pa.array(best[near], pa.float64()),
    }
    return pa.table(made).combine_chunks().sort_by("candidate_id")


def across_relations(config: Config, uri: str, embedded: str, round: int) -> pa.Table:
    """The round's samples in conflict with each other, a seed or an earlier round, and, with ``guard_test``, those near the test set.

    Returns:
        :data:`MARKS`, sorted by ``candidate_id``; only rows that have a conflict or come near a test sentence.
    """
    run = RunFolder(uri)
    rows = run.read_table(embedded, [*_COMPARED, "strategy"])
    seeds = run.read_table(SEEDS)
    names = pc.binary_join_element_wise(SEED_PREFIX, seeds["example_id"], "")
    known = [with_columns(seeds, {"candidate_id": names}).select(_COMPARED)]
    is_naive = pc.equal(rows["strategy"], NAIVE)
    found = [label_conflicts(rows.filter(is_naive), config.diversity, known[0])]
    stayed = (pc.field("unique") | (pc.field("conflict") != "")) & (pc.field("strategy") != NAIVE)
    if earlier := table_of(run, score_tables(round), _COMPARED, stayed):
        known.append(earlier)
    found.append(label_conflicts(rows.filter(pc.invert(is_naive)), config.diversity, pa.concat_tables(known)))
    marks: dict[str, dict[str, Any]] = {}
    for row in pa.concat_tables(found).to_pylist():
        reason = f"labelling conflict with {row['conflict']} under {row['conflict_relation']} ({row['similarity']:.2f})"
        marks[row["candidate_id"]] = {**row, "nearest_id": row["conflict"], "reason": reason}
    if config.diversity.guard_test:
        for row in near_reference(rows, run.read_table(TEST), config.diversity).to_pylist():
            name, near, reason = row["candidate_id"], row["near"], f"near test example {row['near']} ({row['similarity']:.2f})"
            marks[name] = {**marks.get(name, {}), **row, "near_test": near, "nearest_id": f"test:{near}", "reason": reason}
    return pa.Table.from_pylist([marks[name] for name in sorted(marks)], MARKS)


def copies_of_seeds(rows: pa.Table, seeds: pa.Table, settings: DiversityConfig) -> pa.Table:
    """:data:`MARKS` of one relation's rows that are near one of its ``seeds``: with a similarity of at least ``seed_threshold`` or
    ``threshold``, whichever is lower."""
    threshold = min(settings.threshold, settings.seed_threshold)
    marks = []
    for row in near_reference(rows, seeds, settings.model_copy(update={"threshold": threshold})).to_pylist():
        name = f"{SEED_PREFIX}{row['near']}"
        marks.append({**row, "nearest_id": name, "reason": f"near copy of {name} ({row['similarity']:.2f})"})
    return pa.Table.from_pylist(marks, MARKS)


def marked(rows: pa.Table, marks: pa.Table) -> pa.Table:
    """``rows`` with the columns of :data:`MARKS`, ``""`` and 0 where there is nothing; of several marks of a row the first."""
    found = marks.take(pc.index_in(rows["candidate_id"], value_set=marks["candidate_id"].combine_chunks()))
    return with_columns(rows, {name: pc.fill_null(found[name], 0.0 if name == "similarity" else "") for name in _MARKS})
