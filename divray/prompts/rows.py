"""From a wave's plan to request rows: prompt texts, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.prompts.plan import Wave, evenly_picked, first_wave, number_of, numbered, planned, slugs_of
from divray.prompts.record import Pair, as_json, as_lines, json_schema, labels, list_pattern
from divray.prompts.strategies import Draft
from divray.relations import Example, Relation
from divray.run_folder import Round, RunFolder
from divray.schemas import BASE, NAIVE, PROMPTS, TUNED

LEAST_ROWS, MOST_ROWS, SHARE = 32, 4096, 100
"""Of a Parquet file, which is one block of the sampling pass and so the grain of a resume."""

_GIVEN = "Write the sentence of a new record whose head is"

Renderer = Callable[[list[dict[str, str]]], str]


def render_prompt(relation: Relation, draft: Draft, pair: Pair | None = None, chat: Renderer | None = None) -> str:
    """Task, relation, wish and demonstrations as records, up to the first field that the LLM writes.

    Args:
        relation: The relation that the sentence must state.
        draft: The strategy's choices.
        pair: The head and tail of the new sentence; ``None``: the LLM writes them, too.
        chat: Renders messages by the model's chat template; without it the prompt is plain text
            that the model continues.
    """
    lines = [
        "Each record names a head and a tail, and gives one sentence that states the same relation between the two.",
        "",
        f"Relation: {relation.name}",
        f"Meaning: {relation.description}",
    ]
    if draft.wish:
        lines.append("Every record is as different as possible from the others: other names, other words, another structure.")
    if chat is None:
        shown = [as_lines(relation, example) + "\n" for example in draft.demonstrations]
        head, tail, sentence = labels(relation)
        hint = [draft.hint] if draft.hint else []
        return "\n".join([*lines, "", *shown, *hint, *([f"{head} {pair[0]}", f"{tail} {pair[1]}", sentence] if pair else [head])])
    lines += ["", *map(as_json, draft.demonstrations), "", *([draft.hint] if draft.hint else [])]
    if pair:
        lines.append(f'{_GIVEN} "{pair[0]}" and whose tail is "{pair[1]}". Use both exactly once.')
    else:
        wanted = "one new record" if draft.sentences == 1 else f"a list of {draft.sentences} new records"
        lines.append(f"Write {wanted}. The sentence has the head and the tail in it exactly once, letter by letter.")
    lines.append("Answer in JSON.")
    return chat([{"role": "user", "content": "\n".join(lines)}])


def gives_pair(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each prompt of :func:`render_prompt` gives the pair, in either style."""
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
    """The request rows (``schemas.PROMPTS``) of one wave; candidates of one prompt stand together.

    Args:
        pool: Relation -> the pairs to write sentences for; a relation without any writes its own.
    """
    slugs = slugs_of(relations)
    wave = wave or first_wave(config, relations, round_)
    for relation in relations:
        own = [seed for seed in seeds if seed.relation == relation.name]
        pairs = (pool or {}).get(relation.name, ())
        for place, (name, count) in enumerate(wave.count.get(relation.name, {}).items()):
            before = wave.first.get(relation.name, {}).get(name, 0)
            prefix = f"r{round_:02d}-{slugs[relation.name]}-{name}"
            for one in planned(config, wave, relation, prefix, own, count, name):
                draft = one.draft
                block = -(-before // config.prompts.candidates_per_prompt) + one.start // config.prompts.candidates_per_prompt
                # A naive prompt and a list of records have no pair given.
                given = _pair_for(config, pairs, round_, place, block) if name != NAIVE and draft.sentences == 1 else None
                for number in range(one.start, one.end, draft.sentences):
                    asked = replace(draft, sentences=min(draft.sentences, one.end - number))
                    candidate_id = numbered(prefix, before + number)
                    yield {
                        "candidate_id": candidate_id,
                        "relation": relation.name,
                        "round": round_,
                        "strategy": name,
                        "prompt_id": one.prompt_id,
                        "prompt": render_prompt(relation, asked, given, chat),
                        "head": given[0] if given else "",
                        "tail": given[1] if given else "",
                        "pattern": _pattern(relation, given, asked.sentences, chat is not None),
                        "seed": number_of(config.seed, candidate_id) % 2**31,
                        "demonstrations": [example.example_id for example in draft.demonstrations],
                        "sentences": asked.sentences,
                        "policy": BASE
                        if round_ == 0 or evenly_picked(before + number, draft.sentences, config.sampling.base_share)
                        else TUNED,
                    }


def _pattern(relation: Relation, given: Pair | None, sentences: int, chat: bool) -> str:
    """What the engine decodes under; one record as lines needs nothing, since the demonstrations show its form."""
    if chat:
        return json_schema(given is not None, sentences)
    return list_pattern(relation, sentences) if sentences > 1 else ""


def _pair_for(config: Config, pairs: Sequence[Pair], round_: int, strategy: int, prompt: int) -> Pair | None:
    """The pair of a relation's and strategy's prompt of that number; prompts take the pool in turn."""
    if not pairs:
        return None
    prompts_a_round = -(-config.sampling.candidates_per_relation // config.prompts.candidates_per_prompt)
    return pairs[(round_ * prompts_a_round + prompt * len(config.prompts.strategies) + strategy) % len(pairs)]


def rows_per_file(total: int) -> int:
    """A hundredth of ``total``, from 32 to 4,096: one million rows are some 700 files."""
    return min(max(LEAST_ROWS, total // SHARE), MOST_ROWS)


def write_prompts(run: RunFolder, name: str, rows: Iterator[dict[str, Any]], stem: str = "part") -> int:
    """Write request rows in files ``<stem>-XXXXXX`` as they come, each of a hundredth of the rows before; returns how many.

    The table is replaced, unless ``stem`` names a later wave.
    """
    if stem == "part":
        run.delete(name)
    total = part = 0
    while chunk := list(islice(rows, rows_per_file(total))):
        run.write_parquet(f"{name}/{stem}-{part:06d}.parquet", pa.Table.from_pylist(chunk, PROMPTS))
        total, part = total + len(chunk), part + 1
    return total


def accepted_samples(run: RunFolder, rounds: Iterable[int]) -> dict[str, list[Example]]:
    """Relation -> unique and correct samples of ``rounds``, without the naive baseline, in order of their ids."""
    import pyarrow.dataset as pads

    files = run.table_files(*(Round.of(number).scores for number in rounds))
    found: dict[str, list[Example]] = {}
    if not files:
        return found
    columns = ["candidate_id", "relation", "text", "head_start", "head_end", "tail_start", "tail_end"]
    own = pads.field("unique") & pads.field("correct") & (pads.field("strategy") != NAIVE)
    for row in pads.dataset(files, filesystem=run.fs).to_table(columns, filter=own).sort_by("candidate_id").to_pylist():
        head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
        found.setdefault(row["relation"], []).append(Example(row["text"], head, tail, row["relation"], example_id=row["candidate_id"]))
    return found
