"""Answers on the test set that don't come from a trained RE model: those of the LLM (the ``classify`` stage) and of other tools.

The LLM gets one prompt for each test sentence: the task, the labels, and the seeds most similar to the sentence with their labels, the
nearest last (Liu et al. 2022, arXiv 2101.06804).  Its completion is constrained to the labels.

``divray evaluate RUN --force --predictions FILE`` reads the answers of another tool, such as GLiNER, an API or a rule system.  FILE is
JSONL with the ``id`` of a test sentence and its ``relation``, null for none.  Other fields are ignored, so FILE may also be what
``divray predict`` writes for the test file.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divray.config import Config
from divray.datasets.own import IDS, Source
from divray.datasets.stage import read_relations, read_seeds, table_examples
from divray.embeddings import Encoder
from divray.engines import ENDPOINT
from divray.engines.complete import complete
from divray.engines.vllm import engine_arguments
from divray.layout import LLM_COMPLETIONS, LLM_PROMPTS, TEST
from divray.models import context_length
from divray.prompts import chat_renderer
from divray.prompts.rows import Renderer, rows_per_file
from divray.relations import Example, Relation, render_marked
from divray.resources import uses_gpu, worker
from divray.run_folder import RunFolder
from divray.schemas import PROMPTS
from divray.spans import BLOCKS
from divray.stages import Progress
from divray.textfiles import json_lines, read_bytes

EXTERNAL = "evaluation/external"
SHOWN = 16
"""Most seeds in a prompt."""
PREFIX_BYTES, SENTENCE_CHARACTERS = (2000, 8000), 600
"""Least and most bytes before the sentence; most characters of a sentence, unless its entities lie further apart."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Have ``models.llm`` classify the test sentences (all, or ``evaluation.llm_test_limit`` of them).

    Returns counts: ``sentences``, and ``answered`` with one of the labels.
    """
    import ray

    asked, seeds = _asked(config, run), read_seeds(run)
    order = ray.get(worker(config)(nearest).options(num_cpus=1).remote(config.models.encoder, seeds, asked))
    table = request_table(config, read_relations(run), [[seeds[place] for place in own] for own in order], asked, chat_renderer(config))
    if not (run.exists(LLM_PROMPTS) and run.read_table(LLM_PROMPTS).equals(table)):
        run.delete(LLM_COMPLETIONS)
        run.write_table(LLM_PROMPTS, table, rows_per_file(table.num_rows))
    complete(config, run, source=LLM_PROMPTS, target=LLM_COMPLETIONS, model=config.models.llm, greedy=True, on_progress=on_progress)
    return {"sentences": len(asked), "answered": sum(label is not None for label in llm_answers(config, run)[1])}


def llm_answers(config: Config, run: RunFolder) -> tuple[list[Example], list[str | None]]:
    """The test sentences that the LLM got, in order of the test set, and its label for each, ``None`` if it gave none."""
    asked = _asked(config, run)
    rows = run.read_table(LLM_COMPLETIONS, ["candidate_id", "completion", "error"]).to_pylist()
    found = {row["candidate_id"]: row["completion"].strip() for row in rows if not row["error"]}
    labels = {relation.name for relation in read_relations(run)}
    said = [found.get(f"llm-{example.example_id}") for example in asked]
    return asked, [answer if answer in labels else None for answer in said]


def _asked(config: Config, run: RunFolder) -> list[Example]:
    return chosen(table_examples(run.read_table(TEST)), config.evaluation.llm_test_limit, config.seed)


def room_of(config: Config) -> int:
    """Room for task, labels and seeds: as many bytes of UTF-8 as the model takes tokens (a token has at least one), less
    :data:`SENTENCE_CHARACTERS`, within :data:`PREFIX_BYTES`; for an endpoint the most."""
    least, most = PREFIX_BYTES
    if config.models.llm == ENDPOINT:
        return most
    tokens = engine_arguments(config, uses_gpu(config))["max_model_len"]
    tokens = tokens if tokens > 0 else context_length(config.models.llm, 2 * most)
    return max(least, min(most, tokens - SENTENCE_CHARACTERS))


def chosen(test: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """The ``limit`` examples with the smallest seeded hash of their id, in order of the test set."""
    ranks = [hashlib.sha256(f"{seed}:{example.example_id}".encode()).digest() for example in test]
    return [test[row] for row in sorted(sorted(range(len(test)), key=ranks.__getitem__)[:limit])]


def nearest(encoder: str, seeds: Sequence[Example], asked: Sequence[Example]) -> np.ndarray:
    """For each sentence the places of the :data:`SHOWN` seeds (or all, if fewer) whose spans' features have the highest cosine to its own,
    the highest first.  It runs on a CPU, since the LLM may hold the GPUs."""
    model = Encoder(encoder, "cpu")
    mine, theirs = (model.spans(some)[:, : BLOCKS * model.dimension] for some in (asked, seeds))
    cosines = mine @ (theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).T  # but for the length of ``mine``, which changes no order
    return np.argsort(-cosines, axis=1, kind="stable")[:, :SHOWN]


def prompt_of(relations: Sequence[Relation], seeds: Sequence[Example], asked: Example, room: int) -> tuple[str, list[Example]]:
    """The prompt for a sentence, with ``room`` bytes before it, and the seeds in it; ``seeds`` are in order of preference.  If not all
    fits, descriptions may take half of the room, or names alone three quarters; else only the names of ``seeds`` are listed."""
    near = [relation for relation in relations if any(seed.relation == relation.name for seed in seeds)]
    starts = [_instructions(relations, True), _instructions(relations, False), _instructions(near, False)]
    costs = [len(_answered(seed).encode()) for seed in seeds]
    limits = zip(starts, (max(share * room, room - sum(costs)) for share in (0.5, 0.75)), strict=False)
    start = next((start for start, limit in limits if len(start.encode()) <= limit), starts[-1])
    shown, left = list[Example](), room - len(start.encode())
    for seed, cost in zip(seeds, costs, strict=True):
        if cost <= left:
            shown.insert(0, seed)
            left -= cost
    return "".join([start, *map(_answered, shown), _question(asked)]), shown


def request_table(
    config: Config,
    relations: Sequence[Relation],
    seeds: Sequence[Sequence[Example]],
    asked: Sequence[Example],
    chat: Renderer | None = None,
) -> pa.Table:
    """Request rows (``schemas.PROMPTS``), one a test sentence; ``relation`` is left empty.  Each sentence has ``seeds`` of its own."""
    room = room_of(config)
    literals = [re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", relation.name) for relation in relations]
    row = {
        "relation": "",
        "round": 0,
        "strategy": "extract",
        "pattern": f"{'' if chat else ' '}({'|'.join(literals)})",
        "seed": config.seed,
    }
    rows = []
    for own, example in zip(seeds, asked, strict=True):
        text, shown = prompt_of(relations, own, example, room)
        name, prompt = f"llm-{example.example_id}", chat([{"role": "user", "content": text}]) if chat else text
        ids = [seed.example_id for seed in shown]
        rows.append({**row, "candidate_id": name, "prompt_id": name, "prompt": prompt, "demonstrations": ids})
    return pa.Table.from_pylist(rows, PROMPTS)


def _instructions(relations: Sequence[Relation], described: bool) -> str:
    """Task and labels, with or without their descriptions."""
    lines = [f"- {relation.name}: {relation.description}" if described else f"- {relation.name}" for relation in relations]
    return "\n".join(["Say which relation holds from the head, in [ ], to the tail, in { }. The relations are:", *lines]) + "\n\n"


def _answered(example: Example) -> str:
    return f"{_question(example)} {example.relation}\n\n"


def _question(example: Example) -> str:
    return f"Sentence: {render_marked(_shortened(example))}\nRelation:"


def _shortened(example: Example) -> Example:
    """The part of a long sentence around its entities."""
    first, last = min(example.head[0], example.tail[0]), max(example.head[1], example.tail[1])
    if len(example.text) <= SENTENCE_CHARACTERS:
        return example
    margin = max(0, SENTENCE_CHARACTERS - (last - first)) // 2
    left = max(0, first - margin)
    head, tail = ((start - left, end - left) for start, end in (example.head, example.tail))
    return replace(example, text=example.text[left : last + margin], head=head, tail=tail)


def take_in(run: RunFolder, file: str) -> int:
    """Copy a file's answers into the run, over those of an earlier file of this name; return how many test sentences have none.

    Raises :class:`InputError` if an id belongs to no test sentence or occurs twice, or a relation is not a label.
    """
    source = Source(Path(file), {relation.name for relation in read_relations(run)})
    known, found = set(run.read_table(TEST)["example_id"].to_pylist()), {}
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), file):
        place = f"line {number}"
        given = next((row[name] for name in IDS if row.get(name) is not None), None)
        name = source.identity(place, given, "")
        full = name if name in known else f"test:{name}"  # held-out ones are called after the training file
        if full not in known:
            raise source.error(f"{place}, id", f"{given!r} is the id of no test sentence", "Give the ids of the test file.")
        found[full] = None if row.get("relation") is None else source.label(place, row["relation"])
    table = pa.table({"example_id": [*found], "predicted": pa.array(found.values(), pa.string())})
    run.write_table(f"{EXTERNAL}/{source.path.name}", table)
    return len(known - found.keys())


def external_answers(run: RunFolder, test: Sequence[Example]) -> Iterator[tuple[str, list[str | None]]]:
    """Name and labels, in order of the test set, of each file that was taken in; ``None`` where it had none."""
    for name in sorted({file.split("/")[2] for file in run.files(EXTERNAL, ".parquet")}):
        found = {row["example_id"]: row["predicted"] for row in run.read_table(f"{EXTERNAL}/{name}").to_pylist()}
        yield name, [found.get(example.example_id) for example in test]
