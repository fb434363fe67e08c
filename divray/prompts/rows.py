"""From drafts to request rows: prompt texts, ids, seeds, tables.

Rows are a pure function of the settings, the relations, the examples and the plan of their wave: they come
out the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from math import floor
from typing import Any, NamedTuple

import pyarrow as pa

from divray.config import Config
from divray.prompts.notes import fitting_notes
from divray.prompts.strategies import GROWING, STRATEGIES, Draft
from divray.relations import Example, Relation, render_marked
from divray.runs import RunFolder
from divray.sampling.constraint import list_pattern, shape_of
from divray.sampling.waves import apportion, opening_counts
from divray.schemas import BASE, NAIVE, PROMPTS, TUNED

ROWS_PER_FILE = 32
"""Request rows in one Parquet file, which is one block of the sampling pass and so the grain of a resume."""

MEASURED = 12
"""Prompts of each strategy whose length counts when a relation's notes are chosen."""

Renderer = Callable[[list[dict[str, str]]], str]
Length = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class Wave:
    """Which candidates of a round are asked for now.

    Attributes:
        number: 0 for a round's first wave.
        first: Relation -> strategy -> candidates asked for in the waves before.
        count: Relation -> strategy -> candidates asked for now.
        accepted: Relation -> samples accepted before, in order of their ids.
    """

    number: int
    count: Mapping[str, Mapping[str, int]]
    first: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    accepted: Mapping[str, list[Example]] = field(default_factory=dict)


def render_prompt(relation: Relation, draft: Draft, chat: Renderer | None = None, notes: tuple[str, ...] = ()) -> str:
    """Task, relation, wish and numbered demonstrations, up to the number of the new sentence.

    Args:
        relation: The relation that the sentence must state.
        draft: The strategy's choices.
        chat: Renders messages by the model's chat template; without it the prompt is plain text
            that the model continues.
        notes: Lines that end the head of the prompt (:mod:`divray.prompts.notes`).
    """
    lines = [
        "Each sentence below states one and the same relation between a head and a tail. The head stands in [ ] and the tail in { }.",
        "",
        f"Relation: {relation.name}",
        f"Meaning: {relation.description}",
    ]
    if draft.wish:
        lines.append("Every sentence is as different as possible from the others: other names, other words, another structure.")
    lines += [*notes, ""]
    lines += [f"{number}. {render_marked(example)}" for number, example in enumerate(draft.demonstrations, 1)]
    if draft.hint:
        lines.append(draft.hint)
    number = len(draft.demonstrations) + 1
    if chat is None:
        return "\n".join([*lines, f"{number}."])
    last = number + draft.sentences - 1
    wanted = f"sentence {number}" if last == number else f"sentences {number} to {last}, one a line"
    lines.append(f"Write {wanted}, and nothing else.")
    return chat([{"role": "user", "content": "\n".join(lines)}]) + f"{number}."


def first_wave(config: Config, relations: list[Relation], round_: int) -> Wave:
    """The round's first wave: everything, or a share of it where further waves follow."""
    counts = split_by_strategy(config, opening_counts(config, [relation.name for relation in relations]))
    if round_ == 0:
        counts = {name: {**shares, NAIVE: config.sampling.naive_candidates_per_relation} for name, shares in counts.items()}
    return Wave(0, counts)


def split_by_strategy(config: Config, wanted: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Relation -> candidates, to relation -> strategy -> candidates."""
    return {name: apportion(config.prompts.strategies, count) for name, count in wanted.items()}


def request_rows(
    config: Config,
    relations: list[Relation],
    seeds: list[Example],
    round_: int,
    chat: Renderer | None = None,
    wave: Wave | None = None,
    length: Length | None = None,
) -> Iterator[dict[str, Any]]:
    """The request rows (``schemas.PROMPTS``) of one wave; candidates of one prompt stand together."""
    slugs, shape = _slugs(relations), shape_of(seeds)
    wave = wave or first_wave(config, relations, round_)
    for relation in relations:
        counts = wave.count.get(relation.name)
        if not counts:
            continue
        own = [seed for seed in seeds if seed.relation == relation.name]
        planned = partial(_planned, config, wave, relation, f"r{round_:02d}-{slugs[relation.name]}", own)
        notes = _notes(config, relation, planned, chat, length)
        for name, count in counts.items():
            before = wave.first.get(relation.name, {}).get(name, 0)
            for plan in planned(name, count):
                draft = plan.draft
                for number in range(plan.start, plan.end, draft.sentences):
                    asked = replace(draft, sentences=min(draft.sentences, plan.end - number))
                    prompt = render_prompt(relation, asked, chat, () if name == NAIVE else notes)
                    candidate_id = numbered(plan.prefix, before + number)
                    yield {
                        "candidate_id": candidate_id,
                        "relation": relation.name,
                        "round": round_,
                        "strategy": name,
                        "prompt_id": plan.prompt_id,
                        "prompt": prompt,
                        "pattern": list_pattern(draft.pattern(shape), len(draft.demonstrations) + 1, asked.sentences)
                        if config.sampling.constrained
                        else "",
                        "seed": _number(config.seed, candidate_id) % 2**31,
                        "demonstrations": [example.example_id for example in draft.demonstrations],
                        "sentences": asked.sentences,
                        "length": length(prompt) if length else None,
                        "policy": BASE if round_ == 0 or _falls(before + number, draft.sentences, config.sampling.base_share) else TUNED,
                    }


class _Planned(NamedTuple):
    """One prompt and the candidates ``start`` to ``end`` of its wave that it asks for."""

    prefix: str
    prompt_id: str
    start: int
    end: int
    draft: Draft


def _planned(
    config: Config, wave: Wave, relation: Relation, prefix: str, seeds: list[Example], strategy: str, count: int
) -> Iterator[_Planned]:
    prefix, block = f"{prefix}-{strategy}", config.prompts.candidates_per_prompt
    examples = [*seeds, *wave.accepted.get(relation.name, [])] if strategy in GROWING else seeds
    for start in range(0, count, block):
        prompt_id = f"{prefix}-w{wave.number:02d}-{start // block:04d}" if wave.number else f"{prefix}-{start // block:04d}"
        draft = STRATEGIES[strategy](config, relation, examples, random.Random(_number(config.seed, prompt_id)))
        yield _Planned(prefix, prompt_id, start, min(start + block, count), draft)


def _notes(
    config: Config,
    relation: Relation,
    planned: Callable[[str, int], Iterator[_Planned]],
    chat: Renderer | None,
    length: Length | None,
) -> tuple[str, ...]:
    """The notes of a relation, one choice for all strategies, whose prompts then share their head."""
    block = config.prompts.cache_block
    if not block or length is None:
        return ()
    some = [plan.draft for name in config.prompts.strategies for plan in planned(name, MEASURED * config.prompts.candidates_per_prompt)]
    return fitting_notes([partial(render_prompt, relation, draft, chat) for draft in some], length, block)


def _falls(number: int, step: int, share: float) -> bool:
    """Does every ``1 / share``-th request, evenly spread, fall on the one that asks for candidate ``number``?"""
    place = number // step
    return floor((place + 1) * share) > floor(place * share)


def numbered(prefix: str, number: int) -> str:
    """The id of candidate ``number`` of one relation and strategy."""
    return f"{prefix}-{number:06d}"


def candidate_ids(request_id: str, sentences: int) -> list[str]:
    """The ids of the candidates of one request, whose first has the request's own."""
    prefix, _, number = request_id.rpartition("-")
    return [request_id, *(numbered(prefix, int(number) + further) for further in range(1, sentences))]


def write_prompts(run: RunFolder, name: str, rows: Iterator[dict[str, Any]], stem: str = "part") -> int:
    """Write request rows in small files ``<stem>-XXXXXX`` as they come; returns how many.

    The table is replaced, unless ``stem`` names a later wave.
    """
    if stem == "part":
        run.delete(name)
    total = part = 0
    while chunk := list(islice(rows, ROWS_PER_FILE)):
        run.write_parquet(f"{name}/{stem}-{part:06d}.parquet", pa.Table.from_pylist(chunk, PROMPTS))
        total, part = total + len(chunk), part + 1
    return total


def _slugs(relations: list[Relation]) -> dict[str, str]:
    slugs: dict[str, str] = {}
    for number, relation in enumerate(relations):
        slug = re.sub(r"[^a-z0-9]+", "-", relation.name.lower()).strip("-") or f"relation-{number}"
        slugs[relation.name] = slug if slug not in slugs.values() else f"{slug}-{number}"
    return slugs


def _number(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
