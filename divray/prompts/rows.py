"""The request rows of a wave: ids, seeds, prompt texts, tables.

The rows depend only on the settings, the relations, the examples and the wave, and are the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray import scan
from divray.config import Config
from divray.datasets.stage import table_examples
from divray.layout import Round
from divray.prompts.record import Pair, as_json, as_lines, json_schema, labels, list_pattern
from divray.prompts.strategies import GROWING, STRATEGIES, Draft
from divray.prompts.waves import Wave, first_wave
from divray.relations import Example, Relation
from divray.run_folder import RunFolder
from divray.schemas import BASE, EXAMPLES, NAIVE, PROMPTS, TUNED

LEAST_ROWS, MOST_ROWS, SHARE = 32, 4096, 64
"""Limits of the rows in a Parquet file, see :func:`rows_per_file`.  A file is one block of sampling: a resumed run repeats whole files."""

WRITERS = 8
"""Files that are written in parallel, because an object store answers slowly; the driver holds no more of them."""

ALONE = (NAIVE, "all_at_once")
"""Strategies whose prompts never give the pair: the naive one, and the one that asks for a list of records."""

_GIVEN = "Write the sentence of a new record whose head is"

Renderer = Callable[[list[dict[str, str]]], str]


def render_prompt(relation: Relation, draft: Draft, pair: Pair | None = None, chat: Renderer | None = None) -> str:
    """A prompt: the task, the relation, the strategy's wish, and the demonstrations as records.

    Args:
        pair: The head and tail of the new sentence; ``None``: the LLM also writes them.
        chat: Renders messages with the model's chat template; ``None``: plain text that ends where the LLM's first field begins.
    """
    lines = [
        "Each record names a head and a tail, and gives one sentence that states the same relation between the two.",
        "",
        f"Relation: {relation.name}",
        f"Meaning: {relation.description}",
    ]
    if draft.wish:
        lines.append("Every record is as different as possible from the others: other names, other words, another structure.")
    hint = [draft.hint] if draft.hint else []
    if chat is None:
        shown = [as_lines(relation, example) + "\n" for example in draft.demonstrations]
        head, tail, sentence = labels(relation)
        record = [f"{head} {pair[0]}", f"{tail} {pair[1]}", sentence] if pair else [head]
        return "\n".join([*lines, "", *shown, *hint, *record])
    lines += ["", *map(as_json, draft.demonstrations), "", *hint]
    if pair:
        lines.append(f'{_GIVEN} "{pair[0]}" and whose tail is "{pair[1]}". Use both exactly once.')
    else:
        wanted = "one new record" if draft.sentences == 1 else f"a list of {draft.sentences} new records"
        lines.append(f"Write {wanted}. The sentence has the head and the tail in it exactly once, letter by letter.")
    lines.append("Answer in JSON.")
    return chat([{"role": "user", "content": "\n".join(lines)}])


def gives_pair(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """For each prompt of :func:`render_prompt`, plain or chat: whether it gives the pair."""
    return pc.or_(pc.ends_with(prompts, "\nSentence:"), pc.match_substring(prompts, _GIVEN))


def request_rows(
    config: Config,
    relations: list[Relation],
    seeds: list[Example],
    round_: int,
    chat: Renderer | None = None,
    wave: Wave | None = None,
    pool: Mapping[str, Sequence[Pair]] | None = None,
) -> Iterator[dict[str, Any]]:
    """The request rows (``schemas.PROMPTS``) of one wave; the rows of one prompt follow one another.

    Args:
        pool: Relation -> the pairs to write sentences for; where a relation has none, the LLM writes them.
    """
    slugs, block = slugs_of(relations), config.prompts.candidates_per_prompt
    prompts_a_round = ceil(config.sampling.candidates_per_relation / block)
    wave = wave or first_wave(config, relations, round_)
    for relation in relations:
        own = [seed for seed in seeds if seed.relation == relation.name]
        grown = [*own, *wave.accepted.get(relation.name, [])]
        pairs, first = (pool or {}).get(relation.name, ()), wave.first.get(relation.name, {})
        # The prompts of all strategies but those in ALONE take the pairs in turn.
        turn = round_ * prompts_a_round + sum(ceil(first[name] / block) for name in first if name not in ALONE)
        for name, count in wave.count.get(relation.name, {}).items():
            before = first.get(name, 0)
            prefix = f"r{round_:02d}-{slugs[relation.name]}-{name}"
            for prompt, start in enumerate(range(0, count, block)):
                prompt_id = f"{prefix}-w{wave.number:02d}-{prompt:04d}" if wave.number else f"{prefix}-{prompt:04d}"
                rng = random.Random(number_of(config.seed, prompt_id))
                draft = STRATEGIES[name](config, relation, grown if name in GROWING else own, rng)
                given = pairs[turn % len(pairs)] if pairs and name not in ALONE and draft.sentences == 1 else None
                turn += given is not None
                end = min(start + block, count)
                for number in range(start, end, draft.sentences):
                    asked = replace(draft, sentences=min(draft.sentences, end - number))
                    candidate_id = f"{prefix}-{before + number:06d}"
                    yield {
                        "candidate_id": candidate_id,
                        "relation": relation.name,
                        "round": round_,
                        "strategy": name,
                        "prompt_id": prompt_id,
                        "prompt": render_prompt(relation, asked, given, chat),
                        "head": given[0] if given else "",
                        "tail": given[1] if given else "",
                        "pattern": json_schema(given is not None, asked.sentences) if chat else list_pattern(relation, asked.sentences),
                        "seed": number_of(config.seed, candidate_id) % 2**31,
                        "demonstrations": [example.example_id for example in draft.demonstrations],
                        "sentences": asked.sentences,
                        "policy": TUNED if round_ else BASE,
                    }


def candidate_ids(request_id: str, sentences: int) -> list[str]:
    """The ids of one request's candidates; the first candidate has the request's id."""
    prefix, _, number = request_id.rpartition("-")
    return [request_id, *(f"{prefix}-{int(number) + further:06d}" for further in range(1, sentences))]


def slugs_of(relations: Iterable[Relation]) -> dict[str, str]:
    """Relation -> its name in a form for ids, different for each relation."""
    slugs: dict[str, str] = {}
    for number, relation in enumerate(relations):
        slug = re.sub(r"[^a-z0-9]+", "-", relation.name.lower()).strip("-") or f"relation-{number}"
        while slug in slugs.values():
            slug = f"{slug}-{number}"
        slugs[relation.name] = slug
    return slugs


def number_of(seed: int, name: str) -> int:
    """A 64-bit number, computed from the run's seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")


def rows_per_file(total: int) -> int:
    """A 64th of ``total``, from 32 to 4,096: one million rows are some 600 files."""
    return min(max(LEAST_ROWS, total // SHARE), MOST_ROWS)


def write_prompts(run: RunFolder, name: str, rows: Iterator[dict[str, Any]], stem: str = "part") -> int:
    """Write request rows as they come, in files ``<stem>-XXXXXX`` of :func:`rows_per_file` of the rows before; returns how many rows.

    The table is replaced, unless ``stem`` names a later wave.
    """
    if stem == "part":
        run.delete(name)
    total, part, writing = 0, 0, deque[Future[None]]()
    with ThreadPoolExecutor(WRITERS) as writers:
        while chunk := list(islice(rows, rows_per_file(total))):
            if part >= WRITERS:
                writing.popleft().result()
            file, table = f"{name}/{stem}-{part:06d}.parquet", pa.Table.from_pylist(chunk, PROMPTS)
            writing.append(writers.submit(run.write_parquet, file, table))
            total, part = total + len(chunk), part + 1
        for written in writing:
            written.result()
    return total


def accepted_samples(run: RunFolder, rounds: Iterable[int]) -> dict[str, list[Example]]:
    """Relation -> unique and correct samples of ``rounds``, without the naive baseline, in order of their ids."""
    tables = [Round.of(number).scores for number in rounds]
    accepted = pc.field("unique") & pc.field("correct") & (pc.field("strategy") != NAIVE)
    rows = scan.table_of(run, tables, ["candidate_id", *EXAMPLES.names[1:]], accepted)
    found: dict[str, list[Example]] = {}
    for example in table_examples(rows.sort_by("candidate_id"), "candidate_id") if rows else []:
        found.setdefault(example.relation, []).append(example)
    return found
