"""Pairs mined from a round's own candidates, after DivPO."""

from __future__ import annotations

import math
from collections import defaultdict

import pyarrow as pa

from divray.preferences.rows import Row, pair_table
from divray.schemas import SCORES
from divray.sections import PreferencesConfig

CANDIDATES = pa.schema(
    [
        *(SCORES.field(name) for name in ("candidate_id", "relation", "strategy", "prompt_id", "prompt", "completion")),
        *(SCORES.field(name) for name in ("correctness", "correct", "unique", "novelty")),
        pa.field("valid", pa.bool_()),
    ]
)
"""Candidates for a pair: scored samples, and whole but invalid completions with the worst scores."""


def mined_pairs(rows: pa.Table, settings: PreferencesConfig) -> pa.Table:
    """The pairs of one relation by DivPO's rule, at most ``max_pairs_per_relation``.

    Every prompt's first pair comes before any prompt's second; among these the larger margin
    ``(r + d of chosen) - (r + d of rejected)`` goes first.

    Args:
        rows: The columns of :data:`CANDIDATES`, in any order.
        settings: Mode, share and cap.
    """
    prompts: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows.to_pylist(), key=lambda row: row["candidate_id"]):
        prompts[row["prompt_id"]].append(row)
    ranked: list[tuple[int, float, Row]] = []
    spare: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for candidates in prompts.values():
        good, bad = _sides(candidates, settings.quality)
        pairs = _matched(good, bad)
        ranked += [(rank, -_margin(one, other), _pair(one, other, "mined")) for rank, (one, other) in enumerate(pairs)]
        used = {row["candidate_id"] for pair in pairs for row in pair}
        pool = spare[candidates[0]["strategy"]]
        pool[0].extend(row for row in good if row["candidate_id"] not in used)
        pool[1].extend(row for row in bad if row["candidate_id"] not in used)
    for good, bad in spare.values():
        across = _matched(sorted(good, key=_most_different), sorted(bad, key=_least_different))
        ranked += [(len(rows), -_margin(one, other), _pair(one, other, "mined_across")) for one, other in across]
    ranked.sort(key=lambda entry: (entry[0], entry[1], entry[2]["pair_id"]))
    return pair_table(pair for _, _, pair in ranked[: settings.max_pairs_per_relation])


def _sides(candidates: list[Row], quality: float) -> tuple[list[Row], list[Row]]:
    """What may be chosen, most different first, and what may be rejected, least different first."""
    valid = sorted((row for row in candidates if row["valid"]), key=lambda row: (-row["correctness"], row["candidate_id"]))
    count = math.ceil(quality * len(valid))
    good = sorted((row for row in valid[:count] if row["correct"] and row["unique"]), key=_most_different)
    chosen = {row["candidate_id"] for row in good}
    bad = sorted((row for row in valid[-count:] if row["candidate_id"] not in chosen), key=_least_different) if count else []
    return good, bad or [row for row in candidates if not row["valid"]]


def _matched(good: list[Row], bad: list[Row]) -> list[tuple[Row, Row]]:
    """Each chosen one with the first rejected one that is left and worse, as text or as a copy."""
    left, pairs = list(bad), []
    for one in good:
        for other in left:
            worse = other["correctness"] < one["correctness"] or not other["unique"]
            if worse and other["completion"].strip() != one["completion"].strip():
                pairs.append((one, other))
                left.remove(other)
                break
    return pairs


def _difference(row: Row) -> float:
    return float(row["novelty"]) if row["unique"] else 0.0


def _most_different(row: Row) -> tuple[float, float, str]:
    return -_difference(row), -row["correctness"], row["candidate_id"]


def _least_different(row: Row) -> tuple[bool, float, float, str]:
    return not row["valid"], _difference(row), row["correctness"], row["candidate_id"]


def _margin(one: Row, other: Row) -> float:
    return round(one["correctness"] + _difference(one) - other["correctness"] - _difference(other), 6)


def _pair(one: Row, other: Row, kind: str) -> Row:
    chosen, rejected = one["candidate_id"], other["candidate_id"]
    texts = {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
    ids = {"pair_id": f"{chosen}--{rejected}", "chosen_id": chosen, "rejected_id": rejected}
    return ids | texts | {"relation": one["relation"], "kind": kind}
