"""What an LLM that reads thinks of a record: log-likelihoods under this relation's examples, others', exchanged roles, and none.

With ``s`` the sentence, ``h`` and ``t`` its entities, ``D_r`` the seed records of relation ``r``, and ``l(x | c)`` the mean
log-probability of the tokens of ``x`` after ``c``, in nats:

=============  =======================================================================
``relation``   l(s | D_r, h, t) - mean over other relations r' of l(s | D_r', h, t)
``direction``  l(s | D_r, h, t) - l(s | D_r, t, h)
``types``      l(h, t | D_r) - mean over other relations r' of l(h, t | D_r')
``pair``       l(h, t | D_r)
``sentence``   l(s | D_r, h, t)
``stumble``    the mean of its three smallest terms
``fluency``    l(s | sentences of all relations)
``break``      the mean of its three smallest terms
``answer``     log-odds of yes over no, asked whether the sentence says it, after right and wrong seeds
=============  =======================================================================

The LLM is another than the policy: tuning does not move it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from divray.prompts.record import as_lines, labels
from divray.relations import Example, Relation, render_marked
from divray.scoring.likelihood import Likelihood

READINGS = ("relation", "direction", "types", "pair", "sentence", "stumble", "fluency", "break", "answer")

SHOWN = 6
"""Seed records of a relation before a text, at most."""
OTHERS = 2
"""Other relations that a text is read under: first those with the same entity types."""
MIXED = 12
"""Seed sentences of all relations before a sentence whose fluency is read."""
_HARDEST = 3


class Answerer(Protocol):
    """Who says how likely a yes is."""

    def answers(self, prefix: str, questions: Sequence[str]) -> list[float]:
        """Log-odds of `` yes`` over `` no`` after ``prefix`` and each question, in nats."""
        ...


class _Asked(NamedTuple):
    row: int
    parts: tuple[str, ...]
    what: tuple[str, ...]


class Reader:
    """Reads samples of a task; a relation's prefix is computed once a call, so give it many rows at a time.

    Args:
        likelihood: The LLM.
        answerer: Who is asked yes or no; default: the same LLM.
        relations: All that samples may have, without the none label.
        seeds: Seed examples of these relations.
    """

    def __init__(
        self, likelihood: Likelihood, relations: Sequence[Relation], seeds: Sequence[Example], answerer: Answerer | None = None
    ) -> None:
        self.likelihood, self.answerer = likelihood, answerer or likelihood
        self.relations = {relation.name: relation for relation in relations}
        self.seeds = {name: [seed for seed in seeds if seed.relation == name] for name in self.relations}
        names = list(self.relations)
        self.others = {name: self._others(names, place) for place, name in enumerate(names)}
        turns = zip(*(self._padded(name) for name in names), strict=True)
        self.mixed = [seed for turn in turns for seed in turn if seed is not None][:MIXED]

    def _padded(self, name: str) -> list[Example | None]:
        return [*self.seeds[name][:SHOWN], *[None] * (SHOWN - len(self.seeds[name][:SHOWN]))]

    def _others(self, names: list[str], place: int) -> list[str]:
        own = self.relations[names[place]]
        later = names[place + 1 :] + names[:place]
        return sorted(later, key=lambda name: self._types(self.relations[name]) != self._types(own))[:OTHERS]

    @staticmethod
    def _types(relation: Relation) -> tuple[str, str]:
        return relation.head_type, relation.tail_type

    def read(self, examples: Sequence[Example], without: Sequence[Example] | None = None) -> np.ndarray:
        """The readings of each example under its own ``relation``, float64 ``[n, len(READINGS)]``, three decimals.

        Args:
            without: For each example a seed that is not shown (itself, where seeds are read); default: all are.
        """
        left_out: Sequence[Example | None] = without or [None] * len(examples)
        asked: dict[str, list[_Asked]] = defaultdict(list)
        questions: dict[str, list[int]] = defaultdict(list)
        for row, (example, seed) in enumerate(zip(examples, left_out, strict=True)):
            self._ask(asked, row, example, seed)
            questions[self._questions(example.relation, seed)].append(row)
        found: list[dict[str, list[np.ndarray]]] = [defaultdict(list) for _ in examples]
        for prefix in sorted(asked):
            values = self.likelihood.log_probabilities(prefix, [one.parts for one in asked[prefix]])
            for one, parts in zip(asked[prefix], values, strict=True):
                for what, value in zip(one.what, parts, strict=True):
                    found[one.row][what].append(value)
        for prefix in sorted(questions):
            rows = questions[prefix]
            odds = self.answerer.answers(prefix, [f"Sentence: {render_marked(examples[row])}\nAnswer:" for row in rows])
            for row, one_odds in zip(rows, odds, strict=True):
                found[row]["answer"].append(np.array([one_odds]))
        return np.round(np.array([_readings(values) for values in found]).reshape(len(examples), len(READINGS)), 3)

    def _ask(self, asked: dict[str, list[_Asked]], row: int, example: Example, seed: Example | None) -> None:
        name = example.relation
        for under in (name, *self.others[name]):
            relation, own = self.relations[under], under == name
            prefix = self._records(under, seed)
            head, tail, sentence = labels(relation)
            pair = f" {example.head_text}\n{tail} {example.tail_text}"
            text = f"\n{sentence}", f" {example.text}"
            what = ("pair", "", "own") if own else ("other pair", "", "other")
            asked[prefix].append(_Asked(row, (head, pair, *text), what))
            if own:
                exchanged = f"{head} {example.tail_text}\n{tail} {example.head_text}{text[0]}"
                asked[prefix].append(_Asked(row, (exchanged, text[1]), ("exchanged",)))
        asked["".join(f"{mixed.text}\n" for mixed in self.mixed)].append(_Asked(row, ("", example.text), ("alone",)))

    def _shown(self, name: str, seed: Example | None) -> list[Example]:
        return [one for one in self.seeds[name] if one != seed][:SHOWN]

    def _records(self, name: str, seed: Example | None) -> str:
        relation = self.relations[name]
        shown = "".join(f"{as_lines(relation, example)}\n\n" for example in self._shown(name, seed))
        return f"Relation: {relation.name}\nMeaning: {relation.description}\n\n{shown}"

    def _questions(self, name: str, seed: Example | None) -> str:
        """Right seeds and, in turn, one with its roles exchanged or one of another relation."""
        lines = [f"Does the sentence say that this holds? {self.relations[name].description}\n\n"]
        others = [other for other in self.others[name] if self.seeds[other]]
        for number, right in enumerate(self._shown(name, seed)):
            wrong = replace(right, head=right.tail, tail=right.head)
            if number % 2 and others:
                wrong = self.seeds[others[number % len(others)]][0]
            lines += [f"Sentence: {render_marked(one)}\nAnswer: {answer}\n\n" for one, answer in ((right, "yes"), (wrong, "no"))]
        return "".join(lines)


def _readings(values: dict[str, list[np.ndarray]]) -> list[float]:
    def mean(what: str) -> float:
        return float(np.mean([one.mean() for one in values[what] if len(one)] or [0.0]))

    def hardest(what: str) -> float:
        return float(np.sort(values[what][0])[:_HARDEST].mean())

    own, pair = mean("own"), mean("pair")
    other = mean("other") if values["other"] else own
    other_pair = mean("other pair") if values["other pair"] else pair
    return [
        own - other,
        own - mean("exchanged"),
        pair - other_pair,
        pair,
        own,
        hardest("own"),
        mean("alone"),
        hardest("alone"),
        mean("answer"),
    ]
