"""The strategies: each makes a :class:`Draft` of one prompt from a relation, examples and a random generator."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from divray.config import Config
from divray.relations import Example, Relation
from divray.schemas import NAIVE, SENTENCES

TOPICS = (
    "farming", "the sea", "a hospital", "a football club", "a bakery", "space flight", "music", "a small town", "law",
    "a power plant", "the weather", "a school", "railways", "film", "a bank", "mountains", "software", "a zoo", "painting",
    "an election", "a building site", "cooking", "chemistry", "a newspaper", "forestry", "a museum", "cars", "medicine",
)  # fmt: skip
LENGTHS = ("a short sentence", "a sentence", "a long sentence", "a sentence that begins with a time or a place", "a passive sentence")

MOST_DEMONSTRATIONS = 24
"""``one_by_one``: seeds and accepted samples shown in a prompt, at most."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a strategy decides for one prompt."""

    demonstrations: tuple[Example, ...]  # in order
    hint: str = ""  # a line about the next sentence
    wish: bool = True  # the prompt asks for a sentence that differs
    sentences: int = 1  # candidates that one completion holds, one record after the other


def naive(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """The same demonstrations in the same order every time."""
    return Draft(tuple(seeds[: config.prompts.demonstrations]), wish=False)


def independent(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """Other demonstrations and attributes in every prompt."""
    shown = rng.sample(seeds, min(config.prompts.demonstrations, len(seeds)))
    return Draft(tuple(shown), _hint(config, rng))


def one_by_one(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """The seeds and the samples accepted so far; of more than :data:`MOST_DEMONSTRATIONS` a random part.

    The order stays, so that later prompts begin as the earlier ones did and the engine's prefix cache serves them.
    """
    shown = range(len(seeds))
    chosen = sorted(rng.sample(shown, MOST_DEMONSTRATIONS)) if len(seeds) > MOST_DEMONSTRATIONS else shown
    return Draft(tuple(seeds[number] for number in chosen), _hint(config, rng))


def all_at_once(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """Several sentences in one completion, so that the LLM sees the earlier ones as it writes the next."""
    shown = rng.sample(seeds, min(config.prompts.demonstrations, len(seeds)))
    return Draft(tuple(shown), sentences=SENTENCES)


def shows_all(config: Config, relations: Iterable[Relation], seeds: Iterable[Example]) -> bool:
    """Whether each prompt of the first round shows all seed examples of its relation."""
    own: dict[str, list[Example]] = {}
    for seed in seeds:
        own.setdefault(seed.relation, []).append(seed)
    chosen = [STRATEGIES[name] for name in config.prompts.strategies]
    pairs = [(relation, own.get(relation.name, [])) for relation in relations]
    return all(len(draft(config, *pair, random.Random(0)).demonstrations) >= len(pair[1]) for draft in chosen for pair in pairs)


def _hint(config: Config, rng: random.Random) -> str:
    topic, length = rng.choice(TOPICS), rng.choice(LENGTHS)
    return f"Next: {length} about {topic}." if config.prompts.attributes else ""


STRATEGIES: dict[str, Callable[[Config, Relation, list[Example], random.Random], Draft]] = {
    NAIVE: naive,
    "independent": independent,
    "one_by_one": one_by_one,
    "all_at_once": all_at_once,
}
"""By their names in ``prompts.strategies``; put your own here."""
GROWING = {"one_by_one"}
"""Strategies whose examples are the seeds and, after them, the samples accepted in earlier rounds and waves."""
