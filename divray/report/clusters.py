"""What the report shows of near-duplicates as a whole: the largest clusters, labelling conflicts, similarities."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from divray.report.lookup import sentences_of
from divray.report.scan import BINS, SPANS, Row, batches, rows, tally
from divray.schemas import NAIVE

if TYPE_CHECKING:
    import pyarrow.compute as pc

    from divray.run_folder import RunFolder

CLUSTERS = 5
MEMBERS = 4
CONFLICTS = 8
LABEL_PAIRS = 12


def largest_clusters(run: RunFolder, folders: list[str]) -> list[Row]:
    """The clusters with the most samples of the loop: ``cluster``, ``relation``, ``size``, ``kept``, ``near_seed`` and some ``members``.

    A cluster is the connected component of near-duplicates in one relation; seeds in it are not counted.  Shown are the
    kept members and then the dropped ones, each by id.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    sizes: Counter[tuple[str, str]] = Counter()
    for folder in folders:
        for batch in batches(run, f"{folder}/scores", ["relation", "cluster"], _compared() & ~pads.field("unique")):
            counted = pa.Table.from_batches([batch]).group_by(["relation", "cluster"]).aggregate([([], "count_all")])
            sizes.update({(row["relation"], row["cluster"]): row["count_all"] for row in counted.to_pylist()})
    # Those with the most dropped members; the kept ones can't change the order by more than their own number.
    leading = sorted(sizes, key=lambda key: (-sizes[key], key))[: 4 * CLUSTERS]
    wanted = pa.array(sorted({name for _, name in leading}), pa.string())
    found: dict[tuple[str, str], Row] = {}
    columns = ["candidate_id", "relation", *SPANS, "cluster", "unique", "similarity", "nearest_id"]
    for folder in folders:
        for row in rows(run, f"{folder}/scores", columns, _compared() & pc.is_in(pads.field("cluster"), wanted)):
            key = row["relation"], row["cluster"]
            if key not in sizes:
                continue
            entry = found.setdefault(key, {"relation": key[0], "cluster": key[1], "size": 0, "kept": 0, "near_seed": False, "members": []})
            entry["size"] += 1
            entry["kept"] += bool(row["unique"])
            entry["near_seed"] |= (row["nearest_id"] or "").startswith("seed:")
            entry["members"] = sorted([*entry["members"], row], key=lambda r: (not r["unique"], r["candidate_id"]))[:MEMBERS]
    ranked = sorted(found.values(), key=lambda entry: (-entry["size"], entry["relation"], entry["cluster"]))
    return ranked[:CLUSTERS]


def conflicts(run: RunFolder, folders: list[str]) -> list[Row]:
    """Some labelling conflicts, each with the sample's row and the ``other`` one; the pairs of labels take turns."""
    import pyarrow.dataset as pads

    columns = ["candidate_id", "relation", *SPANS, "conflict", "conflict_relation", "unique"]
    where = (pads.field("conflict") != "") & (pads.field("strategy") != NAIVE)
    groups: dict[tuple[str, str], list[Row]] = {}
    seen: set[frozenset[str]] = set()
    for folder in folders:
        for row in rows(run, f"{folder}/scores", columns, where):
            first, second = sorted((row["relation"], row["conflict_relation"]))
            group = groups.setdefault((first, second), [])
            pair = frozenset((row["candidate_id"], row["conflict"]))
            if len(group) < CONFLICTS and pair not in seen:
                seen.add(pair)
                group.append(row)
    ordered = [sorted(group, key=lambda row: row["candidate_id"]) for _, group in sorted(groups.items())]
    chosen = [group[turn] for turn in range(CONFLICTS) for group in ordered if turn < len(group)][:CONFLICTS]
    known = sentences_of(run, folders, {row["conflict"] for row in chosen})
    return [{**row, "other": known[row["conflict"]]} for row in chosen if row["conflict"] in known]


def conflict_pairs(run: RunFolder, folders: list[str]) -> list[Row]:
    """How many samples of one ``relation`` are in conflict with an ``other`` one, the most frequent first."""
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    counts: Counter[tuple[str, str]] = Counter()
    own = {"own": pads.field("strategy") != NAIVE, "other": pc.coalesce(pads.field("conflict_relation"), "")}
    for folder in folders:
        for (relation, other, loop), (count,) in tally(run, f"{folder}/scores", ["relation", "other", "own"], derived=own).items():
            if loop and other:
                counts[relation, other] += int(count)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"relation": relation, "other": other, "samples": count} for (relation, other), count in ranked[:LABEL_PAIRS]]


def similarities(run: RunFolder, folders: list[str]) -> dict[str, Any]:
    """Valid samples by similarity to their nearest neighbour, in 20 bins of [0, 1]: ``kept``, ``dropped``, and how many have ``none``."""
    import numpy as np
    import pyarrow.dataset as pads

    counts = {True: np.zeros(BINS, dtype=np.int64), False: np.zeros(BINS, dtype=np.int64)}
    none = 0
    for folder in folders:
        columns = ["nearest_id", "similarity", "unique"]
        for batch in batches(run, f"{folder}/scores", columns, pads.field("strategy") != NAIVE):
            values = np.nan_to_num(batch["similarity"].to_numpy(zero_copy_only=False))
            named = np.asarray([bool(name) for name in batch["nearest_id"].to_pylist()])
            unique = np.asarray([bool(value) for value in batch["unique"].to_pylist()])
            none += int((~named).sum())
            places = np.clip((values * BINS + 1e-9).astype(np.int64), 0, BINS - 1)
            for kind, count in counts.items():
                count += np.bincount(places[named & (unique == kind)], minlength=BINS)
    if not none + sum(int(count.sum()) for count in counts.values()):
        return {}
    return {"kept": counts[True].tolist(), "dropped": counts[False].tolist(), "none": none}


def _compared() -> pc.Expression:
    """Rows of the loop that went through the deduplication."""
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    across = pc.or_kleene(pc.coalesce(pads.field("conflict") != "", False), pc.coalesce(pads.field("near_test") != "", False))
    return (pads.field("strategy") != NAIVE) & ~(across & ~pads.field("unique"))
