"""A task as the other stages see it: relations, seed examples, test examples.

Which examples become seeds is decided by a hash of the run's seed and the example's own content, so it
depends neither on the order of the file nor on the number of seeds: the seeds for K are the first of
those for K + 1, and a held-out test set stays the same for every K.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from divray.config import Config
from divray.datasets.fewrel import read_fewrel
from divray.datasets.huggingface import read_huggingface
from divray.datasets.jsonl import read_jsonl
from divray.datasets.marked import read_marked, read_relations_file
from divray.datasets.semeval import read_semeval
from divray.datasets.source import Source
from divray.datasets.tacred import read_tacred
from divray.errors import InputError
from divray.relations import MARKERS, Example, Relation
from divray.sections import TaskConfig


@dataclass(frozen=True)
class Task:
    """Everything known before the first sample.

    Attributes:
        relations: In the order of the relations file.
        seeds: At most K a relation, in the order of the relations, then of their rank.
        test: The test file in its own order, or the held-out part like the seeds.
        draws: The seeds, and what they would be by other seeds of the run (``evaluation.draws`` in all); the seeds alone where
            there are no other examples.
        skipped: ``part/reason`` -> examples of the data that could not be used.
    """

    relations: list[Relation]
    seeds: list[Example]
    test: list[Example]
    draws: list[list[Example]]
    skipped: dict[str, int]


def load_task(config: Config) -> Task:
    """Read and check the data of a run; loads no model and writes nothing.

    Raises:
        InputError: Anything is wrong with the relations file or the data, K is larger than the data, or
            there is nothing to test on.
    """
    task = config.task
    where = str(Path(task.relations))
    relations = read_relations_file(Path(task.relations))
    names = [relation.name for relation in relations]
    if task.none_label is not None and task.none_label not in names:
        raise InputError(where, "task.none_label", f"{task.none_label!r} is not among the relations", "Add it, with a description.")
    for relation in relations:
        if task.train is None and not relation.examples:
            raise InputError(where, f"relation {relation.name}, examples", "missing", "Add some, or give task.train.")
    if task.test is None and task.test_per_relation is None:
        raise InputError(
            where, "task.test", "missing", "Give a test file, or task.test_per_relation to hold out a part of the training file."
        )

    skipped: Counter[str] = Counter()
    if task.train is None:
        pool = [_named("seed", example) for relation in relations for example in relation.examples]
    else:
        pool = list(_read(task, "train", task.train, names, skipped))
    test = list(_read(task, "test", task.test, names, skipped)) if task.test is not None else []
    ranked = _ranked(pool, names, config.seed, skipped)
    origin = where if task.train is None else str(_path(task, task.train))
    if task.test is None:
        test = _hold_out(task, ranked, origin)
    tested = {example.text for example in test}
    seeds = _draw(task, ranked, tested, origin, skipped)
    draws = [seeds]
    for number in range(1, config.evaluation.draws):
        draw = _draw(task, _ranked(pool, names, config.seed + number, Counter()), tested, origin, Counter())
        if set(draw) == set(seeds):  # there are no more examples than seeds
            break
        draws.append(draw)
    return Task(relations, seeds, test, draws, dict(sorted(skipped.items())))


def _path(task: TaskConfig, name: str) -> Path:
    return Path(task.data or ".").expanduser() / Path(name).expanduser()


def _read(task: TaskConfig, part: str, name: str, names: list[str], skipped: Counter[str]) -> Iterator[Example]:
    source = Source(_path(task, name), frozenset(names))
    count = 0
    for example in _reader(task, source):
        count += 1
        yield _named(part, example)
    skipped.update({f"{part}/{reason}": number for reason, number in source.skipped.items()})
    if not count:
        raise source.error("", "holds no usable example", f"Left out: {dict(source.skipped) or 'none'}. Give another file.")


def _reader(task: TaskConfig, source: Source) -> Iterator[Example]:
    if task.patches and task.format != "tacred":
        raise InputError("task", "patches", f"format {task.format} has no patches", "Remove them, or set task.format: tacred.")
    match task.format:
        case "semeval":
            return read_semeval(source)
        case "tacred":
            return read_tacred(source, [_path(task, patch) for patch in task.patches])
        case "fewrel":
            return read_fewrel(source)
        case "huggingface":
            return read_huggingface(source)
        case "divray" if source.path.suffix in (".yaml", ".yml"):
            return read_marked(source)
        case _:
            return read_jsonl(source)


def _named(part: str, example: Example) -> Example:
    return replace(example, example_id=f"{part}:{example.example_id}")


def _rank(seed: int, example: Example) -> tuple[bytes, str]:
    content = "\x1f".join(map(str, (seed, example.relation, example.text, *example.head, *example.tail)))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest(), example.example_id


def _ranked(pool: list[Example], names: list[str], seed: int, skipped: Counter[str]) -> dict[str, list[Example]]:
    """Relation -> its examples by rank, each text once: two entity pairs of one sentence are no two seeds."""
    ranked: dict[str, list[Example]] = {name: [] for name in names}
    seen: set[tuple[str, str]] = set()
    for example in sorted(pool, key=lambda example: _rank(seed, example)):
        if (example.relation, example.text) in seen:
            skipped["seeds/same_text"] += 1
            continue
        seen.add((example.relation, example.text))
        ranked[example.relation].append(example)
    return ranked


def _hold_out(task: TaskConfig, ranked: dict[str, list[Example]], origin: str) -> list[Example]:
    """The last ``test_per_relation`` by rank of each relation."""
    size = task.test_per_relation or 0
    test = []
    for name, examples in ranked.items():
        if len(examples) <= size:
            mend = f"Set task.test_per_relation to at most {len(examples) - 1}, or give task.test."
            raise InputError(origin, f"relation {name}", f"{len(examples)} different examples, {size} are to be held out", mend)
        test += examples[-size:]
    return test


def _draw(task: TaskConfig, ranked: dict[str, list[Example]], tested: set[str], origin: str, skipped: Counter[str]) -> list[Example]:
    """The first K by rank of each relation that a prompt can show and that the test set does not hold."""
    wanted = task.seeds_per_relation
    seeds = []
    for name, examples in ranked.items():
        usable = []
        for example in examples:
            if example.text in tested:
                if task.test is not None:
                    skipped["seeds/text_in_test"] += 1
            elif any(character in MARKERS or character in "\r\n" for character in example.text):
                skipped["seeds/mark_or_line_break_in_text"] += 1
            else:
                usable.append(example)
        if len(usable) < (1 if task.fewer_seeds else wanted):
            raise InputError(
                origin,
                f"relation {name}",
                f"{len(usable)} usable examples, fewer than task.seeds_per_relation = {wanted}",
                f"Set it to at most {len(usable)}, or task.fewer_seeds=true." if usable else "Add examples of the relation.",
            )
        seeds += usable[:wanted]
    return seeds
