"""Pairs after the paper (arXiv 2505.23108): seed examples against relabelled ones, near copies and copies."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from divray.prompts.record import completion_of
from divray.relations import Example, Relation
from divray.schemas import NAIVE, PAIRS
from divray.sections import PreferencesConfig

EDITS = (("the", "this"), ("a", "one"), ("an", "one"), ("was", "has been"), ("is", "remains"), ("and", "as well as"), ("in", "within"))
"""Word for word, the first that occurs outside the entities is the slight edit of a near copy."""


def paper_pairs(
    rows: pa.Table,
    relations: Mapping[str, Relation],
    seeds: Sequence[Example],
    settings: PreferencesConfig,
    seed: int,
    chat: bool = False,
) -> pa.Table:
    """The pairs of one relation after the paper, at most ``max_pairs_per_relation``, evenly over its prompts and kinds.

    Args:
        rows: The relation's ``prompt_id``, ``prompt``, ``head``, ``strategy`` and ``demonstrations``, in any order, repeats allowed.
        relations: All relations by name.
        seeds: Seed examples of all relations.
        settings: Cap.
        seed: With the prompt's id it decides every choice.
        chat: Whether records are JSON.
    """
    examples = {example.example_id: example for example in sorted(seeds, key=lambda example: example.example_id)}
    prompts = {row["prompt_id"]: row for row in rows.to_pylist() if row["strategy"] != NAIVE}
    each = [list(_paper_pairs_of(prompts[name], relations, examples, seed, chat)) for name in sorted(prompts)]
    in_turn = (pair for some in zip_longest(*each) for pair in some if pair is not None)
    return pair_table(pair for pair, _ in zip(in_turn, range(settings.max_pairs_per_relation), strict=False))


def _paper_pairs_of(
    prompt: Row, relations: Mapping[str, Relation], examples: Mapping[str, Example], seed: int, chat: bool
) -> Iterator[Row]:
    rng = random.Random(hashlib.sha256(f"{seed}:{prompt['prompt_id']}".encode()).digest())
    shown = [examples[name] for name in prompt["demonstrations"] if name in examples]
    own = [e for e in examples.values() if e.relation == prompt["relation"]]
    unseen = [e for e in own if e not in shown]
    others = [e for e in examples.values() if e.relation != prompt["relation"]]
    if not unseen:
        return
    wrong: list[tuple[str, Example]] = []
    if others:
        wrong.append(("relabelled", rng.choice(others)))
    if shown:
        copied, edited = rng.choice(shown), rng.choice(shown)
        donor = rng.choice([e for e in own if e is not edited] or others or [edited])
        wrong.append(("near_copy", near_copy(edited, donor)))
        wrong.append(("copy", copied))
    rng.shuffle(wrong)
    for kind, example in wrong:
        chosen = rng.choice(unseen)
        texts = [completion_of(relations[prompt["relation"]], e, bool(prompt["head"]), chat) for e in (chosen, example)]
        if texts[0] != texts[1]:
            ids = [f"seed:{e.example_id}" for e in (chosen, example)]
            yield pair_of(prompt, prompt["prompt_id"], kind, (ids[0], texts[0]), (ids[1], texts[1]))


def near_copy(example: Example, donor: Example) -> Example:
    """``example`` with the entities of ``donor`` and, where one of :data:`EDITS` fits, one word of its context changed."""
    first, second = sorted((example.head, example.tail))
    context = [example.text[: first[0]], example.text[first[1] : second[0]], example.text[second[1] :]]
    for word, substitute in EDITS:
        pattern = re.compile(rf"(?<![\w'-]){word}(?![\w'-])")
        hits = [number for number, part in enumerate(context) if pattern.search(part)]
        if hits:
            context[hits[0]] = pattern.sub(substitute, context[hits[0]], count=1)
            break
    entities = {example.head: donor.head_text, example.tail: donor.tail_text}
    text, spans = context[0], {}
    for span, following in zip((first, second), context[1:], strict=True):
        spans[span] = (len(text), len(text) + len(entities[span]))
        text += entities[span] + following
    return Example(text, spans[example.head], spans[example.tail], example.relation, example_id=example.example_id)


Row = dict[str, Any]


def pair_of(prompt: Row, name: str, kind: str, chosen: tuple[str, str], rejected: tuple[str, str]) -> Row:
    """A row of ``PAIRS`` under the prompt of row ``prompt``; both sides are id and text."""
    return {
        "pair_id": f"{name}--{kind}",
        "relation": prompt["relation"],
        "prompt": prompt["prompt"],
        "chosen": chosen[1],
        "rejected": rejected[1],
        "kind": kind,
        "chosen_id": chosen[0],
        "rejected_id": rejected[0],
    }


def pair_table(pairs: Iterable[Row]) -> pa.Table:
    """The pairs sorted by ``pair_id``."""
    return pa.Table.from_pylist(sorted(pairs, key=lambda pair: pair["pair_id"]), PAIRS)
