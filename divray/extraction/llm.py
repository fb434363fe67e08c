"""The LLM as its own RE model: one prompt a test sentence, the completion constrained to the labels.

What the test sentences share stands first and the sentence last, so that the engine's prefix cache
computes the task, the labels and the demonstrations once.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from divray.config import Config
from divray.datasets.stage import read_relations
from divray.engines.complete import complete
from divray.extraction.inputs import examples_of
from divray.prompts import chat_renderer, rows_per_file
from divray.relations import Example, Relation, render_marked
from divray.run_folder import SEEDS, TEST, RunFolder
from divray.schemas import PROMPTS
from divray.stages import Progress

REQUESTS, COMPLETIONS = "evaluation/llm/prompts", "evaluation/llm/completions"

PREFIX_CHARACTERS = 2000
"""Of the part that all prompts share: 500 to 700 tokens, so that a small model's context is not spent."""

SENTENCE_CHARACTERS = 600
STRATEGY = "extract"

Renderer = Callable[[list[dict[str, str]]], str]


def extract(config: Config, run: RunFolder, on_progress: Progress | None = None) -> tuple[list[Example], list[str | None], list[Example]]:
    """Have ``models.llm`` classify the test sentences (all, or ``evaluation.llm_test_limit`` of them).

    Args:
        on_progress: See :func:`divray.engines.complete.complete`.

    Returns:
        The sentences asked, in order of the test set; the label of each, ``None`` where the engine
        gave none; and the demonstrations shown.
    """
    relations = read_relations(run)
    shown = demonstrations(relations, examples_of(run, [SEEDS]))
    asked = chosen(examples_of(run, [TEST]), config.evaluation.llm_test_limit, config.seed)
    table = request_table(config, relations, shown, asked, chat_renderer(config))
    if not (run.exists(REQUESTS) and run.read_table(REQUESTS).equals(table)):
        for stale in (COMPLETIONS, f"{COMPLETIONS}.checkpoint"):
            run.delete(stale)
        run.write_table(REQUESTS, table, rows_per_file(table.num_rows))
    complete(config, run, source=REQUESTS, target=COMPLETIONS, model=config.models.llm, greedy=True, on_progress=on_progress)
    rows = run.read_table(COMPLETIONS, ["candidate_id", "completion", "error"]).to_pylist()
    found = {row["candidate_id"]: row["completion"].strip() for row in rows if not row["error"]}
    labels = {relation.name for relation in relations}
    answers = [found.get(candidate_id(example)) for example in asked]
    return asked, [answer if answer in labels else None for answer in answers], shown


def chosen(test: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """The ``limit`` examples with the smallest seeded hash of their id, in order of the test set."""
    if limit is None or limit >= len(test):
        return list(test)

    def rank(example: Example) -> bytes:
        return hashlib.sha256(f"{seed}:{example.example_id}".encode()).digest()

    kept = {example.example_id for example in sorted(test, key=rank)[:limit]}
    return [example for example in test if example.example_id in kept]


def demonstrations(relations: Sequence[Relation], seeds: Sequence[Example]) -> list[Example]:
    """The shortest seed example of each relation, in order of the relations, as far as the prompt has room."""
    room = PREFIX_CHARACTERS - len(_instructions(relations, 0))
    shortest: list[Example] = []
    for relation in relations:
        own = [seed for seed in seeds if seed.relation == relation.name]
        shortest += sorted(own, key=lambda e: (len(e.text), e.text))[:1]
    fitting = set()
    for example in sorted(shortest, key=lambda e: len(_answered(e))):
        room -= len(_answered(example))
        if room >= 0:
            fitting.add(example)
    return [example for example in shortest if example in fitting]


def request_table(
    config: Config, relations: Sequence[Relation], shown: Sequence[Example], asked: Sequence[Example], chat: Renderer | None = None
) -> pa.Table:
    """Request rows (``schemas.PROMPTS``), one a test sentence; ``relation`` is left empty."""
    examples = "".join(_answered(example) for example in shown)
    room = PREFIX_CHARACTERS - len(_instructions(relations, 0)) - len(examples)
    prefix = _instructions(relations, room) + examples
    blank = "" if chat else " "
    pattern = f"{blank}({'|'.join(_literal(relation.name) for relation in relations)})"
    prompt_id = f"llm-{hashlib.sha256(prefix.encode()).hexdigest()[:12]}"
    rows = []
    for example in asked:
        text = prefix + _question(_shortened(example))
        rows.append(
            {
                "candidate_id": candidate_id(example),
                "relation": "",
                "round": 0,
                "strategy": STRATEGY,
                "prompt_id": prompt_id,
                "prompt": chat([{"role": "user", "content": text}]) if chat else text,
                "pattern": pattern,
                "seed": config.seed,
                "demonstrations": [demonstration.example_id for demonstration in shown],
            }
        )
    return pa.Table.from_pylist(rows, PROMPTS)


def candidate_id(example: Example) -> str:
    return f"llm-{example.example_id}"


def _instructions(relations: Sequence[Relation], room: int) -> str:
    """Task and labels, with as much of their descriptions as ``room`` characters hold."""
    lines = ["Say which relation holds from the head, in [ ], to the tail, in { }. The relations are:"]
    whole = sum(len(relation.description) + 2 for relation in relations) <= room
    width = room // len(relations) - 2
    for relation in relations:
        words = relation.description if whole else textwrap.shorten(relation.description, width, placeholder=" …") if width >= 20 else ""
        lines.append(f"- {relation.name}: {words}" if words else f"- {relation.name}")
    return "\n".join(lines) + "\n\n"


def _answered(example: Example) -> str:
    return f"{_question(example)} {example.relation}\n\n"


def _question(example: Example) -> str:
    return f"Sentence: {render_marked(example)}\nRelation:"


def _shortened(example: Example) -> Example:
    """The part of a long sentence around its entities, cut between words."""
    first, last = min(example.head, example.tail)[0], max(example.head, example.tail)[1]
    if len(example.text) <= SENTENCE_CHARACTERS:
        return example
    margin = max(0, SENTENCE_CHARACTERS - (last - first)) // 2
    left = example.text.rfind(" ", 0, first - margin) + 1 if first > margin else 0
    right = example.text.find(" ", last + margin) if last + margin < len(example.text) else -1
    text = example.text[left : right if right >= 0 else None]
    return replace(
        example, text=text, head=(example.head[0] - left, example.head[1] - left), tail=(example.tail[0] - left, example.tail[1] - left)
    )


def _literal(label: str) -> str:
    return "".join(f"\\{character}" if character in r"\.^$*+?{}[]|()" else character for character in label)
