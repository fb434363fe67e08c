"""Small inline SVG: marks placed in per cent of the width, so that text keeps its size at any width.

Colours come from the page's own CSS variables (a colour-blind safe palette for light and dark), by
class: ``c0`` … ``c5``.  No element refers to anything outside the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

Shape = Literal["dot", "ring", "diamond", "tick"]


@dataclass(frozen=True)
class Mark:
    """One value on a scale: its ``shape``, its colour class and the ``title`` shown under the pointer."""

    value: float
    shape: Shape
    colour: str
    title: str


def bar(segments: Sequence[tuple[float, str, str]], top: float, height: int = 16) -> Markup:
    """A horizontal stacked bar of ``(amount, colour class, title)``, where ``top`` fills the width."""
    parts, at = [], 0.0
    for amount, colour, title in segments:
        width = 100 * amount / top if top > 0 else 0.0
        if width > 0:
            box = f'<rect class="{colour}" x="{at:.3f}%" y="0" width="{width:.3f}%" height="{height}" rx="1.5">'
            parts.append(f"{box}<title>{escape(title)}</title></rect>")
        at += width
    return _svg("".join(parts), height, "bar")


def strip(
    marks: Sequence[Mark],
    low: float,
    high: float,
    spread: tuple[float, float] | None = None,
    reference: float | None = None,
    filled: str | None = None,
    height: int = 26,
) -> Markup:
    """Marks on one horizontal scale from ``low`` to ``high``.

    ``spread`` draws a bar between two values, ``reference`` a dashed line, ``filled`` (a colour class)
    a pale bar from ``low`` to the last mark.
    """
    middle = height / 2
    parts = [f'<line class="track" x1="0" x2="100%" y1="{middle}" y2="{middle}"/>']
    if filled and marks:
        parts.append(f'<rect class="{filled} pale" x="0" y="{middle - 7}" width="{_at(marks[-1].value, low, high)}" height="14" rx="1.5"/>')
    if reference is not None:
        place = _at(reference, low, high)
        parts.append(f'<line class="reference" x1="{place}" x2="{place}" y1="0" y2="{height}"/>')
    if spread is not None:
        ends = [_at(value, low, high) for value in spread]
        parts.append(f'<line class="spread" x1="{ends[0]}" x2="{ends[1]}" y1="{middle}" y2="{middle}"/>')
    parts += [_mark(mark, _at(mark.value, low, high), middle) for mark in marks]
    return _svg("".join(parts), height, "strip")


def axis(low: float, high: float, count: int = 5) -> Markup:
    """Tick labels for the scale of :func:`strip`."""
    parts = []
    for value in ticks(low, high, count):
        share = (value - low) / (high - low) if high > low else 0.0
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        parts.append(f'<text class="label" x="{100 * share:.2f}%" y="12" text-anchor="{anchor}">{_number(value)}</text>')
    return _svg("".join(parts), 16, "axis")


def histogram(passed: Sequence[int], failed: Sequence[int], labels: tuple[str, str], height: int = 150) -> Markup:
    """Stacked columns over equal bins of [0, 1]; ``labels`` name the two parts."""
    top, width, base = max((a + b for a, b in zip(passed, failed, strict=True)), default=0) or 1, 100 / max(len(passed), 1), height - 18
    parts = [f'<line class="track" x1="0" x2="100%" y1="{base}" y2="{base}"/>']
    for place, counts in enumerate(zip(passed, failed, strict=True)):
        y = float(base)
        for count, colour, label in zip(counts, ("c1", "c5"), labels, strict=True):
            tall = (base - 14) * count / top
            if count:
                y -= tall
                title = f"{place / len(passed):.2f} to {(place + 1) / len(passed):.2f}: {count:,} {label}"
                box = f'<rect class="{colour}" x="{place * width + 0.2:.2f}%" y="{y:.1f}" width="{width - 0.4:.2f}%" height="{tall:.1f}">'
                parts.append(f"{box}<title>{escape(title)}</title></rect>")
    for value, anchor in ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end")):
        parts.append(f'<text class="label" x="{100 * value:g}%" y="{height - 4}" text-anchor="{anchor}">{value:g}</text>')
    return _svg("".join(parts), height, "histogram", f"largest bin: {top:,} samples")


def curve(points: Sequence[tuple[float, float]], colour: str, height: int = 130, reference: float | None = None) -> Markup:
    """A line through ``(x, y)`` points with its own axes, and a dashed line at ``reference``."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scale = [*ys, *([reference] if reference is not None else [])]
    low, high = min(scale), max(scale)
    pad = (high - low) * 0.08 or 0.5
    low, high, plot = low - pad, high + pad, height - 20
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    path = " ".join(f"{100 * (x - left) / (right - left):.2f},{100 * (high - y) / (high - low):.2f}" for x, y in points)
    parts = []
    for value in ticks(low, high, 4):
        y = plot * (high - value) / (high - low)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="label" x="-8" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    lines = f'<polyline class="line {colour}" points="{path}"/>'
    if reference is not None:
        y = 100 * (high - reference) / (high - low)
        lines = f'<line class="reference" x1="0" x2="100" y1="{y:.2f}" y2="{y:.2f}"/>' + lines
    inner = f'<svg width="100%" height="{plot}" viewBox="0 0 100 100" preserveAspectRatio="none" class="inner">{lines}</svg>'
    parts.append(inner)
    parts.append(f'<text class="label" x="0" y="{height - 4}">{_number(left)}</text>')
    parts.append(f'<text class="label" x="100%" y="{height - 4}" text-anchor="end">step {_number(right)}</text>')
    return _svg("".join(parts), height, "curve")


def key(shape: Shape, colour: str) -> Markup:
    """One mark for a legend."""
    return _svg(_mark(Mark(0, shape, colour, ""), "8", 8), 16, "key", width="16")


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most ``count + 1`` round values that lie in ``[low, high]``."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _mark(mark: Mark, x: str, y: float) -> str:
    title = f"<title>{escape(mark.title)}</title>" if mark.title else ""
    if mark.shape == "tick":
        return f'<line class="tick {mark.colour}" x1="{x}" x2="{x}" y1="{y - 9:g}" y2="{y + 9:g}">{title}</line>'
    if mark.shape == "diamond":
        path = '<path d="M0 -6L6 0L0 6L-6 0Z"'
        return f'<svg x="{x}" y="{y:g}" overflow="visible">{path} class="ring {mark.colour}">{title}</path></svg>'
    kind, radius = ("ring", 4.5) if mark.shape == "ring" else ("dot", 5)
    return f'<circle class="{kind} {mark.colour}" cx="{x}" cy="{y:g}" r="{radius}">{title}</circle>'


def _at(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.3f}%"


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _svg(inner: str, height: int, kind: str, label: str = "", width: str = "100%") -> Markup:
    named = f' role="img" aria-label="{escape(label)}"' if label else ' aria-hidden="true"'
    return Markup(f'<svg class="{kind}" width="{width}" height="{height}"{named}>{inner}</svg>')
