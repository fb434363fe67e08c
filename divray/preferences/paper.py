"""Pairs after the paper (arXiv 2505.23108): seed examples against relabelled ones, near copies and copies."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from itertools import zip_longest

import pyarrow as pa

from divray.preferences.rows import Row, pair_table
from divray.relations import HEAD_CLOSE, HEAD_OPEN, TAIL_CLOSE, TAIL_OPEN, Example, render_marked
from divray.schemas import NAIVE
from divray.sections import PreferencesConfig

EDITS = (("the", "this"), ("a", "one"), ("an", "one"), ("was", "has been"), ("is", "remains"), ("and", "as well as"), ("in", "within"))
"""Word for word, the first that occurs outside the entities is the slight edit of a near copy."""


def paper_pairs(rows: pa.Table, seeds: pa.Table, settings: PreferencesConfig, seed: int) -> pa.Table:
    """The pairs of one relation after the paper, at most ``max_pairs_per_relation``, evenly over its prompts and kinds.

    Args:
        rows: The relation's ``prompt_id``, ``prompt``, ``strategy`` and ``demonstrations``, in any order, repeats allowed.
        seeds: Seed examples of all relations (``schemas.EXAMPLES``).
        settings: Cap.
        seed: With the prompt's id it decides every choice.
    """
    examples = {example.example_id: example for example in _examples(seeds)}
    prompts = {row["prompt_id"]: row for row in rows.to_pylist() if row["strategy"] != NAIVE}
    each = [list(_paper_pairs_of(prompts[name], examples, seed)) for name in sorted(prompts)]
    in_turn = (pair for some in zip_longest(*each) for pair in some if pair is not None)
    return pair_table(pair for pair, _ in zip(in_turn, range(settings.max_pairs_per_relation), strict=False))


def _paper_pairs_of(prompt: Row, examples: dict[str, Example], seed: int) -> Iterator[Row]:
    rng = random.Random(hashlib.sha256(f"{seed}:{prompt['prompt_id']}".encode()).digest())
    shown = [examples[name] for name in prompt["demonstrations"] if name in examples]
    own = [e for e in examples.values() if e.relation == prompt["relation"]]
    unseen = [e for e in own if e not in shown]
    others = [e for e in examples.values() if e.relation != prompt["relation"]]
    if not unseen:
        return
    wrong: list[tuple[str, str, str]] = []
    if others:
        other = rng.choice(others)
        wrong.append(("relabelled", other.example_id, render_marked(other)))
    if shown:
        copied, edited = rng.choice(shown), rng.choice(shown)
        donor = rng.choice([e for e in own if e is not edited] or others or [edited])
        wrong.append(("near_copy", edited.example_id, near_copy(edited, donor)))
        wrong.append(("copy", copied.example_id, render_marked(copied)))
    rng.shuffle(wrong)
    for kind, rejected_id, rejected in wrong:
        chosen = rng.choice(unseen)
        if render_marked(chosen) != rejected:
            yield {
                "pair_id": f"{prompt['prompt_id']}--{kind}",
                "relation": prompt["relation"],
                "prompt": prompt["prompt"],
                "chosen": f" {render_marked(chosen)}\n",
                "rejected": f" {rejected}\n",
                "kind": kind,
                "chosen_id": f"seed:{chosen.example_id}",
                "rejected_id": f"seed:{rejected_id}",
            }


def near_copy(example: Example, donor: Example) -> str:
    """``example``, marked, with the entities of ``donor`` and one word of its context changed (:data:`EDITS`)."""
    (first, second) = sorted((example.head, example.tail))
    context = [example.text[: first[0]], example.text[first[1] : second[0]], example.text[second[1] :]]
    for word, substitute in EDITS:
        pattern = re.compile(rf"(?<![\w'-]){word}(?![\w'-])")
        hits = [number for number, part in enumerate(context) if pattern.search(part)]
        if hits:
            context[hits[0]] = pattern.sub(substitute, context[hits[0]], count=1)
            break
    else:
        context[0] = f"In fact, {context[0]}"
    entities = {example.head: f"{HEAD_OPEN}{donor.head_text}{HEAD_CLOSE}", example.tail: f"{TAIL_OPEN}{donor.tail_text}{TAIL_CLOSE}"}
    return context[0] + entities[first] + context[1] + entities[second] + context[2]


def _examples(table: pa.Table) -> list[Example]:
    return [
        Example(r["text"], (r["head_start"], r["head_end"]), (r["tail_start"], r["tail_end"]), r["relation"], example_id=r["example_id"])
        for r in table.sort_by("example_id").to_pylist()
    ]
