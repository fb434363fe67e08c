"""What RE models train on: draws of the human examples, generated samples with their weights, and the hyperparameters."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.datasets.stage import table_examples
from divray.extraction.training import Hyperparameters
from divray.layout import DRAWS, SEEDS, UNLABELLED
from divray.relations import Example
from divray.run_folder import RunFolder
from divray.scan import scored_rounds, table_of
from divray.schemas import EXAMPLES, NAIVE

SEARCH, MORE = "search.json", "more"
WEIGHED = "weighed"
"""Part of a training set: the unique samples of all rounds, without those of the naive strategy.  ``weighed/round-XX`` has those of one
round, ``weighed/naive`` or another strategy's name those of that strategy.  Their weights come from the gate's probabilities
(:func:`weighed`)."""
MOST_WEIGHED = 256
"""Maximum number of these samples per relation, the likeliest first.  Their features stay in memory: 20 kB each with a small encoder."""
LEAST_EACH, MOST_EACH = 0.01, 0.5
"""Least weight of a generated sample where there are only such; most weight beside human examples, which have weight 1."""


class TrainingSets:
    """The examples of a run; each table is read once.

    Attributes:
        settings: The hyperparameters: the best of the search, where one was made.
        draws: The draws of the human examples, each with :data:`SEEDS` and :data:`MORE`; the first is the run's own.
    """

    def __init__(self, config: Config, run: RunFolder) -> None:
        best: dict[str, Any] = run.read_json(SEARCH)["best"] if run.exists(SEARCH) else {}
        self.settings = replace(usual(config), **best)
        table = run.read_table(DRAWS)
        numbers, more = table["draw"].to_pylist(), table["more"].to_pylist()
        self.draws: list[dict[str, list[Example]]] = [{SEEDS: [], MORE: []} for _ in set(numbers)]
        for example, draw, later in zip(table_examples(table), numbers, more, strict=True):
            self.draws[draw][MORE if later else SEEDS].append(example)
        self._table = cache(lambda name: weighed(run, name) if name.startswith(WEIGHED) else examples_of(run, name))

    def examples(self, tables: Sequence[str], draw: int = 0) -> list[Example]:
        """The examples of ``tables`` in one draw.  With seeds among the tables, a factor for each relation scales the weights ``w`` of each
        generated table: a relation's samples count together ``generated_weight`` times its number of seeds times their mean weight, in
        which each counts by its weight (``sum w^2 / sum w``).  So doubtful samples count little even where a relation has only such.  The
        factor is at most :data:`MOST_EACH`."""
        human = self.draws[draw]
        seeds = Counter(one.relation for one in human[SEEDS])
        found: list[Example] = []
        for table in tables:
            own = human[table] if table in human else self._table(table)
            if SEEDS in tables and own and table not in (*human, UNLABELLED):
                sums, squares = defaultdict[str, float](float), defaultdict[str, float](float)
                for one in own:
                    sums[one.relation] += one.weight
                    squares[one.relation] += one.weight**2
                share = {name: self.settings.generated_weight * seeds[name] * squares[name] / sums[name] ** 2 for name in sums}
                own = [replace(one, weight=min(MOST_EACH, share[one.relation]) * one.weight) for one in own]
            found += [one for one in own if one.weight > 0]
        return found


def usual(config: Config) -> Hyperparameters:
    """The hyperparameters of a run without a search."""
    own = config.extraction
    return Hyperparameters(own.generated_weight, own.epochs, own.learning_rate)


def examples_of(run: RunFolder, name: str) -> list[Example]:
    """Rows of a table with the columns of ``EXAMPLES`` or of ``DATASET``; none where there is no such table."""
    if not run.table_files(name):
        return []
    table = run.read_table(name)
    return table_examples(table, "example_id" if "example_id" in table.column_names else "sample_id")


def weighed(run: RunFolder, name: str = WEIGHED) -> list[Example]:
    """The samples that ``name`` stands for (:data:`WEIGHED`).  A sample's weight is the gate's probability that it is right, at least
    :data:`LEAST_EACH`.

    With only the samples that pass the gate, the RE model gains less, and it gains nothing on a task where the gate doubts all samples.
    """
    part = name.partition("/")[2]
    rounds = {own.name: own.scores for own in scored_rounds(run)}
    tables = [rounds[part]] if part in rounds else [*rounds.values()]
    own = pc.field("unique") & (pc.field("strategy") != NAIVE if part in ("", *rounds) else pc.field("strategy") == part)
    columns = ["candidate_id", *EXAMPLES.names[1:], "correctness"]
    if (found := table_of(run, tables, columns, own)) is None:
        return []
    table = found.sort_by([("relation", "ascending"), ("correctness", "descending"), ("candidate_id", "ascending")])
    _, starts, counts = np.unique(table["relation"].to_numpy(), return_index=True, return_counts=True)
    table = table.filter(pa.array(np.arange(len(table)) - np.repeat(starts, counts) < MOST_WEIGHED))
    weights = np.maximum(table["correctness"].to_numpy(), LEAST_EACH).tolist()
    return [replace(one, weight=weight) for one, weight in zip(table_examples(table, "candidate_id"), weights, strict=True)]
