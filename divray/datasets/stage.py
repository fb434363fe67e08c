"""The first stage, ``prepare``: the user's files become relations, seed examples and test examples in the run folder.

Every later stage reads the run folder alone, where examples are rows of :data:`divray.schemas.EXAMPLES`.

Examples are ranked by a hash of the run's random seed and their content, so the order of the file does not matter.  The ranking does
not depend on K (``task.seeds_per_relation``): a relation's seeds for K + 1 begin with those for K, and a held-out test set stays the same.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from divray.config import Config
from divray.datasets.corpora import read_fewrel, read_semeval, read_tacred
from divray.datasets.huggingface import read_huggingface
from divray.datasets.own import Source, read_jsonl, read_marked, read_relations_file
from divray.errors import InputError
from divray.layout import DRAWS, NEGATIVES, RELATIONS, SEEDS, TEST, UNLABELLED
from divray.relations import MARKERS, Example, Relation
from divray.run_folder import RunFolder
from divray.schemas import EXAMPLES
from divray.sections import TaskConfig
from divray.stages import Progress

UNLABELLED_A_SEED = 24
"""Unlabelled sentences to keep per seed.  Self-training uses at most a third, the surest; those of a larger number repeat the seeds."""


@dataclass(frozen=True)
class Task:
    """Everything known before the first sample.

    Attributes:
        relations: In the order of the relations file.
        seeds: At most K a relation, in the order of the relations, then of their rank.
        test: The test file in its own order, or the held-out examples in the order of ``seeds``.
        draws: ``seeds``, then the seed examples that other random seeds give; at most ``evaluation.draws``, all different.
        more: For each draw the next K examples of each relation, or as many as the data has.
        negatives: Sentences whose entities have none of the relations.
        unlabelled: Sentences for self-training, with the label ``""``; none with a text of the test set.
        skipped: ``part/reason`` -> number of examples that readers left out.
    """

    relations: list[Relation]
    seeds: list[Example]
    test: list[Example]
    draws: list[list[Example]]
    more: list[list[Example]]
    negatives: list[Example]
    unlabelled: list[Example]
    skipped: dict[str, int]


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``data/relations.json`` and the tables ``seeds``, ``test``, ``draws``, ``negatives`` and ``unlabelled`` beside it.

    ``data/draws`` holds ``draws`` and ``more`` of :class:`Task`: the column ``draw`` is the draw's number (0: the run's own),
    the column ``more`` marks the rows of ``more``.

    Raises:
        InputError: The data is wrong; nothing was written then.
    """
    task = load_task(config)
    run.delete("data")  # also what later stages made of older files
    rows = [{key: value for key, value in asdict(relation).items() if key != "examples"} for relation in task.relations]
    run.write_json(RELATIONS, rows)
    for name, part in ((SEEDS, task.seeds), (TEST, task.test), (NEGATIVES, task.negatives), (UNLABELLED, task.unlabelled)):
        if part:
            run.write_table(name, examples_table(part))
    tables = [
        examples_table(part)
        .append_column("draw", pa.array([number] * len(part), pa.int64()))
        .append_column("more", pa.array([later] * len(part), pa.bool_()))
        for number, (draw, more) in enumerate(zip(task.draws, task.more, strict=True))
        for later, part in ((False, draw), (True, more))
    ]
    run.write_table(DRAWS, pa.concat_tables(tables))
    return {"relations": len(rows), "seeds": len(task.seeds), "test": len(task.test), "skipped": task.skipped}


def read_relations(run: RunFolder) -> list[Relation]:
    """The relations of a prepared run, without the examples of the relations file."""
    return [Relation(**row) for row in run.read_json(RELATIONS)]


def stated(relations: Iterable[Relation], none_label: str | None) -> list[Relation]:
    """The relations that a sentence can state and that samples are written for: all but ``task.none_label``."""
    return [relation for relation in relations if relation.name != none_label]


def read_seeds(run: RunFolder) -> list[Example]:
    return table_examples(run.read_table(SEEDS))


def examples_table(examples: Iterable[Example]) -> pa.Table:
    """One row an example, in the given order."""
    rows = ((e.example_id, e.relation, e.text, *e.head, *e.tail, e.head_type, e.tail_type) for e in examples)
    return pa.Table.from_pylist([dict(zip(EXAMPLES.names, row, strict=True)) for row in rows], schema=EXAMPLES)


def table_examples(table: pa.Table, identity: str = "example_id") -> list[Example]:
    """The rows of a table that has at least the columns of ``EXAMPLES``; ``identity`` is the column of the ids."""
    columns = [table[name].to_pylist() for name in (identity, *EXAMPLES.names[1:])]
    return [
        Example(text, (start, end), (tail_start, tail_end), relation, head_type or "", tail_type or "", name or "")
        for name, relation, text, start, end, tail_start, tail_end, head_type, tail_type in zip(*columns, strict=True)
    ]


def load_task(config: Config) -> Task:
    """Read and check the data of a run; loads no model and writes nothing.

    Raises:
        InputError: Anything is wrong with the relations file or the data, K is larger than the data, or there is no test set.
    """
    task, path = config.task, Path(config.task.relations)
    relations = read_relations_file(path)
    names = [relation.name for relation in relations]
    if task.none_label is not None and task.none_label not in names:
        raise InputError(str(path), "task.none_label", f"{task.none_label!r} is not among the relations", "Add it, with a description.")
    if (task.test is None) == (task.test_per_relation is None):
        fix = "Give a test file, or task.test_per_relation to hold out a part of the training file."
        raise InputError("task", "test, test_per_relation", "one of the two is needed, and one only", fix)
    labels = {"train": names, "test": names, "negatives": ["none"], "unlabelled": []}
    folder = Path(task.data or ".").expanduser()
    files = {part: folder / Path(getattr(task, part)).expanduser() for part in labels if getattr(task, part) is not None}
    sources = {part: Source(file, frozenset(labels[part]), part == "unlabelled") for part, file in files.items()}
    found = {part: _read(task, part, source) for part, source in sources.items()}
    pool = found.get("train", [_named("seed", example) for relation in relations for example in relation.examples])
    test, negatives, unlabelled = (found.get(part, []) for part in ("test", "negatives", "unlabelled"))

    ranked = _ranked(pool, names, config.seed)
    if task.test_per_relation:
        test = [example for examples in ranked.values() for example in examples[-task.test_per_relation :]]
    tested = {example.text for example in (*test, *negatives)}
    unlabelled = sorted((one for one in unlabelled if one.text not in tested), key=lambda one: _rank(config.seed, one))
    usable, k = _usable(ranked, tested), task.seeds_per_relation
    for name, examples in usable.items():
        if len(examples) < (1 if task.fewer_seeds else k):
            problem = f"{len(examples)} of {len(ranked[name])} different examples can be seeds, fewer than task.seeds_per_relation = {k}"
            fix = "Add examples that the test set lacks, without [ ] { } and line breaks"
            fix += "; or set it lower, or task.fewer_seeds=true." if examples else "."
            raise sources.get("train", Source(path)).error(f"relation {name}", problem, fix)
    draws: list[list[Example]] = []
    more: list[list[Example]] = []
    for number in range(config.evaluation.draws):
        usable = _usable(_ranked(pool, names, config.seed + number), tested)
        draw = [example for examples in usable.values() for example in examples[:k]]
        if not any(set(draw) == set(other) for other in draws):  # draws are equal if the data has no more examples than seeds
            draws.append(draw)
            more.append([example for examples in usable.values() for example in examples[k : 2 * k]])
    unlabelled = unlabelled[: UNLABELLED_A_SEED * len(draws[0])]
    skipped = {f"{part}/{reason}": number for part, source in sources.items() for reason, number in sorted(source.left_out.items())}
    return Task(relations, draws[0], test, draws, more, negatives, unlabelled, skipped)


def _read(task: TaskConfig, part: str, source: Source) -> list[Example]:
    readers = {"semeval": read_semeval, "tacred": read_tacred, "fewrel": read_fewrel, "huggingface": read_huggingface}
    reader = readers.get(task.format, read_jsonl)
    if task.format == "divray" and source.path.suffix.lower() in (".yaml", ".yml"):
        reader = read_marked
    examples = [_named(part, example) for example in reader(source)]
    if not examples:
        raise source.error("", f"holds no usable example; left out: {words_of(source.left_out)}", "Give another file.")
    return examples


def _named(part: str, example: Example) -> Example:
    return replace(example, example_id=f"{part}:{example.example_id}")


def words_of(reasons: Mapping[str, int]) -> str:
    """The reasons why examples were left out, each with its count."""
    return ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in sorted(reasons.items()) if number) or "none"


def _rank(seed: int, example: Example) -> tuple[bytes, str]:
    content = "\x1f".join(map(str, (seed, example.relation, example.text, *example.head, *example.tail)))
    return hashlib.sha256(content.encode()).digest(), example.example_id


def _ranked(pool: list[Example], names: list[str], seed: int) -> dict[str, list[Example]]:
    """Relation -> its examples by rank, each text once, so that two entity pairs of one sentence do not become two seeds."""
    ranked: dict[str, dict[str, Example]] = {name: {} for name in names}
    for example in sorted(pool, key=lambda example: _rank(seed, example)):
        ranked[example.relation].setdefault(example.text, example)
    return {name: list(examples.values()) for name, examples in ranked.items()}


def _usable(ranked: dict[str, list[Example]], tested: set[str]) -> dict[str, list[Example]]:
    """The examples that a prompt can show (without marks and line breaks) and that are not in the test set."""
    hidden = set(f"{MARKERS}\r\n")
    return {name: [one for one in examples if hidden.isdisjoint(one.text) and one.text not in tested] for name, examples in ranked.items()}
