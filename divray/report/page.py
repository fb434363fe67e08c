"""``report.html``: one page that loads nothing, with every generated character escaped."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from markupsafe import Markup

from divray.config import Config, dump_config
from divray.console import clock
from divray.report.account import STEPS
from divray.report.charts import BLUE, DEPTHS, GREY, HALF, ROUNDS, Series, bars, curves, dots, histogram
from divray.report.excerpts import pieces, side_by_side
from divray.report.findings import (
    SEEDS,
    Evaluation,
    Summary,
    cost_rows,
    diversity_rows,
    fixed,
    main_set,
    metric_names,
    round_name,
    score,
    signed_interval,
)
from divray.texts import visible

CURVES = (
    ("loss", "Loss", BLUE, None),
    ("accuracy", "Reward accuracy", ROUNDS[2], 0.5),
    ("margin", "Reward margin", ROUNDS[3], 0.0),
)
_DEPTHS = ("selected", "correct, not selected", "unique, not correct", "valid, not unique", "not valid")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_KEYS = re.compile(r"(?i)((?:secret|token|password|api_?key|access_?key)[\w-]*\s*[:=]\s*)[^\s&]+")
_LONGEST = 400


def render(config: Config, summary: Summary, excerpts: dict[str, Any]) -> str:
    """The report as HTML text; a section without data is left out, and credentials in the settings are taken out."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("divray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        count=lambda value: f"{value:,.0f}",
        fixed=fixed,
        score=score,
        signed_interval=signed_interval,
        percent=_percent,
        duration=clock,
        words=lambda text: str(text).replace("_", " "),
        pieces=pieces,
        side_by_side=side_by_side,
        clip=lambda text: text if len(text) <= _LONGEST else text[:_LONGEST] + "…",
        round_name=round_name,
    )
    evaluation: Evaluation = summary.get("evaluation", {})
    return environment.get_template("page.html.j2").render(
        s=summary,
        steps=[step for step in STEPS if step in summary],
        evaluation=evaluation,
        metric=metric_names(evaluation),
        best=main_set(evaluation) if evaluation else None,
        by_relation={name: entry["f1_per_relation"] for name, entry in evaluation.items() if entry.get("f1_per_relation")},
        diversity=diversity_rows(summary),
        costs=list(cost_rows(summary)),
        excerpts=excerpts,
        charts=_charts(config, summary, excerpts),
        config=without_credentials(dump_config(config)),
    )


def without_credentials(text: str) -> str:
    """``text`` with the user part of URIs, and what follows a key such as ``secret=``, taken out."""
    return _SECRET_KEYS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %"


def _counted(count: int, of: int | None) -> str:
    return f"{count:,} · {_percent(count / of)}" if of else f"{count:,}"


# charts -------------------------------------------------------------------------------------------


def _charts(config: Config, summary: Summary, excerpts: dict[str, Any]) -> dict[str, Any]:
    """The page's charts by name, ``None`` for those without data."""
    found: dict[str, Any] = dict.fromkeys(("funnel", "relations", "scores", "correctness", "similarities", "rejections", "seconds"))
    steps = [step for step in STEPS if step in summary]
    if any(summary[step] for step in steps):
        parts = [Series(round_name(name), _colour(name), [view[step] for step in steps]) for name, view in summary["per_round"].items()]
        notes = [_counted(summary[step], summary.get("candidates")) for step in steps]
        found["funnel"] = bars([step.capitalize() for step in steps], parts, notes)
    if "valid" in summary and summary["per_relation"]:
        views = summary["per_relation"].values()
        reached = np.array([[view[step] for view in views] for step in steps] + [[0] * len(views)])
        deepest = np.maximum(-np.diff(reached, axis=0), 0)
        parts = [Series(*part) for part in zip(_DEPTHS[-len(steps) :], DEPTHS[-len(steps) :], deepest[::-1], strict=True)]
        found["relations"] = bars([name[:40] for name in summary["per_relation"]], parts, [])
    if evaluation := summary.get("evaluation"):
        means = [100 * entry["mean"] for entry in evaluation.values()]
        draws = [[100 * value for value in entry.get("per_draw") or []] for entry in evaluation.values()]
        series = [Series("one draw of the human examples", BLUE, draws), Series("mean", BLUE, [[mean] for mean in means], "|")]
        found["scores"] = dots(list(evaluation), series, means, 100 * evaluation[SEEDS]["mean"] if SEEDS in evaluation else None)
    for name in ("vendi_ngram", "vendi_embedding"):
        found[name] = _diversity_chart(summary.get("diversity_at_equal_size", {}), name)
    for name, kept, dropped, label, limit in (
        ("correctness", "pass the gate", "do not", "judge's score", None),
        ("similarities", "kept", "dropped", "Jaccard similarity", config.diversity.threshold),
    ):
        parts = [Series(kept, BLUE, excerpts[name]["kept"]), Series(dropped, GREY, excerpts[name]["dropped"])]
        if any(sum(part.values) for part in parts):
            found[name] = histogram(parts, label, limit)
    for name, colour in (("rejections", ROUNDS[4]), ("seconds", ROUNDS[0])):
        if amounts := summary.get(name):
            total = sum(amounts.values())
            notes = [clock(value) if name == "seconds" else _counted(value, total) for value in amounts.values()]
            found[name] = bars([key.replace("_", " ")[:60] for key in amounts], [Series("", colour, list(amounts.values()))], notes)
    found["alignment"] = {name: chart for name, log in summary.get("alignment", {}).items() if (chart := _training_curves(log["curve"]))}
    return found


def _colour(folder: str) -> str:
    return ROUNDS[int(folder[6:]) % len(ROUNDS)]


def _diversity_chart(level: dict[str, Any], name: str) -> Markup | None:
    """A score of seeds and rounds, by relation on one scale, at equal size; nothing where there is nothing to compare."""
    sizes, sets = level.get("size", {}), level.get("per_relation", {})
    marks = []
    for which in [*sorted(which for which in sets if which.startswith("round-")), "seeds"]:
        found = [sets.get(which, {}).get(relation, {}).get(name) for relation in sizes]
        marker, colour = ("D", GREY) if which == "seeds" else ("o", _colour(which))
        marks.append(Series(round_name(which), colour, [[] if value is None else [value] for value in found], marker))
    if not any(any(mark.values) for mark in marks):
        return None
    return dots([f"{relation[:40]} ({size})" for relation, size in sizes.items()], marks, width=HALF)


def _training_curves(steps: list[dict[str, float | None]]) -> Markup | None:
    panels = []
    for field, title, colour, reference in CURVES:
        points = [(x, y) for step in steps if (x := step.get("step")) is not None and (y := step.get(field)) is not None]
        if len(points) > 1:
            panels.append((f"{title}: {points[0][1]:.2f} → {points[-1][1]:.2f}", colour, points, reference))
    return curves(panels) if panels else None
