"""The stages of a run: their order, and what each one is to the pipeline and to the command line.

A stage's module has one function, ``run(config, run, round, on_progress) -> counts``.  It is found by name, so that its heavy
libraries load only where it runs.  Stages meet in the tables of the run folder; none runs another one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from divray.config import Config
from divray.run_folder import Round, RunFolder

Progress = Callable[[int, int, str], None]
"""Called with (done, in all, a word on what goes on); what is counted is the stage's ``unit``."""

Work = Literal["", "engine", "engine and models", "training", "models", "tasks"]
"""What a stage asks of the cluster: the LLM's engines, DPO workers, tasks with an encoder or RE model, plain tasks; or nothing."""


class Run(Protocol):
    """The one face of all stages."""

    def __call__(self, config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage by name.

    Attributes:
        name: Name on the command line and in the records.
        module: Module whose ``run`` is the stage.
        help: One line for ``--help``.
        work: What it asks of the cluster under some settings.
        rounds: Whether it runs once a round (record ``round-XX.name``) or once.
        unit: What its progress counts; empty: it tells of none.
    """

    name: str
    module: str
    help: str
    work: Callable[[Config], Work]
    rounds: bool = False
    unit: str = ""

    @property
    def run(self) -> Run:
        """The stage's function; loads its module."""
        function: Run = importlib.import_module(self.module).run
        return function


def _always(work: Work) -> Callable[[Config], Work]:
    return lambda config: work


def _pool_of_pairs(config: Config) -> Work:
    return "engine" if config.prompts.pairs == "first" and not config.prompts.pairs_file else ""


def _comparison(config: Config) -> Work:
    return "engine and models" if config.evaluation.llm else "models"


_ALL = (
    Stage("prepare", "divray.datasets.stage", "Read relations, seed and test examples into the run folder.", _always("")),
    Stage(
        "align",
        "divray.alignment",
        "Train the round's policy on the pairs of the rounds before (DPO).",
        _always("training"),
        rounds=True,
        unit="steps",
    ),
    Stage("prompt", "divray.prompts", "Write the round's request rows.", _pool_of_pairs, rounds=True, unit="steps"),
    Stage(
        "sample",
        "divray.sampling.stage",
        "Let the LLM complete the request rows, and parse what it wrote.",
        _always("engine"),
        rounds=True,
        unit="candidates",
    ),
    Stage("score", "divray.scoring.stage", "Correctness, near-duplicates and novelty of the samples.", _always("models"), rounds=True),
    Stage("mine", "divray.preferences", "Find the preference pairs for the next round's policy.", _always("tasks"), rounds=True),
    Stage("select", "divray.selection", "Choose K samples a relation from all rounds.", _always("models")),
    Stage("tune", "divray.extraction.search", "Search the RE model's hyperparameters.", _always("models"), unit="trials"),
    Stage("train", "divray.extraction.stage", "Train the final RE model on seeds and selected samples.", _always("models")),
    Stage(
        "evaluate",
        "divray.extraction.evaluation",
        "Compare the training sets, and the LLM itself, on the test set.",
        _comparison,
        unit="models",
    ),
    Stage("report", "divray.report.summary", "Write summary.json and report.html.", _always("")),
)
STAGES = {stage.name: stage for stage in _ALL}


def schedule(config: Config) -> Iterator[tuple[Stage, int]]:
    """Every stage of a run with its round, in order; stages without rounds get the last round."""
    last = config.rounds - 1
    yield STAGES["prepare"], last
    for round_ in range(config.rounds):
        for name in ("align", "prompt", "sample", "score", "mine"):
            if (name == "align" and round_ == 0) or (name == "mine" and round_ == last):
                continue
            yield STAGES[name], round_
    for name in ("select", "tune", "train", "evaluate", "report"):
        yield STAGES[name], last


def record_name(stage: Stage, round_: int) -> str:
    """Name under which a finished stage stands in ``stages/``."""
    return Round.of(round_).record(stage.name) if stage.rounds else stage.name
