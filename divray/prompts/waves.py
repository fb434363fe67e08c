"""Waves: a round asks for its candidates in passes (waves), and plans each wave from the results of the earlier ones.

Later prompts of :func:`divray.prompts.strategies.one_by_one` show samples from earlier waves.  Without a quota, each wave asks for the same
share of the candidates.  With a quota, a wave asks only for relations with fewer than ``sampling.quota`` accepted samples (valid, unique
and correct by the rules of the ``score`` stage), within the round's budget.
A plan is a pure function of the tables of the waves before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

from divray.config import Config
from divray.relations import Example, Relation
from divray.schemas import NAIVE


@dataclass(frozen=True, slots=True)
class Wave:
    """The candidates that a round asks for in one wave; ``count`` and ``first`` are relation -> strategy -> number of candidates."""

    number: int  # 0 for a round's first wave
    count: Mapping[str, Mapping[str, int]]  # asked for in this wave
    first: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # asked for in the waves before
    accepted: Mapping[str, list[Example]] = field(default_factory=dict)  # relation -> samples accepted before, in order of their ids


class Tally(NamedTuple):
    """One relation in the round so far: how many candidates the round asked for, and how many of them were accepted."""

    asked: int
    accepted: int


def first_wave(config: Config, relations: Sequence[Relation], round_: int, accepted: Mapping[str, list[Example]] | None = None) -> Wave:
    """The round's first wave: all candidates, or a share if more waves follow.  Round 0 adds those of the naive baseline."""
    sampling = config.sampling
    if sampling.quota is None:
        count = sampling.candidates_per_relation // sampling.most_waves or sampling.candidates_per_relation
    else:
        count = min(_wanted(Tally(0, 0), sampling.quota), sampling.candidates_per_relation)
    shares = apportion(config.prompts.strategies, count)
    if round_ == 0:
        shares[NAIVE] = sampling.naive_candidates_per_relation
    return Wave(0, {relation.name: shares for relation in relations}, accepted=accepted or {})


def next_counts(config: Config, tallies: Mapping[str, Tally], wave: int) -> dict[str, int]:
    """Relation -> candidates of wave ``wave``; empty if the round ends here.  ``tallies`` has every relation."""
    sampling, left = config.sampling, config.sampling.most_waves - wave
    if left <= 0:
        return {}
    if sampling.quota is None:
        wanted = {name: ceil((sampling.candidates_per_relation - tally.asked) / left) for name, tally in tallies.items()}
    else:
        short = {name: tally for name, tally in tallies.items() if tally.accepted < sampling.quota}
        wanted = {name: min(_wanted(tally, sampling.quota), 2 * max(tally.asked, sampling.quota)) for name, tally in short.items()}
        room = max(0, sampling.candidates_per_relation * len(tallies) - sum(tally.asked for tally in tallies.values()))
        if (total := sum(wanted.values())) > room:
            wanted = apportion({name: count / total for name, count in wanted.items()}, room)
    return {name: count for name, count in wanted.items() if count > 0}


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


def quota_account(quota: int, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """For each relation: candidates asked for, accepted samples, and samples missing from the quota.  Also the number missing in all."""
    relations = {name: {**tally._asdict(), "missing": max(0, quota - tally.accepted)} for name, tally in tallies.items()}
    return {"quota": quota, "relations": relations, "missing": sum(one["missing"] for one in relations.values())}
