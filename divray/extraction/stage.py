"""The ``train`` stage: trains an RE model on seeds and weighted generated samples, and saves it to ``model/``.

The model's card gives each label's expected precision and recall, from cross-validation on the human examples.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from divray.config import Config
from divray.datasets.stage import read_relations
from divray.dedup.storage import public_name
from divray.extraction.model import RelationExtractor
from divray.extraction.sets import WEIGHED, TrainingSets
from divray.extraction.training import fold_of, held_out_scores, scale_of, train, training_rows
from divray.layout import SEEDS, UNLABELLED
from divray.relations import Relation
from divray.resources import worker
from divray.run_folder import RunFolder
from divray.stages import Progress

THRESHOLDS = (0.0, 0.5, 0.7)


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train on the seeds, the :data:`WEIGHED` samples and ``data/unlabelled`` with the searched hyperparameters; save to ``model/``.

    Returns counts: ``examples``, ``unlabelled``, ``labels``, ``parameters``.
    """
    import ray

    return ray.get(worker(config, gpus=True)(_train).remote(config, run.uri))


def _train(config: Config, uri: str) -> dict[str, Any]:
    run = RunFolder(uri)
    relations, sets = read_relations(run), TrainingSets(config, run)
    examples = sets.examples([SEEDS, WEIGHED, UNLABELLED])
    model = train(examples, relations, config.models.encoder, sets.settings, config.seed)
    labelled = sum(bool(example.relation) for example in examples)
    counts = {"examples": labelled, "unlabelled": len(examples) - labelled}
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        Path(folder, "README.md").write_text(_card(config, relations, sets, model, **counts), encoding="utf-8")
        run.upload(folder, "model")
    return {**counts, "labels": len(relations), "parameters": model.num_parameters()}


def _card(config: Config, relations: list[Relation], sets: TrainingSets, model: RelationExtractor, examples: int, unlabelled: int) -> str:
    """Markdown with the expected precision and recall of each label at each of :data:`THRESHOLDS`."""
    human = sets.draws[0][SEEDS]
    rows = training_rows(human, relations)
    scores = held_out_scores(model.features(rows.examples), rows, fold_of(rows), model.described(relations), sets.settings)
    known = np.flatnonzero(~np.isnan(scores[: len(human)]).any(axis=1))
    probabilities, gold = softmax(scores[known] * scale_of(scores, rows), axis=1), rows.targets[known]
    best, certain = probabilities.argmax(axis=1), probabilities.max(axis=1)
    itself = f", and by self-training on the surest of {unlabelled} unlabelled sentences" if unlabelled else ""
    text = f"""---
library_name: transformers
base_model: {public_name(config.models.encoder).partition("@")[0]}
tags: [relation-extraction, divray]
---
# Relation extraction: {config.task.name}

Trained on {examples} examples, {len(human)} of them human{itself}. Use it with `divray predict` or
`divray.extraction.model.RelationExtractor.load(FOLDER).predict(EXAMPLES)`; `divray predict --threshold` gives no relation below a
probability.

Expected precision / recall at a threshold, on {len(known)} human examples, by cross-validation of the linear classifier on human
examples alone. Labels with few examples have rough figures.

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
