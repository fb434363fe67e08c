"""What the stages around the RE model read from the run folder: labels, examples, tuned settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from divray.config import Config
from divray.datasets.tables import table_examples
from divray.relations import Example
from divray.run_folder import DRAWS, NEGATIVES, SEEDS, RunFolder
from divray.sections import ExtractionConfig

SELECTED, SEARCH, MORE = "comparison/selected", "search.json", "more"


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
    run: RunFolder, tables: Sequence[str], draw: dict[str, list[Example]], settings: ExtractionConfig
) -> tuple[list[Example], list[float]]:
    """The examples of ``tables`` in one draw, and how much each counts: beside human ones generated ones ``generated_weight``."""
    examples: list[Example] = []
    weights: list[float] = []
    for table in tables:
        part = draw[table] if table in draw else examples_of(run, [table])
        examples += part
        weights += [settings.generated_weight if SEEDS in tables and table not in draw else 1.0] * len(part)
    return examples, weights


def tuned(config: Config, run: RunFolder) -> ExtractionConfig:
    """``config.extraction`` with the best values of the search over it, where a search was made."""
    best: dict[str, Any] = run.read_json(SEARCH)["best"] if run.exists(SEARCH) else {}
    return config.extraction.model_copy(update=best)
