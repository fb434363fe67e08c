"""The layout of a run folder: each name once, with the stage that writes it and what a record or a table there must hold."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

from divray import schemas


class Entry(str):
    """A name in a run folder, the stage that writes it, and what a JSON record or a table there must hold.

    A name in a round is a pattern; as an attribute of :class:`Round` it has that round's folder in place of ``round-*``.
    """

    def __new__(cls, name: str, stage: str = "", holds: Any = Any) -> Self:
        _WRITERS.setdefault(name, (stage, holds))
        return super().__new__(cls, name)

    def __get__(self, round: Round, owner: type) -> str:
        return self.replace("round-*", round.name)


_WRITERS: dict[str, tuple[str, Any]] = {}
"""Patterns of names -> the stage that writes them, and what a JSON record or a table there must hold; the first that fits counts."""

RELATIONS = Entry("data/relations.json", "prepare", list[schemas.RelationRecord])
SEEDS, TEST, DRAWS, NEGATIVES, UNLABELLED = (
    Entry(f"data/{name}", "prepare", schemas.EXAMPLES) for name in ("seeds", "test", "draws", "negatives", "unlabelled")
)
# Made once, then reused; only `prepare` deletes them.
ENTITY_PAIRS, SEED_HEARD = Entry("data/entity_pairs.json", "", dict[str, list[list[str]]]), Entry("data/seed_heard")
SEED_EMBEDDINGS, TEST_EMBEDDINGS = Entry("data/seed_embeddings"), Entry("data/test_embeddings")
PAIR_PROMPTS, PAIR_COMPLETIONS = Entry("data/pair_prompts", "prompt"), Entry("data/pair_completions", "prompt")
ACCEPTED, SELECTED = Entry("dataset/data", "select", schemas.DATASET), Entry("comparison/selected", "select", schemas.DATASET)
EVALUATION = Entry("evaluation.json", "evaluate", dict[str, schemas.SetRecord])
LLM_PROMPTS = Entry("evaluation/llm/prompts", "classify", schemas.PROMPTS)
LLM_COMPLETIONS = Entry("evaluation/llm/completions", "classify", schemas.COMPLETIONS)
ANSWERS = Entry("review/answers.json", "", list[schemas.ReviewAnswer])
SUMMARY, REPORT = Entry("summary.json", "report", dict[str, Any]), Entry("report.html", "report")
VERSIONS = Entry("versions.json", "", dict[str, str])


@dataclass(frozen=True)
class Round:
    """The names of what one round writes; ``name`` is its folder."""

    name: str

    prompts = Entry("round-*/prompts", "prompt", schemas.PROMPTS)
    completions = Entry("round-*/completions", "sample", schemas.COMPLETIONS)
    samples = Entry("round-*/samples", "sample", schemas.SAMPLES)
    waves = Entry("round-*/waves", "sample")
    quota = Entry("round-*/quota.json", "sample", schemas.Quota)
    embedded = Entry("round-*/embedded", "score")
    scores = Entry("round-*/scores", "score", schemas.SCORES)
    pairs = Entry("round-*/pairs", "mine", schemas.PAIRS)
    train = Entry("round-*/train", "align")
    policy = Entry("round-*/policy", "align")
    alignment = Entry("round-*/alignment.json", "align", schemas.Alignment)

    @classmethod
    def of(cls, number: int) -> Round:
        return cls(f"round-{number:02d}")


def score_tables(rounds: int) -> list[str]:
    """The score tables of the rounds before ``rounds``."""
    return [Round.of(number).scores for number in range(rounds)]


_WRITERS |= {
    "stages/*": ("", schemas.StageRecord),
    ".lock*": ("", schemas.Holder),
    "*completions.engines/*": ("sample", schemas.Engines),
    "search.json": ("tune", schemas.Search),
    "comparison/*": ("select", schemas.DATASET),
}


def writer(name: str) -> tuple[str, Any]:
    """The stage that writes ``name``, ``""`` for none, and what a JSON record or a table there must hold."""
    return next((found for pattern, found in _WRITERS.items() if fnmatchcase(name, pattern)), ("", Any))


def anew(name: str) -> str:
    """The fix to tell the user where ``name`` is damaged or gone."""
    stage, _ = writer(name)
    return f"Run `divray {stage}` again, with --force." if stage else "Put it back, or delete it and rerun the command that writes it."
