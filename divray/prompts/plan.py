"""What a wave asks for: how many candidates of which strategy, their ids, and the draft behind each prompt.

All of it follows from the settings, the relations, the examples and the wave, so that it comes out the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import floor
from typing import NamedTuple

from divray.config import Config
from divray.prompts.strategies import GROWING, STRATEGIES, Draft
from divray.prompts.waves import apportion, opening_counts
from divray.relations import Example, Relation
from divray.schemas import NAIVE


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


def first_wave(config: Config, relations: list[Relation], round_: int) -> Wave:
    """The round's first wave: everything, or a share of it where further waves follow."""
    counts = split_by_strategy(config, opening_counts(config, [relation.name for relation in relations]))
    if round_ == 0:
        counts = {name: {**shares, NAIVE: config.sampling.naive_candidates_per_relation} for name, shares in counts.items()}
    return Wave(0, counts)


def split_by_strategy(config: Config, wanted: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Relation -> candidates, to relation -> strategy -> candidates."""
    return {name: apportion(config.prompts.strategies, count) for name, count in wanted.items()}


class Planned(NamedTuple):
    """One prompt, and the candidates ``start`` to ``end`` of its wave that it asks for."""

    prompt_id: str
    start: int
    end: int
    draft: Draft


def planned(
    config: Config, wave: Wave, relation: Relation, prefix: str, seeds: list[Example], count: int, strategy: str
) -> Iterator[Planned]:
    """The prompts that ask for ``count`` candidates of one relation and strategy.

    Args:
        prefix: What their ids begin with.
        seeds: Of this relation.
    """
    block = config.prompts.candidates_per_prompt
    examples = [*seeds, *wave.accepted.get(relation.name, [])] if strategy in GROWING else seeds
    for start in range(0, count, block):
        prompt_id = f"{prefix}-w{wave.number:02d}-{start // block:04d}" if wave.number else f"{prefix}-{start // block:04d}"
        draft = STRATEGIES[strategy](config, relation, examples, random.Random(number_of(config.seed, prompt_id)))
        yield Planned(prompt_id, start, min(start + block, count), draft)


def evenly_picked(number: int, step: int, share: float) -> bool:
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


def slugs_of(relations: list[Relation]) -> dict[str, str]:
    """Relation -> its name as a distinct part of an id."""
    slugs: dict[str, str] = {}
    for number, relation in enumerate(relations):
        slug = re.sub(r"[^a-z0-9]+", "-", relation.name.lower()).strip("-") or f"relation-{number}"
        while slug in slugs.values():
            slug = f"{slug}-{number}"
        slugs[relation.name] = slug
    return slugs


def number_of(seed: int, name: str) -> int:
    """A number of 64 bits that follows from the run's seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
