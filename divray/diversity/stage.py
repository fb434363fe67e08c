"""Near-duplicates of one relation's samples, as pure functions of a set of rows.

The order of the rows, and how they were partitioned before, changes nothing: everything is decided
on rows sorted by id.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray.diversity.clusters import SEED_PREFIX, decide, in_words, ranks
from divray.diversity.distinct import collapse
from divray.diversity.neighbours import near_duplicates, nearest_items
from divray.diversity.shingles import configured_shingles
from divray.diversity.texts import checked, compared_texts
from divray.errors import InputError
from divray.sections import DiversityConfig

NEIGHBOUR_FLOOR = 0.3
"""Jaccard similarity from which a nearest neighbour is named, even if it is no near-duplicate."""

_FIXED_COLUMNS = ("candidate_id", "text", "head_start", "head_end", "tail_start", "tail_end")


def fixed_items(seeds: pa.Table | None = None, samples: pa.Table | None = None) -> pa.Table:
    """What stays whatever comes: seed examples (``schemas.EXAMPLES`` rows, named ``seed:<example_id>``) and
    samples of earlier rounds (``schemas.SCORES`` rows; those with ``unique`` false are left out)."""
    parts = []
    if seeds is not None:
        seeds = checked(seeds, "seeds", "example_id", spans=True)
        names = pc.binary_join_element_wise(SEED_PREFIX, seeds["example_id"].cast(pa.string()), "")
        parts.append(seeds.append_column("candidate_id", names).select(_FIXED_COLUMNS))
    if samples is not None:
        if "unique" in samples.column_names:
            samples = samples.filter(pc.equal(samples["unique"], True))
        samples = checked(samples, "samples", "candidate_id", spans=True)
        samples = samples.select(_FIXED_COLUMNS)
        parts.append(samples.set_column(0, "candidate_id", samples["candidate_id"].cast(pa.string())))
    if not parts:
        kinds = [pa.string()] * 2 + [pa.int32()] * 4
        return pa.schema(zip(_FIXED_COLUMNS, kinds, strict=True)).empty_table()
    return pa.concat_tables([part.replace_schema_metadata() for part in parts], promote_options="permissive")


def deduplicate(table: pa.Table, config: DiversityConfig, kept: pa.Table | None = None) -> pa.Table:
    """Find the near-duplicates among one relation's samples and say which of them stay.

    Args:
        table: Columns ``candidate_id`` and ``text``, the four span columns where entities are masked, and
            maybe ``correctness``; any other columns are passed through.
        config: Shingles, threshold, masking.
        kept: Items that stay whatever comes, from :func:`fixed_items`; their ids don't occur in ``table``.  Its samples are taken
            to be apart, as an earlier call leaves them: they are compared with ``table`` and with seeds, not with each other.

    Returns:
        ``table`` sorted by ``candidate_id``, with the columns ``cluster``, ``nearest_id``, ``similarity``,
        ``unique`` and ``reason`` of ``schemas.SCORES`` put in or replaced. ``nearest_id`` is the most similar
        other item from Jaccard :data:`NEIGHBOUR_FLOOR` on (of equally similar ones first a kept one, then
        the smallest id), else ``""`` with similarity 0.

    Raises:
        InputError: a column is missing or of a wrong kind, an id occurs twice, or a text or an id is null.
    """
    table = checked(table, "samples", "candidate_id", spans=config.mask_entities)
    table = table.sort_by("candidate_id")
    n = compared = table.num_rows
    id_columns = [table["candidate_id"]]
    texts = compared_texts(table, config.mask_entities)
    if kept is not None and kept.num_rows:
        kept = checked(kept, "kept", "candidate_id", spans=config.mask_entities)
        # Seeds come first: they alone may be near each other.
        is_seed = pc.starts_with(kept["candidate_id"].cast(pa.large_string()), SEED_PREFIX)
        compared += pc.sum(is_seed).as_py()
        kept = pa.concat_tables([kept.filter(is_seed), kept.filter(pc.invert(is_seed))])
        id_columns.append(kept["candidate_id"])
        texts = texts + compared_texts(kept, config.mask_entities)
    chunks = [chunk.cast(pa.large_string()) for column in id_columns for chunk in column.chunks]
    ids = pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
    by_id = ranks(ids)
    ordered = ids.take(pa.array(np.argsort(by_id)))
    if (repeated := pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()) >= 0:
        twice = ordered[repeated].as_py()
        raise InputError("samples", "candidate_id", f"{twice!r} occurs twice", "Give every row, and every kept item, its own id.")
    fixed = np.arange(len(ids)) >= n
    correctness = np.full(len(ids), np.nan)
    if "correctness" in table.column_names:
        correctness[:n] = table["correctness"].cast(pa.float64()).to_numpy()

    shingles = configured_shingles(texts, config)
    first, group = collapse(shingles)
    sets = shingles.take(first)
    own = int(np.searchsorted(first, compared))
    pairs = near_duplicates(*sets, config.threshold, config.permutations, config.bands, own=own)
    decisions = decide(ids, pairs, correctness, fixed, group, config.rule)

    preference = by_id + np.where(decisions.kept, 0, len(ids))
    floor = min(NEIGHBOUR_FLOOR, config.threshold)
    nearest, similarity = nearest_items(group, preference, pairs.at_least(floor), sets, floor, own=int(np.searchsorted(first, n)))

    names = pc.fill_null(ids.take(pa.array(nearest[:n], mask=nearest[:n] < 0)), "")
    columns = {
        "cluster": ids.take(pa.array(decisions.cluster[:n])).cast(pa.string()),
        "nearest_id": names.cast(pa.string()),
        "similarity": pa.array(similarity[:n], pa.float64()),
        "unique": pa.array(decisions.kept[:n], pa.bool_()),
        "reason": in_words(decisions.why[:n], decisions.copy_of[:n], decisions.copy_similarity[:n], ids),
    }
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    return table
