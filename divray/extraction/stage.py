"""The ``train`` stage: the RE model on seeds and selected samples, into ``model/``, with a card.

The card says what each label's answers are worth, by cross-validation on the human examples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from divray.config import Config
from divray.datasets.stage import read_relations
from divray.extraction.inputs import SELECTED, Hyperparameters, draws_of, set_of, tuned
from divray.extraction.model import RelationExtractor
from divray.extraction.training import fold_of, held_out_scores, train, training_rows
from divray.relations import Example, Relation
from divray.resources import worker
from divray.run_folder import SEEDS, RunFolder
from divray.stages import Progress


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train on ``data/seeds`` and ``comparison/selected`` with the searched hyperparameters; save to ``model/``.

    Returns:
        Counts: ``examples``, ``labels``, ``parameters``.
    """
    import ray

    counts: dict[str, Any] = ray.get(worker(config, gpus=True)(_train).remote(config, run.uri))
    return counts


def _train(config: Config, uri: str) -> dict[str, Any]:
    run = RunFolder(uri)
    own, relations, settings = draws_of(run)[0], read_relations(run), tuned(config, run)
    examples, weights = set_of(run, [SEEDS, SELECTED], own, settings)
    model = train(examples, relations, config.models.encoder, settings, config.seed, weights)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        Path(folder, "README.md").write_text(model_card(config, settings, model, relations, own[SEEDS], len(examples)), encoding="utf-8")
        run.upload(folder, "model")
    return {"examples": len(examples), "labels": len(relations), "parameters": model.num_parameters()}


THRESHOLDS = (0.0, 0.5, 0.7)


def model_card(
    config: Config,
    settings: Hyperparameters,
    model: RelationExtractor,
    relations: Sequence[Relation],
    human: Sequence[Example],
    examples: int,
) -> str:
    """Markdown with the expected precision and recall of each label at each of :data:`THRESHOLDS`.

    Args:
        config: The run's settings.
        settings: The RE model's, after the search.
        model: Trained.
        relations: The labels.
        human: Human examples, which are classified by models that have not seen them.
        examples: How many examples the model was trained on.
    """
    names = [relation.name for relation in relations]
    rows = training_rows(human, relations)
    features = model.features(rows.examples)
    described = model.described([relation.description for relation in relations])
    scores = held_out_scores(features, rows, fold_of(rows), described, settings)[: len(human)]
    known = ~np.isnan(scores).any(axis=1)
    probabilities, gold = softmax(scores[known] * model.config.scale, axis=1), rows.targets[: len(human)][known]
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {config.models.encoder}",
        "tags: [relation-extraction, divray]",
        "---",
        f"# Relation extraction: {config.task.name}",
        "",
        f"Trained on {examples} examples, {len(human)} of them human. Read it with `divray predict` or",
        "`divray.extraction.model.RelationExtractor.load(FOLDER).predict(EXAMPLES)`; `--threshold` leaves out answers below a probability.",
        "",
        f"Expected precision / recall at a threshold, from {int(known.sum())} human examples, each classified by a model fitted on",
        "the others (cross-validation of the closed form). Few examples a label give rough figures.",
        "",
        "| label | examples | " + " | ".join(f"{threshold}" for threshold in THRESHOLDS) + " |",
        "|---|---:|" + "---:|" * len(THRESHOLDS),
    ]
    best, certain = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for number, name in enumerate(names):
        true = gold == number
        cells = []
        for threshold in THRESHOLDS:
            answered = (best == number) & (certain >= threshold)
            right = int((answered & true).sum())
            cells.append(f"{_share(right, int(answered.sum()))} / {_share(right, int(true.sum()))}")
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {int(true.sum())} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "–"
