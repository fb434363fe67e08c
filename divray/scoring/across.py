"""The pass over all relations of a round: labelling conflicts and, on request, samples near the test set.

What is dropped here stays out of the deduplication, so that it displaces nothing.  Of two samples of one
round in conflict neither is known to be right, and both are dropped; a seed, or a sample of an earlier
round, was there before and stays.  A sample that fell out by a conflict keeps later ones out in its turn.

The pass is one task that holds the round's texts (not its embeddings) in memory.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.run_folder import SEEDS, TEST, Round, RunFolder
from divray.scan import batches
from divray.schemas import NAIVE, SCORES
from divray.scoring.conflicts import label_conflicts, near_reference
from divray.sections import DiversityConfig
from divray.texts import SEED_PREFIX, SPANS

TEST_PREFIX = "test:"
"""``nearest_id`` of a sample near the test set starts so."""

MARKS = pa.schema(
    [
        *(SCORES.field(name) for name in ("candidate_id", "conflict", "conflict_relation")),
        pa.field("conflict_similarity", pa.float64()),
        SCORES.field("near_test"),
        pa.field("near_test_similarity", pa.float64()),
    ]
)
"""What :func:`across_relations` finds of a sample."""

_COMPARED = ["candidate_id", "relation", "text", *SPANS]


def across_relations(config: Config, uri: str, embedded: str, round: int) -> pa.Table:
    """Labelling conflicts of the round's samples, with each other and with what was there before, and samples near the test set.

    Returns:
        :data:`MARKS`, sorted by ``candidate_id``; only rows that have a conflict or come near a test sentence.
    """
    run = RunFolder(uri)
    if not run.files(embedded, ".parquet"):
        return MARKS.empty_table()
    rows = run.read_table(embedded, [*_COMPARED, "strategy"])
    seeds = run.read_table(SEEDS)
    names = pa.array([SEED_PREFIX + name for name in seeds["example_id"].to_pylist()], pa.string())
    known = [seeds.append_column("candidate_id", names).select(_COMPARED)]
    is_naive = pc.equal(rows["strategy"], NAIVE)
    found = [label_conflicts(rows.filter(is_naive).select(_COMPARED), config.diversity, known[0])]
    stayed = (pc.field("unique") | (pc.field("conflict") != "")) & (pc.field("strategy") != NAIVE)
    if earlier := list(batches(run, score_tables(round), _COMPARED, stayed)):
        known.append(pa.Table.from_batches(earlier))
    found.append(label_conflicts(rows.filter(pc.invert(is_naive)).select(_COMPARED), config.diversity, pa.concat_tables(known)))
    conflicts = pa.concat_tables(found).rename_columns(MARKS.names[:4])
    near = pa.schema([MARKS.field(name) for name in ("candidate_id", *MARKS.names[4:])]).empty_table()
    if config.diversity.guard_test:
        near = near_reference(rows, run.read_table(TEST), config.diversity).rename_columns(near.column_names)
    return conflicts.join(near, "candidate_id", join_type="full outer").sort_by("candidate_id").select(MARKS.names).cast(MARKS)


def marked(rows: pa.Table, marks: pa.Table) -> pa.Table:
    """``rows`` with the columns of :data:`MARKS`, ``""`` and 0 where there is nothing."""
    places = pc.index_in(rows["candidate_id"], value_set=marks["candidate_id"].combine_chunks())
    for field in list(MARKS)[1:]:
        empty = "" if field.type == pa.string() else 0.0
        rows = rows.append_column(field, pc.fill_null(marks[field.name].combine_chunks().take(places), empty))
    return rows


def barred(rows: pa.Table) -> pa.ChunkedArray:
    """Which of the :func:`marked` rows are dropped."""
    return pc.or_(pc.not_equal(rows["near_test"], ""), pc.not_equal(rows["conflict"], ""))


def dropped(rows: pa.Table) -> pa.Table:
    """Rows that stay out of the deduplication, with its columns."""
    found = []
    for row in rows.select(MARKS.names).to_pylist():
        if row["near_test"]:
            found.append((TEST_PREFIX + row["near_test"], row["near_test_similarity"], f"near test example {row['near_test']}"))
        else:
            said = f"labelling conflict with {row['conflict']} under {row['conflict_relation']}"
            found.append((row["conflict"], row["conflict_similarity"], said))
    return _with_decision(rows, found)


def copies_of_seeds(rows: pa.Table, seeds: pa.Table, settings: DiversityConfig) -> pa.Table:
    """Rows that come as near a seed of their relation as ``seed_threshold``, with the columns of the deduplication."""
    near = near_reference(rows, seeds, settings.model_copy(update={"threshold": settings.seed_threshold}))
    rows = rows.filter(pc.is_in(rows["candidate_id"], near["candidate_id"].combine_chunks())).sort_by("candidate_id")
    named = [(SEED_PREFIX + row["near"], row["similarity"]) for row in near.to_pylist()]
    return _with_decision(rows, [(name, similarity, f"near copy of {name}") for name, similarity in named])


def _with_decision(rows: pa.Table, found: list[tuple[str, float, str]]) -> pa.Table:
    """Dropped rows; of each what it is near, how much so, and why it goes."""
    values = {
        "cluster": rows["candidate_id"].to_pylist(),
        "nearest_id": [name for name, *_ in found],
        "similarity": [similarity for _, similarity, _ in found],
        "unique": [False] * len(found),
        "reason": [f"{reason} ({similarity:.2f})" for _, similarity, reason in found],
    }
    for name, column in values.items():
        rows = rows.append_column(name, pa.array(column, SCORES.field(name).type))
    return rows


def score_tables(rounds: int) -> list[str]:
    """The score tables of the rounds before ``rounds``."""
    return [Round.of(number).scores for number in range(rounds)]
