"""Relations and demonstrations to request rows.

A strategy turns one relation and a random generator into a :class:`Draft`; the rest (ids, seeds,
rendering, tables) is the same for all.  Rows are a pure function of the settings, the relations and
the seed examples: they come out the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import floor
from typing import Any

import pyarrow as pa

from divray.config import Config
from divray.relations import Example, Relation, render_marked
from divray.runs import RunFolder
from divray.sampling.constraint import SENTENCE, acceptance, accepts, anchored_pattern
from divray.schemas import PROMPTS

ROWS_PER_FILE = 32
"""Request rows in one Parquet file, which is one block of the sampling pass and so the grain of a resume."""

LEAST_ACCEPTANCE = 0.95
"""Share of the seed sentences that the constraint should let through; below it the ``prompt`` stage says so."""

NAIVE = "naive"
"""The baseline: fixed demonstrations, no wish for difference, no attributes, no selection afterwards."""

TOPICS = (
    "farming", "the sea", "a hospital", "a football club", "a bakery", "space flight", "music", "a small town", "law",
    "a power plant", "the weather", "a school", "railways", "film", "a bank", "mountains", "software", "a zoo", "painting",
    "an election", "a building site", "cooking", "chemistry", "a newspaper", "forestry", "a museum", "cars", "medicine",
)  # fmt: skip
LENGTHS = ("a short sentence", "a sentence", "a long sentence", "a sentence that begins with a time or a place", "a passive sentence")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a strategy decides for one prompt.

    Attributes:
        demonstrations: Examples to show, in order.
        hint: A line about the next sentence, or ``""``.
        pattern: Regular expression of the completion.
        wish: Whether the prompt asks for difference.
    """

    demonstrations: tuple[Example, ...]
    hint: str = ""
    pattern: str = SENTENCE
    wish: bool = True


Strategy = Callable[[Config, Relation, list[Example], random.Random], Draft]
STRATEGIES: dict[str, Strategy] = {}


def strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Register a function under ``name`` for ``prompts.strategies``."""

    def register(function: Strategy) -> Strategy:
        STRATEGIES[name] = function
        return function

    return register


@strategy(NAIVE)
def naive(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """The same demonstrations in the same order every time."""
    return Draft(tuple(seeds[: config.prompts.demonstrations]), wish=False)


@strategy("independent")
def independent(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """Other demonstrations and attributes in every prompt; the sentence may take any shape."""
    shown = rng.sample(seeds, min(config.prompts.demonstrations, len(seeds)))
    return Draft(tuple(shown), _hint(config, rng), wish=config.prompts.wish)


@strategy("anchored")
def anchored(config: Config, relation: Relation, seeds: list[Example], rng: random.Random) -> Draft:
    """One seed's connective is kept between a new head and a new tail; that seed is shown last."""
    anchor = seeds[rng.randrange(len(seeds))]
    others = [seed for seed in seeds if seed is not anchor]
    shown = rng.sample(others, min(config.prompts.demonstrations - 1, len(others)))
    return Draft((*shown, anchor), _hint(config, rng), anchored_pattern(anchor), wish=config.prompts.wish)


def _hint(config: Config, rng: random.Random) -> str:
    topic, length = rng.choice(TOPICS), rng.choice(LENGTHS)
    return f"Next: {length} about {topic}." if config.prompts.attributes else ""


Renderer = Callable[[list[dict[str, str]]], str]


def render_prompt(relation: Relation, draft: Draft, chat: Renderer | None = None) -> str:
    """Task, relation, wish and numbered demonstrations, up to the number of the new sentence.

    Args:
        relation: The relation that the sentence must state.
        draft: The strategy's choices.
        chat: Renders messages by the model's chat template; without it the prompt is plain text
            that the model continues.
    """
    lines = [
        "Each sentence below states one and the same relation between a head and a tail. The head stands in [ ] and the tail in { }.",
        "",
        f"Relation: {relation.name}",
        f"Meaning: {relation.description}",
    ]
    if draft.wish:
        lines.append("Every sentence is as different as possible from the others: other names, other words, another structure.")
    lines.append("")
    lines += [f"{number}. {render_marked(example)}" for number, example in enumerate(draft.demonstrations, 1)]
    if draft.hint:
        lines.append(draft.hint)
    number = len(draft.demonstrations) + 1
    if chat is None:
        return "\n".join([*lines, f"{number}."])
    lines.append(f"Write sentence {number}, and nothing else.")
    return chat([{"role": "user", "content": "\n".join(lines)}]) + f"{number}."


def request_rows(
    config: Config, relations: list[Relation], seeds: list[Example], round_: int, chat: Renderer | None = None
) -> Iterator[dict[str, Any]]:
    """The request rows (``schemas.PROMPTS``) of one round; candidates of one prompt stand together."""
    slugs = _slugs(relations)
    shares = dict(config.prompts.strategies)
    for relation in relations:
        own = [seed for seed in seeds if seed.relation == relation.name]
        wanted = _apportion(shares, config.sampling.candidates_per_relation)
        if round_ == 0:
            wanted[NAIVE] = config.sampling.naive_candidates_per_relation
        for name, count in wanted.items():
            for start in range(0, count, config.prompts.candidates_per_prompt):
                prompt_id = f"r{round_:02d}-{slugs[relation.name]}-{name}-{start // config.prompts.candidates_per_prompt:04d}"
                rng = random.Random(_number(config.seed, prompt_id))
                draft = STRATEGIES[name](config, relation, own, rng)
                prompt = render_prompt(relation, draft, chat)
                for candidate in range(start, min(start + config.prompts.candidates_per_prompt, count)):
                    candidate_id = f"r{round_:02d}-{slugs[relation.name]}-{name}-{candidate:06d}"
                    yield {
                        "candidate_id": candidate_id,
                        "relation": relation.name,
                        "round": round_,
                        "strategy": name,
                        "prompt_id": prompt_id,
                        "prompt": prompt,
                        "pattern": draft.pattern if config.sampling.constrained else "",
                        "seed": _number(config.seed, candidate_id) % 2**31,
                        "demonstrations": [example.example_id for example in draft.demonstrations],
                    }


def run(config: Config, run: RunFolder, round: int) -> dict[str, Any]:
    """The ``prompt`` stage: write ``round-XX/prompts``.

    Returns:
        Counts: ``requests``, and ``seed_acceptance``: the share of the seed sentences that the decoding
        constraint would let the model write.
    """
    from divray import console
    from divray.datasets.stage import read_relations
    from divray.datasets.tables import table_examples

    seeds = table_examples(run.read_table("data/seeds"))
    rows = request_rows(config, read_relations(run), seeds, round, chat_renderer(config))
    counts: dict[str, Any] = {"requests": write_prompts(run, f"round-{round:02d}/prompts", rows)}
    if config.sampling.constrained:
        counts["seed_acceptance"] = share = floor(1000 * acceptance(seeds)) / 1000
        if share < LEAST_ACCEPTANCE:
            outside = next(seed for seed in seeds if not accepts(SENTENCE, seed))
            console.log(f"only {share:.1%} of the seed sentences could be written under the decoding constraint; not: {outside.text}")
    return counts


def write_prompts(run: RunFolder, name: str, rows: Iterator[dict[str, Any]]) -> int:
    """Write request rows in small files as they come; returns how many."""
    run.delete(name)
    total = part = 0
    while chunk := list(islice(rows, ROWS_PER_FILE)):
        run.write_parquet(f"{name}/part-{part:06d}.parquet", pa.Table.from_pylist(chunk, PROMPTS))
        total, part = total + len(chunk), part + 1
    return total


def chat_renderer(config: Config) -> Renderer | None:
    """The model's chat template as a function, or ``None`` for completion style."""
    if config.prompts.style == "completion":
        return None
    from transformers import AutoTokenizer

    from divray.models import local_model

    tokenizer = AutoTokenizer.from_pretrained(local_model(config.models.llm))
    # Engine and trainer add the BOS token themselves where the tokenizer says so.
    bos = tokenizer.bos_token if tokenizer.bos_token and tokenizer("").input_ids else ""

    def render(messages: list[dict[str, str]]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return text.removeprefix(bos)

    return render


def _apportion(shares: dict[str, float], total: int) -> dict[str, int]:
    """Largest remainders: whole numbers in proportion to ``shares`` that sum to ``total``."""
    weight = sum(shares.values())
    exact = {name: total * share / weight for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _slugs(relations: list[Relation]) -> dict[str, str]:
    slugs: dict[str, str] = {}
    for number, relation in enumerate(relations):
        slug = re.sub(r"[^a-z0-9]+", "-", relation.name.lower()).strip("-") or f"relation-{number}"
        slugs[relation.name] = slug if slug not in slugs.values() else f"{slug}-{number}"
    return slugs


def _number(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
