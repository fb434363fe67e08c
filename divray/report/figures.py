"""From the summary's figures to the rows of the report's charts."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from divray.report.account import STEPS
from divray.report.findings import Evaluation, metric_name, round_name, seeds_alone, seeds_and_generated, signed_interval, unit
from divray.report.plots import Mark, axis, bar, curve, histogram, key, strip

Row = dict[str, Any]

ROUND_COLOURS = ("c0", "c1", "c2", "c3", "c4")
STEP_NAMES = {
    "candidates": "Candidates",
    "valid": "Valid",
    "unique": "Unique",
    "correct": "Correct",
    "selected": "Selected",
}
CURVES = (
    ("loss", "Loss", "c1", None),
    ("rewards/accuracies", "Reward accuracy", "c2", 0.5),
    ("rewards/margins", "Reward margin", "c3", 0.0),
)


def round_colour(name: str) -> str:
    return ROUND_COLOURS[int(name[6:]) % len(ROUND_COLOURS)]


def funnel(summary: dict[str, Any]) -> list[Row]:
    """One row a step: ``name``, ``count``, ``share`` of the candidates, ``bar`` by round, ``lost`` before it."""
    rounds = summary.get("per_round", {})
    top = max((summary.get(step, 0) for step in STEPS), default=0)
    found = []
    for step in (step for step in STEPS if step in summary):
        parts = [(view.get(step, 0), round_colour(name), f"{round_name(name)}: {view.get(step, 0):,}") for name, view in rounds.items()]
        found.append(
            {
                "name": STEP_NAMES[step],
                "count": summary[step],
                "share": summary[step] / summary["candidates"] if summary.get("candidates") else None,
                "bar": bar(parts, top, height=26),
                "lost": summary["losses"].get(step, {}),
            }
        )
    return found


def relation_rows(summary: dict[str, Any]) -> list[Row]:
    """One row a relation: its counts, and how far its candidates came as one bar."""
    found = []
    for name, view in summary.get("per_relation", {}).items():
        steps = [step for step in STEPS if step in view]
        deepest = [(view[step], view[steps[place + 1]] if place + 1 < len(steps) else 0) for place, step in enumerate(steps)]
        parts = [(max(here - after, 0), f"f{place}", f"{steps[place]}: {here:,}") for place, (here, after) in enumerate(deepest)]
        found.append({"name": name, **view, "bar": bar(list(reversed(parts)), max(view.get("candidates", 0), 1), height=12)})
    return found


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """The F1 chart: ``rows`` (one a training set), ``axis``, ``metric``; marks are the draws of the human examples."""
    factor = unit(evaluation)
    reference = seeds_alone(evaluation)
    high = 100.0 if factor * max(entry["mean"] for entry in evaluation.values()) > 60 else _above(evaluation, factor)
    rows = []
    for name, entry in evaluation.items():
        mean, each = factor * entry["mean"], [factor * value for value in entry.get("per_draw") or []]
        marks = [Mark(value, "ring", "c1", f"draw {draw}: {value:.1f}") for draw, value in enumerate(each)]
        marks.append(Mark(mean, "tick", "c1", f"mean {mean:.1f}"))
        spread = (min(each), max(each)) if len(each) > 1 else None
        at = factor * evaluation[reference]["mean"] if reference else None
        colour = "c5" if name == reference else "c1"
        rows.append(
            {
                "name": name,
                "mean": mean,
                "std": factor * (entry.get("std") or 0.0),
                "difference": signed_interval(evaluation, name, reference) if reference and name != reference else "",
                "k": entry.get("k"),
                "examples": entry.get("examples"),
                "count": len(each),
                "false_positives": entry.get("false_positives"),
                "plot": strip(marks, 0.0, high, spread=spread, reference=at, filled=colour),
            }
        )
    metrics = sorted({metric_name(entry) for entry in evaluation.values()})
    alarms = any(row["false_positives"] is not None for row in rows)
    return {"rows": rows, "axis": axis(0.0, high), "metric": ", ".join(metrics), "reference": reference, "alarms": alarms}


def relation_scores(evaluation: Evaluation) -> dict[str, Any] | None:
    """F1 of each relation (rows) by training set (columns), in per cent; ``None`` where the evaluation has none."""
    sets = {name: entry["f1_per_relation"] for name, entry in evaluation.items() if entry.get("f1_per_relation")}
    if not sets:
        return None
    relations = list(dict.fromkeys(relation for scores in sets.values() for relation in scores))
    values = [[None if (v := scores.get(relation)) is None else unit(evaluation) * v for scores in sets.values()] for relation in relations]
    return {"columns": list(sets), "rows": list(zip(relations, values, strict=True))}


def main_score(evaluation: Evaluation) -> dict[str, Any]:
    """The training set that the cards show: seeds + generated where there is one, else the best."""
    name = seeds_and_generated(evaluation) or max(evaluation, key=lambda key: evaluation[key]["mean"])
    alone, entry = seeds_alone(evaluation), evaluation[name]
    difference = unit(evaluation) * (entry["mean"] - evaluation[alone]["mean"]) if alone and alone != name else None
    return {"name": name, "mean": unit(evaluation) * entry["mean"], "metric": metric_name(entry), "difference": difference}


def diversity_chart(summary: dict[str, Any], score: str) -> dict[str, Any]:
    """Seeds and rounds of each relation on one scale, at equal size; empty where there is nothing to compare."""
    level = summary.get("diversity_at_equal_size", {})
    sets = {name: values for name, values in level.get("per_relation", {}).items() if name == "seeds" or name.startswith("round-")}
    relations = [r for r in level.get("size", {}) if any(_value(sets[name], r, score) is not None for name in sets)]
    if not relations:
        return {}
    order = [*(name for name in sorted(sets) if name != "seeds"), *(["seeds"] if "seeds" in sets else [])]
    every = [value for name in sets for r in relations if (value := _value(sets[name], r, score)) is not None]
    low, high = min(every), max(max(level["size"][r] for r in relations), max(every))
    low = max(0.0, low - 0.15 * (high - low))
    rows = []
    for relation in relations:
        marks = []
        for name in order:
            if (value := _value(sets[name], relation, score)) is not None:
                shape, colour = ("diamond", "c5") if name == "seeds" else ("dot", round_colour(name))
                marks.append(Mark(value, shape, colour, f"{round_name(name)}: {value:.2f}"))  # type: ignore[arg-type]
        rounds = [mark.value for mark in marks if mark.colour != "c5"]
        ends = (rounds[0], rounds[-1]) if len(rounds) > 1 else None
        rows.append({"name": relation, "size": level["size"][relation], "plot": strip(marks, low, high, spread=ends)})
    legend = [(round_name(n), key("diamond", "c5") if n == "seeds" else key("dot", round_colour(n))) for n in order]
    return {"rows": rows, "axis": axis(low, high), "legend": legend}


def bars(amounts: dict[str, float], colour: str = "c1") -> list[Row]:
    """One bar a name, the largest filling the width."""
    top = max(amounts.values(), default=0.0)
    total = sum(amounts.values())
    return [
        {"name": name, "amount": amount, "share": amount / total if total else 0.0, "bar": bar([(amount, colour, "")], top)}
        for name, amount in amounts.items()
    ]


def training_curves(alignment: dict[str, Any]) -> list[Row]:
    """One row a round that was tuned: its ``name`` and a ``(title, plot, first, last)`` a logged figure."""
    found = []
    for name, log in alignment.items():
        steps = curve_of(log)
        plots = []
        for field, title, colour, reference in CURVES:
            points = [(float(s["step"]), float(s[field])) for s in steps if s.get(field) is not None and s.get("step") is not None]
            if len(points) > 1:
                plots.append((title, curve(points, colour, reference=reference), points[0][1], points[-1][1]))
        if plots:
            found.append({"name": round_name(name), "plots": plots})
    return found


def curve_of(log: Any) -> list[dict[str, Any]]:
    """The list of logged steps, whether the file is that list or holds it under a key."""
    if isinstance(log, dict):
        log = next((value for value in log.values() if isinstance(value, list) and value and isinstance(value[0], dict)), [])
    return [step for step in log if isinstance(step, dict)]


def correctness_histogram(counts: dict[str, list[int]]) -> Markup | None:
    if not counts:
        return None
    return histogram(counts["passed"], counts["failed"], ("pass the gate", "do not"))


def similarity_histogram(counts: dict[str, Any]) -> Markup | None:
    if not counts or not sum(counts["kept"]) + sum(counts["dropped"]):
        return None
    return histogram(counts["kept"], counts["dropped"], ("kept", "dropped"))


def _value(values: dict[str, dict[str, Any]], relation: str, score: str) -> float | None:
    return values.get(relation, {}).get(score)


def _above(evaluation: Evaluation, factor: float) -> float:
    top = max(max([entry["mean"], *(entry.get("per_draw") or [])]) for entry in evaluation.values()) * factor
    return max(10.0, 10.0 * (int(top * 1.1 / 10) + 1))
