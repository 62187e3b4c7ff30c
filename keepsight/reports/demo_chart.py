"""A dot chart with intervals as inline SVG: one row for each way of decoding, its control hollow beneath it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, FOOT = 460, 66, 16, 10, 30
ROW, ROW_WITH_CONTROL = 40, 62
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Dot:
    """A rate in [0, 1] with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One row: a label, the CSS class that colours it, its dot, and its control."""

    label: str
    style: str
    dot: Dot
    control: Dot | None


def draw(title: str, lines: Sequence[Line]) -> str:
    """The chart of one rate, in per cent; ``title`` is its accessible name."""
    dots = [dot for line in lines for dot in (line.dot, line.control) if dot is not None]
    low, high, step = _axis(min(dot.low for dot in dots), max(dot.high for dot in dots))
    heights = [ROW_WITH_CONTROL if line.control else ROW for line in lines]
    bottom = TOP + sum(heights)

    def x(rate: float) -> float:
        return LEFT + (rate - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [f'<svg viewBox="0 0 {WIDTH} {bottom + FOOT}" role="img" aria-label="{escape(title)}">']
    for i in range(round((high - low) / step) + 1):
        at = x(low + i * step)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 20}">{100 * (low + i * step):.0f}</text>')
    y = TOP
    for line, height in zip(lines, heights, strict=True):
        middle = y + 26
        parts.append(
            f'<g class="{line.style}"><text class="label" x="0" y="{middle + 5}">{escape(line.label)}</text>'
        )
        parts.append(_dot(line.dot, x, middle, "dot", 6))
        if line.control:
            parts.append(f'<text class="control" x="0" y="{middle + 26}">greedy cut</text>')
            parts.append(_dot(line.control, x, middle + 22, "hollow", 4.5))
        parts.append("</g>")
        y += height
    return "".join([*parts, "</svg>"])


def _dot(dot: Dot, x: object, y: float, style: str, radius: float) -> str:
    assert callable(x)
    value, low, high = (x(rate) for rate in (dot.value, dot.low, dot.high))
    tip = f"{100 * dot.value:.1f} % [{100 * dot.low:.1f}, {100 * dot.high:.1f}]"
    bar = f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
    mark = f'<circle cx="{value:.1f}" cy="{y}" r="{radius}"/>'
    number = ""
    if style == "dot":
        number = f'<text class="number" x="{value:.1f}" y="{y - 11}">{100 * dot.value:.1f}</text>'
    return f'<g class="{style}"><title>{tip}</title>{bar}{mark}{number}</g>'


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Round ends that hold ``low`` and ``high``, and a step that makes 3 to 8 marks of them."""
    span = max(high - low, 0.02)
    step = next((step for step in STEPS if span / step <= 6), STEPS[-1])
    # 1e-9: 0.3 / 0.1 is 2.9999…
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step, step
