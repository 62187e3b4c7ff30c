"""A scatter plot with 95 % intervals as inline SVG: a numbered dot for each method, its control hollow beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 520, 400, 52, 22, 14, 46
RADIUS = 9


@dataclass(frozen=True)
class Span:
    """A value with its interval; both ends are the value where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method: its number, CSS class, tooltip, place, and the place of its control."""

    number: int
    style: str
    tip: str
    x: Span
    y: Span
    control: tuple[Span, Span] | None = None


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    step: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def text(self, value: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{value:.{digits}f}"


def draw(title: str, points: Sequence[Point], *, x: str, y: str) -> str:
    """The plot; ``title`` is its accessible name, ``x`` and ``y`` label the axes. Values are drawn as they are."""
    across = [span for point in points for span in (point.x, *(point.control or ())[:1])]
    along = [span for point in points for span in (point.y, *(point.control or ())[1:])]
    to_x, to_y = _axis(across, LEFT, WIDTH - RIGHT), _axis(along, HEIGHT - FOOT, TOP)
    bottom = HEIGHT - FOOT
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in to_x.ticks():
        at = to_x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 18}">{to_x.text(value)}</text>')
    for value in to_y.ticks():
        at = to_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick side" x="{LEFT - 8}" y="{at + 4:.1f}">{to_y.text(value)}</text>')
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 8}">{escape(x)}</text>'
    )
    parts.append(
        f'<text class="axis" x="14" y="{middle:.1f}" transform="rotate(-90 14 {middle:.1f})">{escape(y)}</text>'
    )
    # Intervals and controls below, so that no dot is hidden by another's lines
    parts += [_below(point, to_x, to_y) for point in points]
    parts += [_dot(point, to_x, to_y) for point in reversed(points)]
    return "".join([*parts, "</svg>"])


def _below(point: Point, to_x: _Axis, to_y: _Axis) -> str:
    x, y = to_x(point.x.value), to_y(point.y.value)
    lines = (
        f'<line x1="{to_x(point.x.low):.1f}" x2="{to_x(point.x.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{to_y(point.y.low):.1f}" y2="{to_y(point.y.high):.1f}"/>'
    )
    control = ""
    if point.control is not None:
        at = to_x(point.control[0].value), to_y(point.control[1].value)
        control = (
            f'<line class="tie" x1="{x:.1f}" y1="{y:.1f}" x2="{at[0]:.1f}" y2="{at[1]:.1f}"/>'
            f'<circle class="ring" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5"/>'
        )
    return f'<g class="mark {point.style}">{lines}{control}</g>'


def _dot(point: Point, to_x: _Axis, to_y: _Axis) -> str:
    x, y = to_x(point.x.value), to_y(point.y.value)
    return (
        f'<g class="mark {point.style}"><title>{escape(point.tip)}</title>'
        f'<circle class="disc" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/>'
        f'<text class="count" x="{x:.1f}" y="{y + 4:.1f}">{point.number}</text></g>'
    )


def _axis(spans: Sequence[Span], start: float, end: float) -> _Axis:
    """Round ends around all intervals, with 3 to 8 marks."""
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    room = max(high - low, 1e-6 * max(abs(high), 1), 1e-9)
    rough = room / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return _Axis(first * step, max(last, first + 1) * step, step, start, end)
