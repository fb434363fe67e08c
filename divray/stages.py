"""The stages of a run: their order, and what each one is to the pipeline and to the command line.

A stage's module has one function, ``run(config, run, round, on_progress) -> counts``.  It is found by name, so that its heavy
libraries load only where it runs.  Stages exchange data through the tables of the run folder; none runs another one.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from divray.config import Config
from divray.layout import Round

Progress = Callable[[int, int, str], None]
"""Called with (done, total, a word on the current work); the numbers count the stage's ``unit``."""

Work = Literal["", "engine", "training", "models", "tasks"]
"""What a stage asks of the cluster: the LLM's engines, DPO workers, tasks with an encoder or RE model, plain tasks; or nothing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage by its name on the command line and in the records.

    Attributes:
        module: Module whose ``run`` is the stage.
        asks: What it asks of the cluster, unless the settings say otherwise; see :meth:`work`.
        rounds: Whether it runs once a round (record ``round-XX.name``) or once.
        unit: What its progress counts; empty: it reports none.
    """

    name: str
    module: str
    help: str
    asks: Work = ""
    rounds: bool = False
    unit: str = ""

    @property
    def run(self) -> Callable[..., dict[str, Any]]:
        """The stage's function; loads its module."""
        return importlib.import_module(self.module).run

    def work(self, config: Config) -> Work:
        """What it asks of the cluster under these settings."""
        if self.name == "prompt" and config.prompts.pairs == "first" and not config.prompts.pairs_file:
            return "engine"  # which writes the pool of pairs
        return self.asks


_ALL = (
    Stage("prepare", "divray.datasets.stage", "Read relations, seed and test examples into the run folder."),
    Stage("prompt", "divray.prompts", "Write the round's request rows.", rounds=True, unit="steps"),
    Stage("sample", "divray.sampling", "Let the LLM complete the request rows, and parse what it wrote.", "engine", True, "candidates"),
    Stage("classify", "divray.extraction.answers", "Let the LLM do RE itself on test sentences.", "engine", unit="sentences"),
    Stage("score", "divray.scoring.stage", "Correctness, near-duplicates and novelty of the samples.", "models", True),
    Stage("mine", "divray.preferences", "Find the preference pairs for the next round's policy.", "tasks", True),
    Stage("align", "divray.alignment", "Train the round's policy on the pairs of the rounds before (DPO).", "training", True, "steps"),
    Stage("select", "divray.selection", "Choose K samples a relation from all rounds.", "models"),
    Stage("tune", "divray.extraction.search", "Search the RE model's hyperparameters.", "models", unit="trials"),
    Stage("train", "divray.extraction.stage", "Train the final RE model on seeds and weighed samples.", "models"),
    Stage("evaluate", "divray.extraction.evaluation", "Compare the training sets on the test set.", "models", unit="models"),
    Stage("report", "divray.report.stage", "Write summary.json and report.html."),
)
STAGES = {stage.name: stage for stage in _ALL}
"""In the order of the command line."""


def schedule(config: Config) -> list[tuple[Stage, int]]:
    """Every stage of a run with its round, in order; stages without rounds get the last round."""
    last = config.rounds - 1
    # The first round has no pairs to align; while its engine runs, the same LLM classifies.  The last round mines none.
    first = ["prepare", "prompt", "sample", *(["classify"] if config.evaluation.llm else []), "score", "mine"]
    order = [(name, 0 if STAGES[name].rounds else last) for name in first]
    order += [(name, number) for number in range(1, config.rounds) for name in ("align", "prompt", "sample", "score", "mine")]
    order = [*order[:-1], *((name, last) for name in ("select", "tune", "train", "evaluate", "report"))]
    return [(STAGES[name], number) for name, number in order]


def record_name(stage: Stage, round_: int) -> str:
    """Name under which a finished stage stands in ``stages/``."""
    return f"{Round.of(round_).name}.{stage.name}" if stage.rounds else stage.name
