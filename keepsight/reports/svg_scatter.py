"""A scatter plot with 95 % intervals as inline SVG: a numbered dot for each method, and a ring for its control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from keepsight.reports.templating import render

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 400, 52, 22, 14, 46
"""The size of the drawing and its margins, in user units of the SVG's view box."""
RADIUS, RING = 9, 5
"""The radius of a method's dot and of its control's ring, in user units."""


@dataclass(frozen=True)
class Span:
    """A value with its interval; both ends are the value where there is no interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method in the plot.

    Args:
        number: the number in the dot.
        style: the CSS class.
        tip: the tooltip.
        x, y: its place in the units of the axes.
        control: the place of its control, as x and y; None without one.
    """

    number: int
    style: str
    tip: str
    x: Span
    y: Span
    control: tuple[Span, Span] | None = None


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it stands in the drawing, and its number."""

    at: float
    text: str


@dataclass(frozen=True)
class _Axis:
    """Maps values from ``low`` to ``high`` to places from ``start`` to ``end`` in the drawing, with a tick at every
    ``step``."""

    low: float
    high: float
    step: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The place of a value in the drawing."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[Tick]:
        """The ticks of the axis, with as many decimals as the step needs."""
        # The tolerance is for steps such as 0.001, whose logarithm is a little below -3 in floating point.
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = (self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1))
        return [Tick(self.place(value), f"{value:.{digits}f}") for value in values]


def draw(title: str, points: Sequence[Point], *, x: str, y: str) -> Markup:
    """The plot as an ``<svg>`` element; all texts are escaped.

    Args:
        title: the accessible name of the plot.
        points: the methods, at least one.
        x, y: the labels of the axes.
    """
    across = [span for point in points for span in (point.x, *(point.control or ())[:1])]
    along = [span for point in points for span in (point.y, *(point.control or ())[1:])]
    # The y axis starts at the bottom: values grow upwards, and places in an SVG grow downwards.
    to_x, to_y = _axis(across, LEFT, WIDTH - RIGHT), _axis(along, HEIGHT - BOTTOM, TOP)
    text = render(
        "svg_scatter",
        title=title,
        x_label=x,
        y_label=y,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        radius=RADIUS,
        ring=RING,
        x_ticks=to_x.ticks(),
        y_ticks=to_y.ticks(),
        marks=[_placed(point, to_x, to_y) for point in points],
    )
    # The template has escaped every value that it was given, so the text may go into a page as it is.
    return Markup(text)


@dataclass(frozen=True)
class _Mark:
    """A point whose values are places in the drawing."""

    point: Point
    x: Span
    y: Span
    control: tuple[float, float] | None


def _placed(point: Point, to_x: _Axis, to_y: _Axis) -> _Mark:
    """A point with its values mapped by the two axes."""

    def span(of: Span, axis: _Axis) -> Span:
        """The span with its values mapped to places by one axis."""
        return Span(axis.place(of.value), axis.place(of.low), axis.place(of.high))

    control = point.control and (to_x.place(point.control[0].value), to_y.place(point.control[1].value))
    return _Mark(point, span(point.x, to_x), span(point.y, to_y), control)


def _axis(spans: Sequence[Span], start: float, end: float) -> _Axis:
    """An axis with round ends that hold all intervals, and with 3 to 8 ticks."""
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    # A single value has no extent, and an axis needs one.
    extent = max(high - low, 1e-6 * max(abs(high), 1), 1e-9)
    rough = extent / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    # The tolerance is for quotients such as 0.3 / 0.1, which is 2.9999… in floating point.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return _Axis(first * step, max(last, first + 1) * step, step, start, end)
