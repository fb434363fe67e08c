"""The pool of entity pairs that the LLM writes sentences for: the user's pairs, or pairs that the LLM writes first.

The LLM's pairs are distinct, none is the pair of a seed, and no entity is in more than :data:`MOST_REPEATS` pairs of a relation.  divray
never drops a pair of the user: one that it can't use is an error.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from divray.config import Config
from divray.datasets.own import Source
from divray.layout import ENTITY_PAIRS
from divray.prompts.parsing import Form, bare_name, pair_problem
from divray.prompts.record import Pair, labels
from divray.prompts.rows import Renderer, number_of, slugs_of
from divray.relations import Example, Relation
from divray.run_folder import RunFolder
from divray.schemas import BASE, PAIRS_A_COMPLETION, PAIRS_STRATEGY
from divray.textfiles import json_lines, read_bytes

MOST_REPEATS = 2


def pairs_wanted(config: Config) -> int:
    """How many pairs a relation needs: one for each prompt of all rounds."""
    return config.rounds * ceil(config.sampling.candidates_per_relation / config.prompts.candidates_per_prompt)


def pair_rows(config: Config, relations: Sequence[Relation], seeds: Sequence[Example], chat: Renderer | None) -> Iterator[dict[str, Any]]:
    """Request rows (``schemas.PROMPTS``) for lists of pairs.  Each relation's rows ask for at least twice :func:`pairs_wanted` pairs."""
    slugs = slugs_of(relations)
    for relation in relations:
        own = [example for example in seeds if example.relation == relation.name]
        for number in range(ceil(2 * pairs_wanted(config) / PAIRS_A_COMPLETION)):
            candidate_id = f"{PAIRS_STRATEGY}-{slugs[relation.name]}-{number:06d}"
            seed = number_of(config.seed, candidate_id)
            yield {
                "candidate_id": candidate_id,
                "relation": relation.name,
                "round": 0,
                "strategy": PAIRS_STRATEGY,
                "prompt_id": candidate_id,
                "prompt": _prompt(relation, random.Random(seed).sample(own, len(own)), chat),
                "head": "",
                "tail": "",
                "pattern": "",
                "seed": seed % 2**31,
                "demonstrations": [example.example_id for example in own],
                "policy": BASE,
            }


def _prompt(relation: Relation, shown: Sequence[Example], chat: Renderer | None) -> str:
    head, tail, _ = (label.rstrip(":") for label in labels(relation))
    lines = [
        "A list of heads and tails between which one and the same relation holds. No name stands in it twice.",
        "",
        f"Relation: {relation.name}",
        f"Meaning: {relation.description}",
        "",
        f"{head} | {tail}",
        *(f"{example.head_text} | {example.tail_text}" for example in shown),
    ]
    if chat is None:
        return "\n".join(lines) + "\n"
    lines += ["", f"Write {PAIRS_A_COMPLETION} new lines of this list, and nothing else."]
    return chat([{"role": "user", "content": "\n".join(lines)}])


def pool_of(completions: Iterable[Mapping[str, Any]], form: Form, wanted: int) -> dict[str, list[Pair]]:
    """Relation -> its pairs, at most ``wanted``, from the completions of :func:`pair_rows` by ascending ``candidate_id``."""
    lines: dict[str, list[Pair]] = {}
    for row in sorted(completions, key=lambda row: str(row["candidate_id"])):
        written = row["completion"].split("\n")
        for line in written[:-1] if row["finish_reason"] == "length" else written:
            head, bar, tail = line.strip("| ").partition("|")
            if bar and "|" not in tail:
                lines.setdefault(row["relation"], []).append((bare_name(" ".join(head.split())), bare_name(" ".join(tail.split()))))
    return {relation: _spread(relation, pairs, form, wanted) for relation, pairs in lines.items()}


def _spread(relation: str, pairs: Iterable[Pair], form: Form, wanted: int) -> list[Pair]:
    uses: Counter[str] = Counter()
    kept: dict[tuple[str, ...], Pair] = {}
    for pair in pairs:
        folded = tuple(entity.casefold() for entity in pair)
        if folded in kept or pair_problem(pair, form, relation) or max(uses[entity] for entity in folded) >= MOST_REPEATS:
            continue
        uses.update(folded)
        kept[folded] = pair
    return list(kept.values())[:wanted]


def read_pairs(path: str, relations: Iterable[Relation], form: Form) -> dict[str, list[Pair]]:
    """The user's pairs: a ``.jsonl`` file of objects with ``relation``, ``head`` and ``tail``.

    Raises:
        InputError: The file is missing, not ``.jsonl`` or malformed; or it holds no pair, an unknown relation or an unusable pair.
    """
    source = Source(Path(path), {relation.name for relation in relations})
    if source.path.suffix.lower() != ".jsonl" or not source.path.is_file():
        raise source.error("prompts.pairs_file", "no .jsonl file there", "Give a file with relation, head and tail in each line.")
    found: dict[str, list[Pair]] = {}
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), path):
        place = f"line {number}"
        relation = source.label(place, row.get("relation"))
        head, tail = (" ".join(source.string(place, name, row.get(name)).split()) for name in ("head", "tail"))
        if problem := pair_problem((head, tail), form, relation):
            raise source.error(place, f"{(head, tail)} can't be used: {problem}", "Correct or drop the row.")
        found.setdefault(relation, []).append((head, tail))
    if not found:
        raise source.error("prompts.pairs_file", "holds no pair", "Add pairs, or drop the setting so that the LLM writes them.")
    return found


def read_pool(run: RunFolder) -> dict[str, list[Pair]]:
    """Relation -> its pairs, which prompts take in order; empty where the LLM writes each pair together with its sentence."""
    found = run.read_json(ENTITY_PAIRS) if run.exists(ENTITY_PAIRS) else {}
    return {relation: [(head, tail) for head, tail in pairs] for relation, pairs in found.items()}
