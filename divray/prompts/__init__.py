"""Relations and demonstrations to request rows.

A strategy turns one relation and a random generator into a draft (:mod:`divray.prompts.strategies`); the rest
is the same for all: counts, ids and seeds (:mod:`divray.prompts.plan`), rendering and tables (:mod:`divray.prompts.rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

from divray.config import Config
from divray.prompts.plan import Wave, candidate_ids, first_wave
from divray.prompts.rows import ROWS_PER_FILE, Length, Renderer, render_prompt, request_rows, write_prompts
from divray.prompts.strategies import GROWING, STRATEGIES, Draft, strategy
from divray.relations import Example
from divray.runs import RunFolder
from divray.sampling.constraint import acceptance, accepts, sentence_pattern, shape_of

__all__ = [
    "GROWING",
    "ROWS_PER_FILE",
    "STRATEGIES",
    "Draft",
    "Wave",
    "candidate_ids",
    "chat_renderer",
    "render_prompt",
    "request_rows",
    "run",
    "strategy",
    "token_counter",
    "write_prompts",
]

LEAST_ACCEPTANCE = 0.95
"""Share of the seed sentences that the constraint should let through; below it the ``prompt`` stage says so."""


def run(config: Config, run: RunFolder, round: int) -> dict[str, Any]:
    """The ``prompt`` stage: write ``round-XX/prompts``, all of it or its first wave.

    Returns:
        Counts: ``requests``, and ``seed_acceptance``: the share of the seed sentences that the decoding
        constraint would let the model write.
    """
    from divray import console
    from divray.datasets.stage import read_relations
    from divray.datasets.tables import table_examples
    from divray.prompts.accepted import accepted_samples

    seeds = table_examples(run.read_table("data/seeds"))
    relations = read_relations(run)
    wave = first_wave(config, relations, round)
    if GROWING & config.prompts.strategies.keys():
        wave = Wave(0, wave.count, accepted=accepted_samples(run, range(round)))
    run.delete(f"round-{round:02d}/waves")
    rows = request_rows(config, relations, seeds, round, chat_renderer(config), wave, token_counter(config))
    counts: dict[str, Any] = {"requests": write_prompts(run, f"round-{round:02d}/prompts", rows)}
    if config.sampling.constrained:
        counts["seed_acceptance"] = share = seed_acceptance(seeds)
        if share < LEAST_ACCEPTANCE:
            outside = next(seed for seed in seeds if not accepts(sentence_pattern(shape_of(seeds)), seed))
            console.log(f"only {share:.1%} of the seed sentences could be written under the decoding constraint; not: {outside.text}")
    return counts


def seed_acceptance(seeds: Sequence[Example]) -> float:
    """:func:`~divray.sampling.constraint.acceptance` of the seeds' own shape, to three digits, never rounded up."""
    return floor(1000 * acceptance(seeds, sentence_pattern(shape_of(seeds)))) / 1000


def chat_renderer(config: Config) -> Renderer | None:
    """The model's chat template as a function, or ``None`` for completion style."""
    if config.prompts.style == "completion":
        return None
    if config.models.llm == "endpoint":  # the server has the template
        return lambda messages: "\n".join(message["content"] for message in messages) + "\n"
    from transformers import AutoTokenizer

    from divray.models import local_model

    tokenizer = AutoTokenizer.from_pretrained(local_model(config.models.llm))
    # Engine and trainer add the BOS token themselves where the tokenizer says so.
    bos = tokenizer.bos_token if tokenizer.bos_token and tokenizer("").input_ids else ""

    def render(messages: list[dict[str, str]]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return text.removeprefix(bos)

    return render


def token_counter(config: Config) -> Length | None:
    """Counts a prompt's tokens as the engine will; ``None`` where the model's tokenizer is not at hand here.

    Repeated prompts, which stand together, are counted once.
    """
    from functools import cache, lru_cache
    from pathlib import Path

    from divray.models import local_model

    reference = config.models.llm
    if "://" in reference or reference == "endpoint":  # a whole model would have to come to the driver
        return None

    @cache
    def tokenizer() -> Any:
        from tokenizers import Tokenizer

        try:
            file = Path(local_model(reference)) / "tokenizer.json"
            return Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(reference)
        except Exception:  # the library raises nothing narrower; the engine says it all the same
            return None

    @lru_cache(maxsize=2)
    def length(prompt: str) -> int | None:
        return len(tokenizer().encode(prompt).ids) if tokenizer() is not None else None

    return length
