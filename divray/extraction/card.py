"""The model card: what each label's answers are worth, by cross-validation on the human examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from divray.config import Config
from divray.extraction.inputs import Hyperparameters
from divray.extraction.model import RelationExtractor
from divray.extraction.training import fold_of, held_out_scores, training_rows
from divray.relations import Example, Relation

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
