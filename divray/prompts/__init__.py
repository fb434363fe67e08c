"""Relations and demonstrations to request rows.

A strategy turns one relation and a random generator into a draft (:mod:`divray.prompts.strategies`); the rest
is the same for all: counts, ids and seeds (:mod:`divray.prompts.plan`), the pairs to write about (:mod:`divray.prompts.pairs`),
the form of a record (:mod:`divray.prompts.record`), rendering and tables (:mod:`divray.prompts.rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds, stated
from divray.engines import Answer
from divray.engines.complete import complete
from divray.errors import InputError
from divray.models import local_model
from divray.prompts.pairs import TABLE, pair_rows, pairs_wanted, pool_of, read_pairs, read_pool, write_pool
from divray.prompts.parsing import form_of
from divray.prompts.plan import Wave, candidate_ids, first_wave
from divray.prompts.rows import Renderer, accepted_samples, render_prompt, request_rows, rows_per_file, write_prompts
from divray.prompts.strategies import GROWING, STRATEGIES, Draft, strategy
from divray.relations import Example, Relation
from divray.run_folder import Round, RunFolder
from divray.stages import Progress

__all__ = [
    "GROWING",
    "STRATEGIES",
    "Draft",
    "Wave",
    "candidate_ids",
    "chat_renderer",
    "render_prompt",
    "request_rows",
    "rows_per_file",
    "run",
    "strategy",
    "write_prompts",
]


def run(
    config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None, answer: Answer | None = None
) -> dict[str, Any]:
    """The ``prompt`` stage: write ``round-XX/prompts``, all of it or its first wave, and once ``data/entity_pairs``.

    Args:
        answer: A function in the engine's place, which writes the pool of pairs; see :func:`divray.engines.complete.complete`.

    Returns:
        Counts: ``requests``, and ``pairs`` where prompts give them.
    """
    seeds = read_seeds(run)
    relations = stated(config, read_relations(run))
    chat = chat_renderer(config)
    if round == 0:
        _make_pool(config, run, relations, seeds, chat, on_progress, answer)
    pool = read_pool(run)
    wave = first_wave(config, relations, round)
    if GROWING & config.prompts.strategies.keys():
        wave = Wave(0, wave.count, accepted=accepted_samples(run, range(round)))
    run.delete(Round.of(round).waves)
    rows = request_rows(config, relations, seeds, round, chat, wave, pool)
    counts = {"requests": write_prompts(run, Round.of(round).prompts, rows)}
    return {**counts, "pairs": sum(map(len, pool.values()))} if pool else counts


def _make_pool(
    config: Config,
    run: RunFolder,
    relations: list[Relation],
    seeds: Sequence[Example],
    chat: Renderer | None,
    on_progress: Progress | None,
    answer: Answer | None,
) -> None:
    """Write ``data/entity_pairs``, from the user's file or by the LLM, where prompts are to give pairs."""
    form = form_of(seeds, relations)
    if config.prompts.pairs_file:
        write_pool(run, read_pairs(config.prompts.pairs_file, relations, form))
    elif config.prompts.pairs == "first" and not run.files(TABLE, ".parquet"):
        write_prompts(run, "data/pair_prompts", pair_rows(config, relations, seeds, chat))
        complete(config, run, "data/pair_prompts", "data/pair_completions", config.models.llm, on_progress=on_progress, answer=answer)
        columns = ["candidate_id", "relation", "completion", "finish_reason"]
        write_pool(run, pool_of(run.read_table("data/pair_completions", columns).to_pylist(), form, pairs_wanted(config)))


def chat_renderer(config: Config) -> Renderer | None:
    """The model's chat template as a function, or ``None`` for completion style."""
    if config.prompts.style == "completion":
        return None
    if config.models.llm == "endpoint":  # the server has the template
        return lambda messages: "\n".join(message["content"] for message in messages) + "\n"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_model(config.models.llm))
    if not tokenizer.chat_template:
        problem = f"{config.models.llm} has no chat template"
        raise InputError("config", "prompts.style", problem, "Set prompts.style: completion, or give a chat model.")
    # Engine and trainer add the BOS token themselves where the tokenizer says so.
    bos = tokenizer.bos_token if tokenizer.bos_token and tokenizer("").input_ids else ""

    def render(messages: list[dict[str, str]]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return text.removeprefix(bos)

    return render
