"""The summary as a few tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from divray.report.account import STEPS
from divray.report.findings import metric_name, reading, round_name, signed_interval, unit
from divray.report.sentences import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def tables(summary: dict[str, Any]) -> Iterator[RenderableType]:
    """What ``divray run`` prints, in order; tables without data are left out."""
    from rich.text import Text

    yield Text()
    yield Text(visible(summary["headline"]), style="bold")
    for line in reading(summary):
        yield Text(visible(line))
    yield Text()
    if "candidates" in summary:
        yield _funnel(summary)
    if summary.get("evaluation"):
        yield _scores(summary["evaluation"])
    if summary.get("diversity"):
        yield _diversity(summary)
    if "generated_tokens" in summary:
        yield _cost(summary)


def _funnel(summary: dict[str, Any]) -> Table:
    steps = [step for step in STEPS if step in summary]
    table = _table("From candidates to the data set", "", *steps)
    rows = {round_name(name): view for name, view in summary["per_round"].items()} if len(summary["per_round"]) > 1 else {}
    for name, view in rows.items():
        table.add_row(name, *(f"{view.get(step, 0):,}" for step in steps))
    table.add_row("all", *(f"{summary[step]:,}" for step in steps), style="bold")
    if "naive" in summary:
        table.add_row("naive prompt", *(_number(summary["naive"].get(step), 0) for step in steps), style="dim")
    lost = [f"{count:,} {_text(reason).replace('_', ' ')}" for step in summary["losses"].values() for reason, count in step.items()]
    if lost:
        table.caption = "lost: " + ", ".join(lost[:8]) + (f", and {len(lost) - 8} more" if len(lost) > 8 else "")
    return table


def _scores(evaluation: dict[str, dict[str, Any]]) -> Table:
    factor = unit(evaluation)
    alarms = any(entry.get("false_positives") is not None for entry in evaluation.values())
    metrics = ", ".join(sorted({metric_name(entry) for entry in evaluation.values()}))
    table = _table(
        f"{metrics} on the test set", "trained on", "K", "examples", "mean", "±", "against seeds", *(["false positives"] if alarms else [])
    )
    best = max(evaluation, key=lambda name: evaluation[name]["mean"])
    for name, entry in evaluation.items():
        several = len(entry.get("per_draw") or []) > 1
        spread = f"{factor * (entry.get('std') or 0.0):.1f}" if several else ""
        against = signed_interval(evaluation, name, "seeds")
        counts = [_number(entry.get(field), 0) for field in ("k", "examples")]
        share = [_number(entry.get("false_positives"), 2)] if alarms else []
        table.add_row(_text(name), *counts, f"{factor * entry['mean']:.1f}", spread, against, *share, style="bold" if name == best else "")
    return table


def _diversity(summary: dict[str, Any]) -> Table:
    columns = {
        "vendi_ngram": "vendi n-gram",
        "vendi_embedding": "vendi embed.",
        "distinct_2": "distinct-2",
        "self_bleu": "self-BLEU",
        "rouge_l": "ROUGE-L",
        "pattern_entropy": "patterns",
        "mean_cosine": "cosine",
    }
    table = _table("Diversity of masked sentences", "", *columns.values(), "correctness")
    sets = {**summary.get("diversity_reference", {}), **summary["diversity"]}
    for name in sorted(sets, key=lambda n: (n != "seeds", n != "test", n == "selected", n)):
        view = summary.get("naive", {}) if name == "naive" else summary["per_round"].get(name, {})
        correctness = summary.get("mean_correctness_selected") if name == "selected" else view.get("mean_correctness")
        values = [sets[name].get(score) for score in columns]
        table.add_row(
            "human test set" if name == "test" else round_name(name), *(_number(value, 2) for value in values), _number(correctness, 2)
        )
    table.caption = (
        "Means over relations. Vendi and pattern entropy grow with the number of sentences; the report compares at equal size. "
        "Correctness is by a second judge that nothing in the loop depends on."
    )
    return table


def _cost(summary: dict[str, Any]) -> Table:
    table = _table("Cost", "", "tokens", "engine-seconds", "tokens/accepted", "engine-s/accepted")
    views = [(_text(name), view) for name, view in summary["per_strategy"].items()]
    views = views if len(views) > 1 else []
    for name, models in summary.get("per_policy", {}).items():
        views += [(f"{round_name(name)}, {policy} model", view) for policy, view in models.items()]
    views += [("all", summary), *([("naive prompt", summary["naive"])] if "naive" in summary else [])]
    for name, view in views:
        fields = (("generated_tokens", 0), ("engine_seconds", 1), ("tokens_per_accepted", 0), ("engine_seconds_per_accepted", 2))
        table.add_row(name, *(_number(view.get(field), digits) for field, digits in fields))
    return table


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _text(value: object) -> str:
    """Plain text for a rich table: no markup, no control characters."""
    from rich.markup import escape

    return escape(visible(value))
