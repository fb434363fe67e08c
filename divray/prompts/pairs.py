"""The user's entity pairs, for which sentences are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from divray import scan
from divray.datasets.own import Source
from divray.layout import ENTITY_PAIRS
from divray.prompts.parsing import Form, pair_problem
from divray.prompts.record import Pair
from divray.relations import Relation
from divray.run_folder import RunFolder
from divray.textfiles import json_lines, read_bytes

COLUMNS = ("relation", "head", "tail")
"""In the order in which prompts take them."""


def read_pairs(path: str, relations: Iterable[Relation], form: Form) -> dict[str, list[Pair]]:
    """The user's pairs: a ``.jsonl`` file of objects with ``relation``, ``head`` and ``tail``.

    Raises:
        InputError: The file is missing or another kind of file, names an unknown relation, or holds a pair that can't be used.
    """
    source = Source(Path(path), {relation.name for relation in relations})
    if source.path.suffix.lower() != ".jsonl" or not source.path.is_file():
        raise source.error("prompts.pairs_file", "no .jsonl file there", "Give a file with relation, head and tail in each line.")
    found: dict[str, list[Pair]] = {}
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), path):
        place = f"line {number}"
        relation = source.label(place, row.get("relation"))
        head, tail = (" ".join(source.string(place, name, row.get(name)).split()) for name in ("head", "tail"))
        if problem := pair_problem((head, tail), form):
            raise source.error(place, f"{(head, tail)} can't be used: {problem}", "Correct or drop the row.")
        found.setdefault(relation, []).append((head, tail))
    if not found:
        raise source.error("prompts.pairs_file", "holds no pair", "Give pairs, or drop the setting: the LLM writes its own.")
    return found


def write_pool(run: RunFolder, pool: Mapping[str, Sequence[Pair]]) -> None:
    """Put the pool into the run folder."""
    rows = [{"relation": relation, "head": head, "tail": tail} for relation, pairs in pool.items() for head, tail in pairs]
    run.write_table(ENTITY_PAIRS, pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in COLUMNS])))


def read_pool(run: RunFolder) -> dict[str, list[Pair]]:
    """The pool of the run folder; empty where the LLM writes its own pairs."""
    found: dict[str, list[Pair]] = {}
    for row in scan.rows(run, ENTITY_PAIRS, COLUMNS):
        found.setdefault(row["relation"], []).append((row["head"], row["tail"]))
    return found
