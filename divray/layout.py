"""The layout of a run folder: each name once, with the stage that writes it and what a record or a table there must hold."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

from divray.schemas import (
    COMPLETIONS,
    DATASET,
    EXAMPLES,
    PAIRS,
    PROMPTS,
    SAMPLES,
    SCORES,
    Alignment,
    Engines,
    Holder,
    Quota,
    RelationRecord,
    ReviewAnswer,
    Search,
    SetRecord,
    StageRecord,
)


class Entry(str):
    """A name in a run folder, the stage that writes it, and what a JSON record or a table there must hold.

    As an attribute of :class:`Round` it is the name inside of the round's folder, and comes back with that before it.
    """

    stage: str
    holds: Any

    def __new__(cls, name: str, stage: str = "", holds: Any = Any) -> Self:
        self = super().__new__(cls, name)
        self.stage, self.holds = stage, holds
        return self

    def __get__(self, round: Round, owner: type) -> str:
        return f"{round.name}/{self}"


RELATIONS = Entry("data/relations.json", "prepare", list[RelationRecord])
SEEDS, TEST, DRAWS, NEGATIVES, UNLABELLED = (
    Entry(f"data/{name}", "prepare", EXAMPLES) for name in ("seeds", "test", "draws", "negatives", "unlabelled")
)
# What is made once, and not again where it is there; only `prepare` drops it.
ENTITY_PAIRS, SEED_HEARD, TEST_EMBEDDINGS = Entry("data/entity_pairs"), Entry("data/seed_heard"), Entry("data/test_embeddings")
PAIR_PROMPTS, PAIR_COMPLETIONS = Entry("data/pair_prompts", "prompt"), Entry("data/pair_completions", "prompt")
SEED_EMBEDDINGS = Entry("data/seed_embeddings", "score")
ACCEPTED, SELECTED = Entry("dataset/data", "select", DATASET), Entry("comparison/selected", "select", DATASET)
EVALUATION = Entry("evaluation.json", "evaluate", dict[str, SetRecord])
LLM_PROMPTS = Entry("evaluation/llm/prompts", "classify", PROMPTS)
LLM_COMPLETIONS = Entry("evaluation/llm/completions", "classify", COMPLETIONS)
ANSWERS = Entry("review/answers.json", "", list[ReviewAnswer])
SUMMARY, REPORT = Entry("summary.json", "report", dict[str, Any]), Entry("report.html", "report")
VERSIONS = Entry("versions.json", "", dict[str, str])


@dataclass(frozen=True)
class Round:
    """The names of what one round writes; ``name`` is its folder."""

    name: str

    prompts = Entry("prompts", "prompt", PROMPTS)
    completions = Entry("completions", "sample", COMPLETIONS)
    samples = Entry("samples", "sample", SAMPLES)
    waves = Entry("waves", "sample")
    quota = Entry("quota.json", "sample", Quota)
    embedded = Entry("embedded", "score")
    scores = Entry("scores", "score", SCORES)
    pairs = Entry("pairs", "mine", PAIRS)
    train = Entry("train", "align")
    policy = Entry("policy", "align")
    alignment = Entry("alignment.json", "align", Alignment)

    @classmethod
    def of(cls, number: int) -> Round:
        return cls(f"round-{number:02d}")

    def record(self, stage: str) -> str:
        """Name under which one of the round's stages stands in ``stages/``."""
        return f"{self.name}.{stage}"


def score_tables(rounds: int) -> list[str]:
    """The score tables of the rounds before ``rounds``."""
    return [Round.of(number).scores for number in range(rounds)]


_RECORDS = (
    Entry("stages/*", "", StageRecord),
    Entry(".lock*", "", Holder),
    Entry("*completions.engines/*", "sample", Engines),
    Entry("search.json", "tune", Search),
    Entry("comparison/*", "select", DATASET),
    Entry("round-*/waves/*", "sample", dict[str, int]),
)
_FOLDERS = {"data/*": "prepare", "evaluation/llm/*": "classify", "evaluation/*": "evaluate", "dataset*": "select", "model/*": "train"}
_OF_A_RUN = [entry for entry in list(globals().values()) if isinstance(entry, Entry)]
_OF_A_ROUND = [entry for entry in vars(Round).values() if isinstance(entry, Entry)]
_LAYOUT: dict[str, tuple[str, Any]] = {
    **{entry: (entry.stage, entry.holds) for entry in (*_OF_A_RUN, *_RECORDS)},
    **{f"round-*/{entry}": (entry.stage, entry.holds) for entry in _OF_A_ROUND},
    **{f"round-*/{entry}*": (entry.stage, Any) for entry in _OF_A_ROUND},
    **{pattern: (stage, Any) for pattern, stage in _FOLDERS.items()},
}
"""Patterns of names -> the stage that writes them, and what a JSON record or a table there must hold; the first that fits counts."""


def writer(name: str) -> tuple[str, Any]:
    """The stage that writes ``name``, ``""`` for none, and what a JSON record or a table there must hold."""
    return next((found for pattern, found in _LAYOUT.items() if fnmatchcase(name, pattern)), ("", Any))


def anew(name: str) -> str:
    """What brings back ``name``, which is damaged or gone."""
    stage, _ = writer(name)
    return f"Run `divray {stage}` again, with --force." if stage else "Put it back, or delete it and run again what writes it."
