"""Pairs mined from a round's own candidates: a right and different sample over one that is wrong in a named way.

The chosen one passed the gate, stayed unique and lies far from the others (DivPO, arXiv 2501.18101).  The rejected one is

``broken``
    a completion that is no valid record, or a valid one that the judge puts last;
``mirrored``
    the chosen one's own record with head and tail exchanged (only where the LLM writes the pair, and the two are of different types);
``other_relation``
    a right sample of another relation under this one's prompt;
``near_copy``
    a demonstration with other entities and one word changed;
``alike``
    a right sample that lies close to others.

The ways take turns, so that none prevails.  Every side ends as sampled text ends.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import pyarrow as pa

from divray.preferences.paper import Row, near_copy, pair_of, pair_table
from divray.prompts.record import completion_of
from divray.relations import Example, Relation
from divray.schemas import SCORES
from divray.sections import PreferencesConfig

CANDIDATES = pa.schema(
    [
        *(SCORES.field(name) for name in ("candidate_id", "relation", "strategy", "prompt_id", "prompt", "completion", "text")),
        *(
            SCORES.field(name)
            for name in ("head_start", "head_end", "tail_start", "tail_end", "correctness", "correct", "unique", "novelty")
        ),
        pa.field("given", pa.bool_()),
        pa.field("valid", pa.bool_()),
    ]
)
"""Candidates for a pair: scored samples, and whole but invalid completions; ``given``: the prompt gave the pair."""

WAYS = ("broken", "mirrored", "other_relation", "near_copy", "alike")


def mined_pairs(
    rows: pa.Table,
    relations: Mapping[str, Relation],
    seeds: Sequence[Example],
    others: Mapping[str, Sequence[Example]],
    settings: PreferencesConfig,
    seed: int,
    chat: bool = False,
) -> pa.Table:
    """The pairs of one relation, at most ``max_pairs_per_relation``.

    Args:
        rows: The columns of :data:`CANDIDATES`, in any order.
        relations: All relations by name.
        seeds: Seed examples, of which only this relation's serve.
        others: Relation -> right samples of it, from which ``other_relation`` takes.
        settings: Cap.
        seed: With the chosen one's id it decides every draw.
        chat: Whether records are JSON.
    """
    candidates: list[Row] = sorted(rows.to_pylist(), key=lambda row: row["candidate_id"])
    if not candidates:
        return pair_table([])
    relation = relations[candidates[0]["relation"]]
    good = sorted(
        (row for row in candidates if row["valid"] and row["correct"] and row["unique"]),
        key=lambda row: (-row["novelty"], -row["correctness"], row["candidate_id"]),
    )
    count = min(settings.max_pairs_per_relation, max(1, len(good) // 2)) if good else 0
    chosen, alike = good[:count], good[: count - 1 : -1]
    bad = sorted(
        (row for row in candidates if row["valid"] and not row["correct"]), key=lambda row: (row["correctness"], row["candidate_id"])
    )
    invalid = (row for row in candidates if not row["valid"])
    broken = [row for pair in zip_longest(bad, invalid) for row in pair if row is not None]
    seeds = [seed for seed in seeds if seed.relation == relation.name]
    foreign = [example for name in sorted(others) if name != relation.name for example in others[name]]

    def say(row: Row, example: Example) -> str:
        return completion_of(relation, example, row["given"], chat)

    def from_rows(left: list[Row]) -> Callable[[Row, random.Random], tuple[str, str] | None]:
        def take(row: Row, rng: random.Random) -> tuple[str, str] | None:
            other = next((one for one in left if one["given"] == row["given"]), None)
            if other is None:
                return None
            left.remove(other)
            return other["candidate_id"], ended(other["completion"], row["given"], chat)

        return take

    def mirrored(row: Row, rng: random.Random) -> tuple[str, str] | None:
        example = example_of(row)
        back = Example(example.text, example.tail, example.head, example.relation)
        return None if row["given"] or relation.head_type == relation.tail_type else (f"mirror:{row['candidate_id']}", say(row, back))

    def other_relation(row: Row, rng: random.Random) -> tuple[str, str] | None:
        if not foreign:
            return None
        example = rng.choice(foreign)
        return example.example_id, say(row, example)

    def copied(row: Row, rng: random.Random) -> tuple[str, str] | None:
        if not seeds:
            return None
        shown, donor = rng.choice(seeds), example_of(row)
        return f"seed:{shown.example_id}", say(row, near_copy(shown, donor))

    makers: dict[str, Callable[[Row, random.Random], tuple[str, str] | None]] = {
        "broken": from_rows(broken),
        "mirrored": mirrored,
        "other_relation": other_relation,
        "near_copy": copied,
        "alike": from_rows(alike),
    }
    used: Counter[str] = Counter()
    pairs = []
    for row in chosen:
        rng = random.Random(hashlib.sha256(f"{seed}:{row['candidate_id']}".encode()).digest())
        text = ended(row["completion"], row["given"], chat)
        for way in sorted(WAYS, key=lambda way: (used[way], WAYS.index(way))):
            made = makers[way](row, rng)
            if made is not None and made[1] != text:
                used[way] += 1
                pairs.append(pair_of(row, row["candidate_id"], way, (row["candidate_id"], text), made))
                break
    return pair_table(pairs)


def ended(completion: str, given: bool, chat: bool) -> str:
    """A sampled completion with the end that the engine takes off: the line's, or the record's empty line; JSON ends by itself."""
    return completion if chat else completion.rstrip("\n") + ("\n" if given else "\n\n")


def example_of(row: Row) -> Example:
    """The sample of a valid row."""
    head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
    return Example(row["text"], head, tail, row["relation"], example_id=row["candidate_id"])
