"""From a wave's plan to request rows: prompt texts, patterns, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from divray.config import Config
from divray.prompts.notes import fitting_notes
from divray.prompts.plan import Planned, Wave, evenly_picked, first_wave, number_of, numbered, planned, slugs_of
from divray.prompts.strategies import Draft
from divray.relations import Example, Relation, render_marked
from divray.runs import RunFolder
from divray.sampling.constraint import list_pattern, shape_of
from divray.schemas import BASE, NAIVE, PROMPTS, TUNED

ROWS_PER_FILE = 32
"""Request rows in one Parquet file, which is one block of the sampling pass and so the grain of a resume."""

MEASURED = 12
"""Prompts of each strategy whose length counts when a relation's notes are chosen."""

Renderer = Callable[[list[dict[str, str]]], str]
Length = Callable[[str], int | None]


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
    slugs, shape = slugs_of(relations), shape_of(seeds)
    wave = wave or first_wave(config, relations, round_)
    for relation in relations:
        counts = wave.count.get(relation.name)
        if not counts:
            continue
        own = [seed for seed in seeds if seed.relation == relation.name]
        prefixes = {name: f"r{round_:02d}-{slugs[relation.name]}-{name}" for name in {*counts, *config.prompts.strategies}}
        plan = {name: partial(planned, config, wave, relation, prefix, own, strategy=name) for name, prefix in prefixes.items()}
        notes = _notes(config, relation, [plan[name] for name in config.prompts.strategies], chat, length)
        for name, count in counts.items():
            before = wave.first.get(relation.name, {}).get(name, 0)
            for one in plan[name](count):
                draft = one.draft
                for number in range(one.start, one.end, draft.sentences):
                    asked = replace(draft, sentences=min(draft.sentences, one.end - number))
                    prompt = render_prompt(relation, asked, chat, () if name == NAIVE else notes)
                    candidate_id = numbered(prefixes[name], before + number)
                    yield {
                        "candidate_id": candidate_id,
                        "relation": relation.name,
                        "round": round_,
                        "strategy": name,
                        "prompt_id": one.prompt_id,
                        "prompt": prompt,
                        "pattern": list_pattern(draft.pattern(shape), len(draft.demonstrations) + 1, asked.sentences)
                        if config.sampling.constrained
                        else "",
                        "seed": number_of(config.seed, candidate_id) % 2**31,
                        "demonstrations": [example.example_id for example in draft.demonstrations],
                        "sentences": asked.sentences,
                        "length": length(prompt) if length else None,
                        "policy": BASE
                        if round_ == 0 or evenly_picked(before + number, draft.sentences, config.sampling.base_share)
                        else TUNED,
                    }


def _notes(
    config: Config,
    relation: Relation,
    plans: list[Callable[[int], Iterator[Planned]]],
    chat: Renderer | None,
    length: Length | None,
) -> tuple[str, ...]:
    """The notes of a relation, one choice for all strategies, whose prompts then share their head."""
    block = config.prompts.cache_block
    if not block or length is None:
        return ()
    some = [one.draft for plan in plans for one in plan(MEASURED * config.prompts.candidates_per_prompt)]
    return fitting_notes([partial(render_prompt, relation, draft, chat) for draft in some], length, block)


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
