"""``report.html``: one page that loads nothing, with every generated character escaped."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from divray.config import Config, dump_config
from divray.report.account import STEPS
from divray.report.charts import BLUE, DEPTHS, GREY, HALF, ROUNDS, Marks, Part, bars, curves, dots, histogram
from divray.report.excerpts import pieces, side_by_side
from divray.report.findings import BOTH, SEEDS, Evaluation, metric_name, round_name, signed_interval
from divray.texts import visible

if TYPE_CHECKING:
    import jinja2

Summary = dict[str, Any]

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
    """The report as HTML text; a section without data is left out.

    Args:
        config: The resolved settings, shown at the end with credentials taken out.
        summary: What :func:`divray.report.summary.summarise` returns.
        excerpts: What :func:`divray.report.excerpts.excerpts` returns.
    """
    evaluation: Evaluation = summary.get("evaluation", {})
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            s=summary,
            steps=[step for step in STEPS if step in summary],
            evaluation=evaluation,
            metric=", ".join(sorted({metric_name(entry) for entry in evaluation.values()})),
            best=_best(evaluation) if evaluation else None,
            by_relation={name: entry["f1_per_relation"] for name, entry in evaluation.items() if entry.get("f1_per_relation")},
            diversity=_diversity_rows(summary),
            excerpts=excerpts,
            charts=_charts(config, summary, excerpts),
            settings=config,
            config=without_credentials(dump_config(config)),
        )
    )


def without_credentials(text: str) -> str:
    """``text`` with the user part of URIs, and what follows a key such as ``secret=``, taken out."""
    return _SECRET_KEYS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def duration(seconds: float) -> str:
    """``8.2 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %"


def _counted(count: int, of: int | None) -> str:
    return f"{count:,} · {_percent(count / of)}" if of else f"{count:,}"


def _environment() -> jinja2.Environment:
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
        fixed=lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}".replace("-", "−"),
        score=lambda value: "–" if value is None else f"{100 * value:.1f}".replace("-", "−"),
        signed_interval=signed_interval,
        percent=_percent,
        duration=duration,
        words=lambda text: str(text).replace("_", " "),
        pieces=pieces,
        side_by_side=side_by_side,
        clip=lambda text: text if len(text) <= _LONGEST else text[:_LONGEST] + "…",
        round_name=round_name,
    )
    return environment


# charts -------------------------------------------------------------------------------------------


def _colour(folder: str) -> str:
    return ROUNDS[int(folder[6:]) % len(ROUNDS)]


def _charts(config: Config, summary: Summary, excerpts: dict[str, Any]) -> dict[str, Any]:
    """The page's charts by name, ``None`` for those without data."""
    steps = [step for step in STEPS if step in summary]
    found: dict[str, Any] = defaultdict(lambda: None)
    if any(summary[step] for step in steps):
        parts = [Part(round_name(name), _colour(name), [view[step] for step in steps]) for name, view in summary["per_round"].items()]
        notes = [_counted(summary[step], summary.get("candidates")) for step in steps]
        found["funnel"] = bars([step.capitalize() for step in steps], parts, notes)
    if "valid" in summary and summary["per_relation"]:
        views = summary["per_relation"].values()
        reached = [[view[step] for view in views] for step in steps] + [[0] * len(views)]
        deepest = [[max(here - after, 0) for here, after in zip(*pair, strict=True)] for pair in itertools.pairwise(reached)]
        names = _DEPTHS[len(_DEPTHS) - len(steps) :]
        colours = DEPTHS[len(DEPTHS) - len(steps) :]
        parts = [Part(*part) for part in zip(names, colours, reversed(deepest), strict=True)]
        found["relations"] = bars([name[:40] for name in summary["per_relation"]], parts, [])
    if evaluation := summary.get("evaluation"):
        means = [100 * entry["mean"] for entry in evaluation.values()]
        draws = [[100 * value for value in entry.get("per_draw") or []] for entry in evaluation.values()]
        series = [Marks("one draw of the human examples", "o", BLUE, draws), Marks("mean", "|", BLUE, [[mean] for mean in means])]
        found["scores"] = dots(list(evaluation), series, means, 100 * evaluation[SEEDS]["mean"] if SEEDS in evaluation else None)
    level = summary.get("diversity_at_equal_size", {})
    for score in ("vendi_ngram", "vendi_embedding") if level else ():
        if chart := _diversity_chart(level, score):
            found[score] = chart
    for name, kinds, label, limit in (
        ("correctness", {"passed": "pass the gate", "failed": "do not"}, "judge's score", None),
        ("similarities", {"kept": "kept", "dropped": "dropped"}, "Jaccard similarity", config.diversity.threshold),
    ):
        counts = excerpts[name]
        parts = [Part(text, colour, counts[kind]) for (kind, text), colour in zip(kinds.items(), (BLUE, GREY), strict=True)]
        if any(sum(part.amounts) for part in parts):
            found[name] = histogram(parts, label, limit)
    for name, colour, shown in (("rejections", ROUNDS[4], None), ("seconds", ROUNDS[0], duration)):
        if amounts := summary.get(name):
            total = sum(amounts.values())
            notes = [shown(value) if shown else _counted(value, total) for value in amounts.values()]
            found[name] = bars([key.replace("_", " ")[:60] for key in amounts], [Part("", colour, list(amounts.values()))], notes)
    found["alignment"] = {name: chart for name, log in summary.get("alignment", {}).items() if (chart := _training_curves(log["curve"]))}
    return found


def _diversity_chart(level: dict[str, Any], score: str) -> Markup | None:
    """Seeds and rounds of each relation on one scale, at equal size; nothing where there is nothing to compare."""
    sets = {name: level["per_relation"][name] for name in sorted(level["per_relation"]) if name.startswith("round-")}
    sets["seeds"] = level["per_relation"].get("seeds", {})
    values = {name: [[v] if (v := of.get(r, {}).get(score)) is not None else [] for r in level["size"]] for name, of in sets.items()}
    if not any(map(any, values.values())):
        return None
    labels = [f"{relation[:40]} ({size})" for relation, size in level["size"].items()]
    marks = [
        Marks(round_name(name), "o" if name != "seeds" else "D", GREY if name == "seeds" else _colour(name), some)
        for name, some in values.items()
    ]
    return dots(labels, marks, width=HALF)


def _training_curves(steps: list[dict[str, float | None]]) -> Markup | None:
    panels = []
    for field, title, colour, reference in CURVES:
        points = [(x, y) for step in steps if (x := step.get("step")) is not None and (y := step.get(field)) is not None]
        if len(points) > 1:
            panels.append((f"{title}: {points[0][1]:.2f} → {points[-1][1]:.2f}", colour, points, reference))
    return curves(panels) if panels else None


# tables -------------------------------------------------------------------------------------------


def _best(evaluation: Evaluation) -> dict[str, Any]:
    """What the cards show: seeds + generated where there is one, else the best."""
    name = BOTH if BOTH in evaluation else max(evaluation, key=lambda name: evaluation[name]["mean"])
    gain = evaluation[name]["mean"] - evaluation[SEEDS]["mean"] if SEEDS in evaluation and name != SEEDS else None
    return {"name": name, "mean": evaluation[name]["mean"], "gain": gain}


def _diversity_rows(summary: Summary) -> list[dict[str, Any]]:
    """Name, scores, scores at equal size and mean correctness of every set that has been scored."""
    whole = {**summary.get("diversity_reference", {}), **summary.get("diversity", {})}
    level = summary.get("diversity_at_equal_size", {}).get("mean", {})
    order = ["seeds", "test", "naive", *sorted(summary.get("diversity", {})), "selected"]
    views = {**summary["per_round"], "naive": summary.get("naive", {})}
    correctness = {name: view.get("mean_correctness") for name, view in views.items()}
    correctness["selected"] = summary.get("mean_correctness_selected")
    return [
        {
            "name": "human test set" if name == "test" else round_name(name),
            "scores": whole[name],
            "level": level.get(name),
            "correctness": correctness.get(name),
        }
        for name in order
        if name in whole
    ]
