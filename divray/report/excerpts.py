"""The few rows of a run that a reader sees: picked by a fixed rule, never by hand."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from divray.report import clusters
from divray.report.account import rounds_of
from divray.report.lookup import sentences_of
from divray.report.scan import BINS, SPANS, Row, batches, rows
from divray.schemas import NAIVE

if TYPE_CHECKING:
    from divray.config import Config
    from divray.run_folder import RunFolder

SAMPLES_PER_RELATION = 5
REJECTIONS_PER_REASON = 2
NEAR_DUPLICATES = 8
PAIRS = 3


def excerpts(config: Config, run: RunFolder) -> dict[str, Any]:
    """Rows for the report: ``near_duplicates``, ``clusters``, ``conflicts``, ``similarities``, ``samples``, ``rejections``, ``pairs``,
    ``histogram``."""
    folders = [f"round-{number:02d}" for number in rounds_of(config, run)]
    return {
        "near_duplicates": near_duplicates(run, folders),
        "clusters": clusters.largest_clusters(run, folders),
        "conflicts": clusters.conflicts(run, folders),
        "similarities": clusters.similarities(run, folders),
        "samples": samples(run),
        "rejections": rejections(run, folders),
        "pairs": pairs(run, folders),
        "histogram": histogram(run, folders),
    }


def near_duplicates(run: RunFolder, folders: list[str]) -> list[Row]:
    """Dropped sentences, each with its nearest ``neighbour``: a relation's closest ones that are not identical first.

    The relations take turns, so that no single one fills the page.
    """
    import pyarrow.dataset as pads

    where = (~pads.field("unique")) & (pads.field("strategy") != NAIVE) & (pads.field("nearest_id") != "")
    columns = ["candidate_id", "relation", *SPANS, "nearest_id", "similarity", "reason"]
    best: dict[str, list[Row]] = defaultdict(list)
    for folder in folders:
        for row in rows(run, f"{folder}/scores", columns, where):
            best[row["relation"]].append(row)
            if len(best[row["relation"]]) > 8 * NEAR_DUPLICATES:
                best[row["relation"]] = heapq.nsmallest(NEAR_DUPLICATES, best[row["relation"]], key=_closeness)
    ranked = [sorted(group, key=_closeness) for _, group in sorted(best.items())]
    chosen = [group[turn] for turn in range(NEAR_DUPLICATES) for group in ranked if turn < len(group)][:NEAR_DUPLICATES]
    known = sentences_of(run, folders, {row["nearest_id"] for row in chosen})
    return [{**row, "neighbour": known[row["nearest_id"]]} for row in chosen if row["nearest_id"] in known]


def samples(run: RunFolder) -> dict[str, list[Row]]:
    """Relation -> some of its selected samples, in the order of a hash of their ids."""
    columns = ["sample_id", "relation", *SPANS, "head_type", "tail_type", "round", "strategy", "audit", "novelty"]
    return _first_by_hash(rows(run, "comparison/selected", columns), "relation", "sample_id", SAMPLES_PER_RELATION)


def rejections(run: RunFolder, folders: list[str]) -> dict[str, list[Row]]:
    """Reason -> some of the completions that were rejected for it."""
    import pyarrow.dataset as pads

    where = (pads.field("rejection") != "") & (pads.field("strategy") != NAIVE)
    columns = ["candidate_id", "relation", "completion", "rejection"]
    found = (row for folder in folders for row in rows(run, f"{folder}/samples", columns, where))
    return _first_by_hash(found, "rejection", "candidate_id", REJECTIONS_PER_REASON)


def pairs(run: RunFolder, folders: list[str]) -> list[Row]:
    """Some preference pairs, of different relations."""
    found = (row for folder in folders for row in rows(run, f"{folder}/pairs", ["pair_id", "relation", "chosen", "rejected", "kind"]))
    one_each = [group[0] for group in _first_by_hash(found, "relation", "pair_id", 1).values()]
    return sorted(one_each, key=lambda row: _hash(row["pair_id"]))[:PAIRS]


def histogram(run: RunFolder, folders: list[str]) -> dict[str, list[int]]:
    """Valid samples by the judge's score in 20 bins of [0, 1]: those that pass the gate, and those that do not."""
    import numpy as np
    import pyarrow.dataset as pads

    counts = {True: np.zeros(BINS, dtype=np.int64), False: np.zeros(BINS, dtype=np.int64)}
    for folder in folders:
        for batch in batches(run, f"{folder}/scores", ["correctness", "correct"], pads.field("strategy") != NAIVE):
            values = np.nan_to_num(batch["correctness"].to_numpy(zero_copy_only=False))
            passed = np.asarray([bool(value) for value in batch["correct"].to_pylist()])
            places = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
            for kind, count in counts.items():
                count += np.bincount(places[passed == kind], minlength=BINS)
    if not sum(int(count.sum()) for count in counts.values()):
        return {}
    return {"passed": counts[True].tolist(), "failed": counts[False].tolist()}


def _first_by_hash(found: Any, key: str, identity: str, count: int) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        group = groups[row[key]]
        group.append(row)
        if len(group) > 8 * count + 64:
            groups[row[key]] = heapq.nsmallest(count, group, key=lambda r: _hash(r[identity]))
    return {name: heapq.nsmallest(count, groups[name], key=lambda r: _hash(r[identity])) for name in sorted(groups)}


def _closeness(row: Row) -> tuple[bool, float, str]:
    similarity = row["similarity"] or 0.0
    return similarity >= 1.0, -similarity, row["candidate_id"]


def _hash(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()
