"""What the stages around the RE model read from the run folder: labels, examples, tuned settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from divray.config import Config
from divray.relations import Example, Relation
from divray.runs import RunFolder
from divray.sections import ExtractionConfig

SEEDS, TEST, SELECTED, SEARCH = "data/seeds", "data/test", "comparison/selected", "search.json"
DRAWS = "data/draws"


def relations_of(run: RunFolder) -> list[Relation]:
    """The task's relations, in the user's order."""
    return [Relation(**row) for row in run.read_json("data/relations.json")]


def examples_of(run: RunFolder, tables: Sequence[str]) -> list[Example]:
    """Rows of tables with the columns of ``EXAMPLES`` or of ``DATASET``, one table after the other."""
    columns = ["relation", "text", "head_start", "head_end", "tail_start", "tail_end", "head_type", "tail_type"]
    found = []
    for name in tables:
        table = run.read_table(name)
        identity = "example_id" if "example_id" in table.column_names else "sample_id"
        for row in table.select([identity, *columns]).to_pylist():
            head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
            found.append(
                Example(row["text"], head, tail, row["relation"], row["head_type"] or "", row["tail_type"] or "", row[identity] or "")
            )
    return found


def draws_of(run: RunFolder) -> list[list[Example]]:
    """The draws of the human examples; the first is the run's own seeds."""
    drawn = run.read_table(DRAWS)["draw"].to_pylist()
    examples = examples_of(run, [DRAWS])
    return [[one for one, own in zip(examples, drawn, strict=True) if own == number] for number in sorted(set(drawn))]


def weights_of(tables: Sequence[str], draw: Sequence[Example], count: int, settings: ExtractionConfig) -> list[float]:
    """How much each of ``count`` examples of ``tables`` counts: human ones 1, generated ones beside them ``generated_weight``."""
    if SEEDS not in tables:
        return [1.0] * count
    return [1.0] * len(draw) + [settings.generated_weight] * (count - len(draw))


def tuned(config: Config, run: RunFolder) -> ExtractionConfig:
    """``config.extraction`` with the best values of the search over it, where a search was made."""
    best: dict[str, Any] = run.read_json(SEARCH)["best"] if run.exists(SEARCH) else {}
    return config.extraction.model_copy(update=best)
