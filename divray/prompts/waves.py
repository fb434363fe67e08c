"""Waves: a round's candidates asked for in passes, each planned from what the ones before gave.

Without a quota the candidates are spread evenly, and what a wave gives helps the next one's prompts (see
``one_by_one``).  With a quota every relation is asked until it has ``sampling.quota`` accepted samples
(valid, unique and correct by the ``score`` stage's own rules), and the budget goes to those that are short.
A plan is a pure function of the tables of the waves before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from divray.config import Config
from divray.relations import Example, Relation
from divray.schemas import NAIVE

QUOTA_WAVES = 6


@dataclass(frozen=True, slots=True)
class Wave:
    """Which candidates of a round are asked for now; ``count`` and ``first`` are relation -> strategy -> candidates."""

    number: int  # 0 for a round's first wave
    count: Mapping[str, Mapping[str, int]]  # asked for now
    first: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # asked for in the waves before
    accepted: Mapping[str, list[Example]] = field(default_factory=dict)  # relation -> samples accepted before, in order of their ids


@dataclass(frozen=True, slots=True)
class Tally:
    """One relation in the round so far: candidates asked for, accepted, and tokens generated."""

    asked: int
    accepted: int
    tokens: int


def wave_count(config: Config) -> int:
    """How many waves a round has, at most."""
    return config.sampling.waves or (QUOTA_WAVES if config.sampling.quota else 1)


def first_wave(config: Config, relations: Sequence[Relation], round_: int, accepted: Mapping[str, list[Example]] | None = None) -> Wave:
    """The round's first wave: everything, or a share of it where further waves follow; round 0 has the naive baseline, too."""
    counts = split_by_strategy(config, opening_counts(config, [relation.name for relation in relations]))
    if round_ == 0:
        counts = {name: {**shares, NAIVE: config.sampling.naive_candidates_per_relation} for name, shares in counts.items()}
    return Wave(0, counts, accepted=accepted or {})


def split_by_strategy(config: Config, wanted: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Relation -> candidates, to relation -> strategy -> candidates."""
    return {name: apportion(config.prompts.strategies, count) for name, count in wanted.items()}


def opening_counts(config: Config, relations: Sequence[str]) -> dict[str, int]:
    """Relation -> candidates in a round's first wave."""
    sampling = config.sampling
    if sampling.quota is None:
        count = sampling.candidates_per_relation // wave_count(config) or sampling.candidates_per_relation
    else:
        count = min(_wanted(Tally(0, 0, 0), sampling.quota), sampling.candidates_per_relation)
    return dict.fromkeys(relations, count)


def next_counts(config: Config, tallies: Mapping[str, Tally], wave: int) -> tuple[dict[str, int], str]:
    """Relation -> candidates of wave ``wave``, or none and the reason why the round ends here; ``tallies`` has every relation."""
    sampling = config.sampling
    short = {name: tally for name, tally in tallies.items() if sampling.quota is None or tally.accepted < sampling.quota}
    if not short:
        return {}, "quota"
    if wave >= wave_count(config):
        return {}, "waves"
    if sampling.quota is None:
        left = wave_count(config) - wave
        counts = {name: ceil((sampling.candidates_per_relation - tally.asked) / left) for name, tally in tallies.items()}
        return {name: count for name, count in counts.items() if count > 0}, "candidates"
    wanted = {name: min(_wanted(tally, sampling.quota), 2 * max(tally.asked, sampling.quota)) for name, tally in short.items()}
    asked = sum(tally.asked for tally in tallies.values())
    room = sampling.candidates_per_relation * len(tallies) - asked
    if room <= 0:
        return {}, "candidates"
    if (total := sum(wanted.values())) > room:
        wanted = apportion({name: count / total for name, count in wanted.items()}, room)
    return {name: count for name, count in wanted.items() if count > 0}, ""


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Largest remainders: whole numbers in proportion to ``shares`` that sum to ``total``."""
    weight = sum(shares.values())
    exact = {name: total * share / weight for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _wanted(tally: Tally, quota: int) -> int:
    """Candidates that bring a relation to its quota at its acceptance rate so far (rule of succession)."""
    return ceil((quota - tally.accepted) * (tally.asked + 2) / (tally.accepted + 1))


def quota_account(config: Config, tallies: Mapping[str, Tally], ended_by: str, waves: int) -> dict[str, Any]:
    """What the quota gave, and what is missing where."""
    quota = config.sampling.quota or 0
    missing = {name: max(0, quota - tally.accepted) for name, tally in tallies.items()}
    return {
        "quota": quota,
        "waves": waves,
        "ended_by": ended_by,
        "relations": {name: {"asked": one.asked, "accepted": one.accepted, "missing": missing[name]} for name, one in tallies.items()},
        "missing": sum(missing.values()),
        "generated_tokens": sum(tally.tokens for tally in tallies.values()),
    }
