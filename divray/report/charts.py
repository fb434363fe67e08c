"""The report's charts, by matplotlib, as inline SVG in the colours of the page.

The page's style sheet names the colours (for light and dark), and its fonts show the texts.  No element refers to anything
outside the page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from divray.texts import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUNDS = ("#56a8dc", "#0b5d99", "#00855f", "#c4760a", "#c0531a")
BLUE, GREY, TRACK, RULE, INK, SOFT, PANEL = "#0b5d99", "#8b919b", "#e6e4dc", "#dfddd5", "#1c222b", "#5d6672", "#ffffff"
DEPTHS = (BLUE, ROUNDS[0], ROUNDS[3], GREY, TRACK)
_VARIABLES = {
    **{colour: f"var(--c{number})" for number, colour in enumerate((*ROUNDS, GREY))},
    **{TRACK: "var(--track)", RULE: "var(--rule)", INK: "var(--ink)", SOFT: "var(--soft)", PANEL: "var(--panel)"},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "divray",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 1,
}
FULL, HALF = 10.2, 4.9
"""Widths in inches; the page stretches a chart to its own."""


class Part(NamedTuple):
    """One series of a chart: its name in the legend, its colour, and an amount for each row."""

    name: str
    colour: str
    amounts: Sequence[float]


class Marks(NamedTuple):
    """One series of marks: name, matplotlib's marker, colour, and the values of each row."""

    name: str
    marker: str
    colour: str
    values: Sequence[Sequence[float]]


def bars(labels: Sequence[str], parts: Sequence[Part], notes: Sequence[str], width: float = FULL) -> Markup:
    """Horizontal stacked bars, one a label, with a note at the end of each."""

    def draw(axes: Sequence[Axes]) -> None:
        (plot,) = axes
        ends = np.zeros(len(labels))
        for part in parts:
            plot.barh(range(len(labels)), part.amounts, 0.66, ends, color=part.colour, label=part.name)
            ends += part.amounts
        for row, note in enumerate(notes):
            plot.annotate(visible(note), (ends[row], row), (5, 0), textcoords="offset points", va="center")
        plot.set_xlim(0, max(ends.max(initial=0), 1e-9))
        plot.xaxis.set_visible(False)
        plot.spines["bottom"].set_visible(False)
        _rows(plot, labels)

    return _chart(draw, width, 0.27 * len(labels), legend=len(parts) > 1)


def dots(
    labels: Sequence[str],
    series: Sequence[Marks],
    means: Sequence[float] | None = None,
    reference: float | None = None,
    width: float = FULL,
) -> Markup:
    """Marks on one scale, a row a label, and a line over those of all series but the last.

    ``means`` are pale bars from 0 on, ``reference`` a dashed line.
    """

    def draw(axes: Sequence[Axes]) -> None:
        (plot,) = axes
        plot.grid(axis="x")
        if means is not None:
            plot.barh(range(len(labels)), means, 0.6, color=BLUE, alpha=0.22)
        if reference is not None:
            plot.axvline(reference, color=SOFT, linestyle=(0, (3, 3)), linewidth=1)
        for row in range(len(labels)):
            joined = [value for marks in series[:-1] for value in marks.values[row]]
            if joined:
                plot.plot([min(joined), max(joined)], [row, row], color=ROUNDS[0], linewidth=2, zorder=1)
        for marks in series:
            xs = [value for values in marks.values for value in values]
            ys = [row for row, values in enumerate(marks.values) for _ in values]
            face, edge, size = (marks.colour, None, 90) if marks.marker == "|" else (PANEL, marks.colour, 24)
            plot.scatter(xs, ys, size, face, marker=marks.marker, edgecolors=edge, label=marks.name, linewidths=1.6, zorder=2)
        if means is not None:
            plot.set_xlim(left=0)
        _rows(plot, labels)

    return _chart(draw, width, 0.3 * len(labels) + 0.25, legend=True)


def histogram(parts: Sequence[Part], xlabel: str, limit: float | None = None) -> Markup:
    """Stacked columns over equal bins of [0, 1], and a dashed line at ``limit``."""

    def draw(axes: Sequence[Axes]) -> None:
        (plot,) = axes
        plot.grid(axis="y")
        ends = np.zeros(len(parts[0].amounts))
        for part in parts:
            step = 1 / len(ends)
            plot.bar(np.arange(len(ends)) * step, part.amounts, 0.94 * step, ends, align="edge", color=part.colour, label=part.name)
            ends += part.amounts
        if limit is not None:
            plot.axvline(limit, color=SOFT, linestyle=(0, (3, 3)), linewidth=1)
        plot.set_xlim(0, 1)
        plot.set_xlabel(xlabel)
        plot.tick_params(axis="y", labelcolor=SOFT)

    return _chart(draw, FULL, 1.7, legend=True)


def curves(panels: Sequence[tuple[str, str, Sequence[tuple[float, float]], float | None]]) -> Markup:
    """Panels side by side: title, colour, ``(x, y)`` points, and a dashed line at a height, or none."""

    def draw(axes: Sequence[Axes]) -> None:
        for plot, (title, colour, points, reference) in zip(axes, panels, strict=True):
            plot.grid(axis="y")
            if reference is not None:
                plot.axhline(reference, color=SOFT, linestyle=(0, (3, 3)), linewidth=1)
            plot.plot(*np.transpose(points), color=colour, linewidth=1.6)
            plot.set_title(title)
            plot.set_xlabel("step")
            plot.tick_params(axis="y", labelcolor=SOFT)

    return _chart(draw, FULL, 1.6, columns=len(panels))


def _rows(plot: Axes, labels: Sequence[str]) -> None:
    plot.set_yticks(range(len(labels)), [visible(label) for label in labels])
    plot.set_ylim(len(labels) - 0.45, -0.55)


def _chart(draw: Callable[[Sequence[Axes]], None], width: float, height: float, columns: int = 1, legend: bool = False) -> Markup:
    """What ``draw`` puts on its axes, as an SVG element."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = _STYLE
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's fonts show the texts
        figure = Figure((width, height + 0.15 + 0.25 * legend), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw(axes)
        if legend:
            figure.legend(loc="outside upper left", ncols=6, labelcolor=SOFT, borderpad=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<style.*?</style>|<clipPath.*?</clipPath>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' clip-path="[^"]*"| transform="rotate\(-0 [^"]*"|(?<=<g) id="[^"]*"|font-family: [^;]*; ', "", svg).replace(
        "xlink:href", "href"
    )
    svg = re.sub(r"#[0-9a-f]{6}(?=[;\"])", lambda colour: _VARIABLES.get(colour[0], colour[0]), svg)
    svg = re.sub(r"<svg .*?viewBox", f'<svg class="chart" style="min-width: {60 * width:.0f}px" viewBox', svg, count=1, flags=re.DOTALL)
    return Markup(svg)
