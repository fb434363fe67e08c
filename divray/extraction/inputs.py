"""What the stages around the RE model read from the run folder: labels, examples, tuned settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from divray.config import Config
from divray.datasets.stage import table_examples
from divray.relations import Example
from divray.run_folder import DRAWS, NEGATIVES, SEEDS, RunFolder

SELECTED, SEARCH, MORE = "comparison/selected", "search.json", "more"


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What an RE model is trained with: the settings of ``extraction``, and what the search over it may move.

    Attributes:
        generated_weight: See :class:`~divray.sections.ExtractionConfig`; so ``epochs`` and ``learning_rate``.
        depth: Of the spans' layer, as a share of all; the middle ones know most of who does what to whom.
        entity_weight: Of head and tail; the words between have 1.
        words_weight: Of all words outside of head and tail.
        last_weight: Of the same words in the last layer.
        shrinkage: Of the covariance towards a multiple of the identity.
    """

    generated_weight: float = 0.3
    epochs: int = 0
    learning_rate: float = 2e-4
    depth: float = 0.5
    entity_weight: float = 0.7
    words_weight: float = 0.5
    last_weight: float = 0.5
    shrinkage: float = 0.8


def usual(config: Config) -> Hyperparameters:
    """Those of a run whose search has changed nothing."""
    own = config.extraction
    return Hyperparameters(own.generated_weight, own.epochs, own.learning_rate)


def examples_of(run: RunFolder, tables: Sequence[str]) -> list[Example]:
    """Rows of tables with the columns of ``EXAMPLES`` or of ``DATASET``, one table after the other."""
    found = []
    for table in map(run.read_table, tables):
        found += table_examples(table, "example_id" if "example_id" in table.column_names else "sample_id")
    return found


def negatives_of(run: RunFolder) -> list[Example]:
    """The sentences whose entities stand in none of the relations."""
    return examples_of(run, [NEGATIVES]) if run.files(NEGATIVES) else []


def draws_of(run: RunFolder) -> list[dict[str, list[Example]]]:
    """The draws of the human examples, each with :data:`SEEDS` and :data:`MORE`; the first is the run's own."""
    table = run.read_table(DRAWS)
    places = zip(table["draw"].to_pylist(), table["more"].to_pylist(), strict=True)
    draws: list[dict[str, list[Example]]] = [{SEEDS: [], MORE: []} for _ in set(table["draw"].to_pylist())]
    for example, (draw, more) in zip(examples_of(run, [DRAWS]), places, strict=True):
        draws[draw][MORE if more else SEEDS].append(example)
    return draws


def set_of(
    run: RunFolder, tables: Sequence[str], draw: dict[str, list[Example]], settings: Hyperparameters
) -> tuple[list[Example], list[float]]:
    """The examples of ``tables`` in one draw, and how much each counts: beside human ones generated ones ``generated_weight``."""
    examples: list[Example] = []
    weights: list[float] = []
    for table in tables:
        part = draw[table] if table in draw else examples_of(run, [table])
        examples += part
        weights += [settings.generated_weight if SEEDS in tables and table not in draw else 1.0] * len(part)
    return examples, weights


def tuned(config: Config, run: RunFolder) -> Hyperparameters:
    """The best values of the search, where one was made."""
    best: dict[str, Any] = run.read_json(SEARCH)["best"] if run.exists(SEARCH) else {}
    return replace(usual(config), **best)
