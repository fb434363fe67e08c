"""Examples and hyperparameters of an RE model, and the ``train`` stage: it trains one on seeds and weighed samples, into ``model/``.

The model's card gives each label's expected precision and recall, by cross-validation on the human examples.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax

from divray.config import Config
from divray.datasets.stage import read_relations, table_examples
from divray.extraction.model import RelationExtractor
from divray.extraction.training import Hyperparameters, fold_of, held_out_scores, scale_of, train, training_rows
from divray.layout import DRAWS, SEEDS, UNLABELLED, Round
from divray.relations import Example
from divray.resources import worker
from divray.run_folder import RunFolder
from divray.scan import table_of
from divray.schemas import EXAMPLES, NAIVE
from divray.stages import Progress

SEARCH, MORE = "search.json", "more"
WEIGHED = "weighed"
"""Part of a training set: the unique samples of all rounds; with a suffix, ``/`` and a round's name or ``naive``, those of one round or of
the naive strategy.  The gate's probabilities are their weights (:func:`weighed`)."""
MOST_WEIGHED = 256
"""Most samples of one relation, the likeliest first; their features stay in memory, 20 kB each with a small encoder."""
MOST_EACH = 0.5
"""Maximum weight of a generated sample, however few there are; a human example has weight 1."""
THRESHOLDS = (0.0, 0.5, 0.7)
WeighedExamples: TypeAlias = tuple[list[Example], list[float]]
"""Examples, and how much each counts."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train on the seeds, the :data:`WEIGHED` samples and ``data/unlabelled`` with the searched hyperparameters; save to ``model/``.

    Returns counts: ``examples``, ``unlabelled``, ``labels``, ``parameters``.
    """
    import ray

    counts: dict[str, Any] = ray.get(worker(config, gpus=True)(_train).remote(config, run.uri))
    return counts


def _train(config: Config, uri: str) -> dict[str, Any]:
    run = RunFolder(uri)
    human, relations, settings = draws_of(run)[0], read_relations(run), tuned(config, run)
    examples, weights = set_of(run, [SEEDS, WEIGHED, UNLABELLED], human, settings, {})
    model = train(examples, relations, config.models.encoder, settings, config.seed, weights)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        labelled = sum(bool(example.relation) for example in examples)
        Path(folder, "README.md").write_text(_card(config, run, model, labelled, len(examples) - labelled), encoding="utf-8")
        run.upload(folder, "model")
    return {"examples": labelled, "unlabelled": len(examples) - labelled, "labels": len(relations), "parameters": model.num_parameters()}


def usual(config: Config) -> Hyperparameters:
    """The hyperparameters of a run without a search."""
    own = config.extraction
    return Hyperparameters(own.generated_weight, own.epochs, own.learning_rate)


def tuned(config: Config, run: RunFolder) -> Hyperparameters:
    """The best values of the search, where one was made."""
    best: dict[str, Any] = run.read_json(SEARCH)["best"] if run.exists(SEARCH) else {}
    return replace(usual(config), **best)


def examples_of(run: RunFolder, name: str) -> list[Example]:
    """Rows of a table with the columns of ``EXAMPLES`` or of ``DATASET``; none where there is no such table."""
    if not run.table_files(name):
        return []
    table = run.read_table(name)
    return table_examples(table, "example_id" if "example_id" in table.column_names else "sample_id")


def draws_of(run: RunFolder) -> list[dict[str, list[Example]]]:
    """The draws of the human examples, each with :data:`SEEDS` and :data:`MORE`; the first is the run's own."""
    table = run.read_table(DRAWS)
    numbers, more = table["draw"].to_pylist(), table["more"].to_pylist()
    draws: list[dict[str, list[Example]]] = [{SEEDS: [], MORE: []} for _ in set(numbers)]
    for example, draw, later in zip(table_examples(table), numbers, more, strict=True):
        draws[draw][MORE if later else SEEDS].append(example)
    return draws


def scored_rounds(run: RunFolder) -> list[Round]:
    """The rounds that have scores."""
    return list(itertools.takewhile(lambda own: run.table_files(own.scores), map(Round.of, itertools.count())))


def weighed(run: RunFolder, name: str = WEIGHED) -> WeighedExamples:
    """The samples that ``name`` stands for (:data:`WEIGHED`), and how much each counts: the gate's probability over its
    0.9 quantile, at most 1, to the fourth power.

    A doubtful sample counts a little.  If only samples that pass the gate counted, the RE model would gain less, and nothing on a task
    where the gate doubts all samples.
    """
    part = name.partition("/")[2]
    tables = [own.scores for own in scored_rounds(run) if part in ("", NAIVE, own.name)]
    own = pc.field("unique") & ((pc.field("strategy") == NAIVE) == (part == NAIVE))
    columns = ["candidate_id", *EXAMPLES.names[1:], "correctness"]
    if (found := table_of(run, tables, columns, own)) is None:
        return [], []
    table = found.sort_by([("relation", "ascending"), ("correctness", "descending"), ("candidate_id", "ascending")])
    _, starts, counts = np.unique(table["relation"].to_numpy(), return_index=True, return_counts=True)
    table = table.filter(pa.array(np.arange(len(table)) - np.repeat(starts, counts) < MOST_WEIGHED))
    sure = table["correctness"].to_numpy()
    best = max(float(np.quantile(sure, 0.9)), 1e-6)
    return table_examples(table, "candidate_id"), (np.clip(sure / best, 0.01, 1.0) ** 4).tolist()


def set_of(
    run: RunFolder, tables: Sequence[str], draw: dict[str, list[Example]], settings: Hyperparameters, read: dict[str, WeighedExamples]
) -> WeighedExamples:
    """The examples of ``tables`` in one draw, and how much each counts.  With seeds among them, a table's generated examples together
    count ``generated_weight`` times as much as the seeds, each at most :data:`MOST_EACH` times its own weight (1 where it is not
    :func:`weighed`).  ``read`` caches the tables that are in no draw."""
    examples: list[Example] = []
    weights: list[float] = []
    for table in tables:
        if table in draw:
            part, own = draw[table], [1.0] * len(draw[table])
        else:
            if table not in read and table.startswith(WEIGHED):
                read[table] = weighed(run, table)
            elif table not in read:
                found = examples_of(run, table)
                read[table] = found, [1.0] * len(found)
            part, own = read[table]
        factor = 1.0
        if SEEDS in tables and own and table not in (*draw, UNLABELLED):
            factor = min(MOST_EACH, settings.generated_weight * len(draw[SEEDS]) / sum(own))
        examples += part
        weights += [factor * weight for weight in own]
    return examples, weights


def _card(config: Config, run: RunFolder, model: RelationExtractor, examples: int, unlabelled: int) -> str:
    """Markdown with the expected precision and recall of each label at each of :data:`THRESHOLDS`."""
    human, relations = draws_of(run)[0][SEEDS], read_relations(run)
    rows, described = training_rows(human, relations), model.described(relations)
    features, settings = model.features(rows.examples), tuned(config, run)
    scores = held_out_scores(features, rows, fold_of(rows), described, settings)[: len(human)]
    known = ~np.isnan(scores).any(axis=1)
    probabilities, gold = softmax(scores[known] * scale_of(features, rows, described, settings), axis=1), rows.targets[: len(human)][known]
    best, certain = probabilities.argmax(axis=1), probabilities.max(axis=1)
    itself = f", and itself on {unlabelled} unlabelled ones" if unlabelled else ""
    text = f"""---
library_name: transformers
base_model: {config.models.encoder}
tags: [relation-extraction, divray]
---
# Relation extraction: {config.task.name}

Trained on {examples} examples, {len(human)} of them human{itself}. Use it with `divray predict` or
`divray.extraction.model.RelationExtractor.load(FOLDER).predict(EXAMPLES)`; `--threshold` leaves out answers below a probability.

Expected precision / recall at a threshold, from {int(known.sum())} human examples, each classified by a model fitted on
the others (cross-validation of the closed form). Few examples a label give rough figures.

| label | examples | {" | ".join(map(str, THRESHOLDS))} |
|---|---:|{"---:|" * len(THRESHOLDS)}
"""
    for number, relation in enumerate(relations):
        true, cells = gold == number, []
        for threshold in THRESHOLDS:
            answered = (best == number) & (certain >= threshold)
            right = (answered & true).sum()
            cells.append(" / ".join(f"{right / whole:.2f}" if whole else "–" for whole in (answered.sum(), true.sum())))
        name = relation.name.replace("|", "\\|")
        text += f"| {name} | {true.sum()} | {' | '.join(cells)} |\n"
    return text
