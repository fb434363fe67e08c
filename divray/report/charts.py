"""The report's charts: the list of them, and the functions that draw them with matplotlib as inline SVG.

The SVG takes its colours (light and dark) and its fonts from the page's style sheet.  No element refers to anything outside
the page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from divray.console import clock, visible
from divray.report.account import STEPS
from divray.report.findings import SEEDS, percent, round_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDS = ("#56a8dc", "#0b5d99", "#00855f", "#c4760a", "#c0531a")
BLUE, GREY, RULE, INK, SOFT, PANEL = "#0b5d99", "#8b919b", "#dfddd5", "#1c222b", "#5d6672", "#ffffff"
_VARIABLES = {
    **{colour: f"var(--c{number})" for number, colour in enumerate((*ROUNDS, GREY))},
    **{RULE: "var(--rule)", INK: "var(--ink)", SOFT: "var(--soft)", PANEL: "var(--panel)"},
}
_DASHED: dict[str, Any] = {"color": SOFT, "linestyle": (0, (3, 3)), "linewidth": 1}
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), RULE),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "svg.fonttype"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon", "text.parse_math"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys(("font.size", "axes.titlesize"), 9),
    "xtick.labelsize": 8,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "legend.handlelength": 1,
    "svg.hashsalt": "divray",
}
WIDTH = 10.2
"""In inches; the page scales a chart to its own width."""

CURVES = (
    ("loss", "Loss", BLUE, None),
    ("accuracy", "Reward accuracy", ROUNDS[2], 0.5),
    ("margin", "Reward margin", ROUNDS[3], 0.0),
)


class Series(NamedTuple):
    """One series of bars: its name in the legend, its colour, and one value for each row."""

    name: str
    colour: str
    values: Sequence[float]


def _as_svg(draw: Callable[..., Figure]) -> Callable[..., Markup]:
    """Decorator: make ``draw`` return its figure as an SVG element."""

    def chart(*args: Any, **kwargs: Any) -> Markup:
        import matplotlib

        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's fonts show the texts
            figure = draw(*args, **kwargs)
            if len(figure.axes[0].get_legend_handles_labels()[1]) > 1:
                figure.set_figheight(figure.get_figheight() + 0.25)
                figure.legend(loc="outside upper left", ncols=6, labelcolor=SOFT, borderpad=0)
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        svg = file.getvalue()
        svg = re.sub(r"<style.*?</style>|<clipPath.*?</clipPath>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r' clip-path="[^"]*"| transform="rotate\(-0 [^"]*"|(?<=<g) id="[^"]*"|font-family: [^;]*; |xlink:(?=href)', "", svg)
        svg = re.sub(r"#[0-9a-f]{6}(?=[;\"])", lambda colour: _VARIABLES.get(colour[0], colour[0]), svg)
        least = f'<svg class="chart" style="min-width: {60 * figure.get_figwidth():.0f}px" viewBox'
        return Markup(re.sub(r"<svg .*?viewBox", least, svg, count=1, flags=re.DOTALL))

    return chart


@_as_svg
def bars(labels: Sequence[str], parts: Sequence[Series], notes: Sequence[str]) -> Figure:
    """Horizontal stacked bars, one for each label, with a note at the end of each bar."""
    figure, (plot,) = _figure(0.27 * len(labels), rows=labels)
    ends = np.zeros(len(labels))
    for part in parts:
        last = plot.barh(range(len(labels)), part.values, 0.66, ends, color=part.colour, label=part.name)
        ends += part.values
    plot.bar_label(last, [visible(note) for note in notes], padding=5)
    plot.set_xlim(0, max(ends.max(initial=0), 1e-9))
    plot.xaxis.set_visible(False)
    plot.spines["bottom"].set_visible(False)
    return figure


@_as_svg
def scores(labels: Sequence[str], draws: Sequence[Sequence[float]], means: Sequence[float], reference: float) -> Figure:
    """One row for each label.  A pale bar goes from 0 to the mean and ends in a mark; rings, joined by a line, show the draws.
    A dashed line shows ``reference``."""
    figure, (plot,) = _figure(0.3 * len(labels) + 0.25, rows=labels)
    plot.grid(axis="x")
    plot.barh(range(len(labels)), means, 0.6, color=BLUE, alpha=0.22)
    plot.axvline(reference, **_DASHED)
    for row, values in enumerate(draws):
        plot.plot(values, [row] * len(values), color=ROUNDS[0], linewidth=2, zorder=1)
    rings = [row for row, values in enumerate(draws) for _ in values]
    label = "one draw of the human examples"
    plot.scatter(np.concatenate(draws), rings, 24, PANEL, edgecolors=BLUE, label=label, linewidths=1.6, zorder=2)
    plot.scatter(means, range(len(labels)), 90, BLUE, marker="|", label="mean", linewidths=1.6, zorder=2)
    plot.set_xlim(left=0)
    return figure


@_as_svg
def histogram(kept: Sequence[int], dropped: Sequence[int]) -> Figure:
    """Counts of samples by the judge's score, in equal bins of [0, 1]; on top of those that pass the gate stand the others."""
    figure, (plot,) = _figure(1.7)
    plot.grid(axis="y")
    step = 1 / len(kept)
    starts = np.arange(len(kept)) * step
    plot.bar(starts, kept, 0.94 * step, align="edge", color=BLUE, label="pass the gate")
    plot.bar(starts, dropped, 0.94 * step, kept, align="edge", color=GREY, label="do not")
    plot.set_xlim(0, 1)
    plot.set_xlabel("judge's score")
    plot.tick_params(axis="y", labelcolor=SOFT)
    return figure


@_as_svg
def curves(steps: Sequence[dict[str, Any]]) -> Figure:
    """Loss, reward accuracy and reward margin over the steps of DPO, side by side, each with its first and last value; null is a gap."""
    figure, axes = _figure(1.6, columns=len(CURVES))
    for plot, (field, title, colour, reference) in zip(axes, CURVES, strict=True):
        values = np.array([step[field] for step in steps], float)
        plot.grid(axis="y")
        if reference is not None:
            plot.axhline(reference, **_DASHED)
        plot.plot([step["step"] for step in steps], values, color=colour, linewidth=1.6)
        plot.set_title(f"{title}: {values[0]:.2f} → {values[-1]:.2f}")
        plot.set_xlabel("step")
        plot.tick_params(axis="y", labelcolor=SOFT)
    return figure


@_as_svg
def parallel(names: Sequence[str], rows: np.ndarray, best: int) -> Figure:
    """Parallel coordinates of ``rows`` ``[n, m]``: each column is a vertical axis from its least to its largest value, each row a line.
    The row ``best`` stands out."""
    figure, (plot,) = _figure(1.9)
    least, most = rows.min(axis=0), rows.max(axis=0)
    places = (rows - least) / np.where(most > least, most - least, 1)
    plot.plot(np.delete(places, best, axis=0).T, color=GREY, linewidth=1, alpha=0.6)
    plot.plot(places[best], color=BLUE, linewidth=2.2)
    plot.set_xticks(
        range(len(names)), [f"{visible(name)}\n{low:.4g} to {high:.4g}" for name, low, high in zip(names, least, most, strict=True)]
    )
    plot.grid(axis="x")
    plot.yaxis.set_visible(False)
    return figure


def _figure(height: float, columns: int = 1, rows: Sequence[str] = ()) -> tuple[Figure, list[Axes]]:
    """A figure and its axes; the labels in ``rows`` stand at the left, from top to bottom."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, height + 0.15), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    if rows:
        axes[0].set_yticks(range(len(rows)), [visible(label) for label in rows])
        axes[0].set_ylim(len(rows) - 0.45, -0.55)
    return figure, axes


def charts_of(summary: dict[str, Any], excerpts: dict[str, Any]) -> dict[str, Any]:
    """The page's charts by name, ``None`` for those without data."""
    found: dict[str, Any] = dict.fromkeys(("funnel", "scores", "correctness", "rejections", "seconds"))
    steps = [step for step in STEPS if step in summary]
    if any(summary[step] for step in steps):
        parts = [Series(round_name(name), _colour(name), [view[step] for step in steps]) for name, view in summary["per_round"].items()]
        notes = [_counted(summary[step], summary.get("candidates")) for step in steps]
        found["funnel"] = bars([step.capitalize() for step in steps], parts, notes)
    if evaluation := summary.get("evaluation"):
        means = [100 * entry["mean"] for entry in evaluation.values()]
        draws = [[100 * value for value in entry["per_draw"]] for entry in evaluation.values()]
        found["scores"] = scores(list(evaluation), draws, means, 100 * evaluation[SEEDS]["mean"])
    if any(map(sum, excerpts["correctness"].values())):
        found["correctness"] = histogram(**excerpts["correctness"])
    for name, colour in (("rejections", ROUNDS[4]), ("seconds", ROUNDS[0])):
        if amounts := summary.get(name):
            total = sum(amounts.values())
            notes = [clock(value) if name == "seconds" else _counted(value, total) for value in amounts.values()]
            found[name] = bars([key.replace("_", " ")[:60] for key in amounts], [Series("", colour, list(amounts.values()))], notes)
    found["search"] = _search_chart(summary.get("search", {}).get("trials", []))
    found["alignment"] = {name: curves(log["curve"]) for name, log in summary.get("alignment", {}).items() if len(log["curve"]) > 1}
    return found


def _counted(count: int, of: int | None) -> str:
    return f"{count:,} · {percent(count / of)}" if of else f"{count:,}"


def _colour(folder: str) -> str:
    return ROUNDS[int(folder[6:]) % len(ROUNDS)]


def _search_chart(trials: Sequence[dict[str, Any]]) -> Markup | None:
    """Chart of the trials that have a score: the numeric settings that differ between them, and the score.  The chosen one stands out."""
    done = [trial for trial in trials if trial.get("score") is not None]
    names = [name for name, value in (done[0] if done else {}).items() if type(value) in (int, float) and name not in ("trial", "score")]
    names = [name for name in names if len({trial[name] for trial in done}) > 1]
    if not names:
        return None
    rows = np.array([[trial[name] for name in (*names, "score")] for trial in done])
    return parallel([name.replace("_", " ") for name in (*names, "score")], rows, [bool(trial["chosen"]) for trial in done].index(True))
