"""A comparison as one HTML page that needs no other file: remarks, two plots, and the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from keepsight.experiments.compare import Comparison, Figure, Row
from keepsight.reports.compare_tables import LABELS, facts, remarks, spec_parts, tables, title
from keepsight.reports.svg_scatter import Point, Span, draw
from keepsight.reports.templating import render

COLOURS = 6
"""How many colours the style sheet has. Further methods take the colours of the first methods again, but never that of the
baseline. Numbers tell all of them apart."""
AXES: Mapping[str, tuple[str, str, str]] = {
    "chair": ("chair_i", "recall", "lower right is better"),
    "pope": ("f1", "yes_ratio", "higher is better"),
    "beaf": ("tu", "id", "upper left is better"),
}
"""For each benchmark the figure on the y axis of both plots, the one on the x axis of the first, and how to read that."""


@dataclass(frozen=True)
class ShownMethod:
    """A method on the page: its number, its CSS class, and its parts as pairs of a name and settings."""

    number: int
    style: str
    parts: list[tuple[str, str]]


@dataclass(frozen=True)
class Plot:
    """A plot with its title, and with a note on how to read it."""

    title: str
    reading: str
    svg: Markup


def page(comparison: Comparison) -> str:
    """The whole page as HTML; it loads nothing and runs no script. It is light or dark as the reader's system is."""
    return render("compare_page", **context(comparison))


def context(comparison: Comparison, *, folders: bool = True) -> dict[str, Any]:
    """The values that fill the template ``compare_page`` and those that extend it.

    Args:
        comparison: the comparison to show.
        folders: whether the footer names the folders of the runs.
    """
    baseline, methods = comparison.rows[0].method, len(comparison.rows) - 1
    return {
        "about": title(comparison),
        "headline": f"{methods} method{'s' if methods != 1 else ''} against {baseline}"
        if methods
        else baseline,
        "facts": facts(comparison),
        "remarks": remarks(comparison),
        "plots": list(_plots(comparison)),
        "methods": [
            ShownMethod(number, style_of(number), spec_parts(row.method))
            for number, row in enumerate(comparison.rows)
        ],
        "has_controls": any(row.control is not None for row in comparison.rows),
        "baseline": baseline,
        "tables": tables(comparison),
        "footer": list(_footer(comparison.to_json(folders=folders))),
    }


def style_of(number: int) -> str:
    """The CSS class that colours the method with this number; 0 is the baseline."""
    return f"series-{number if number < COLOURS else 1 + (number - 1) % (COLOURS - 1)}"


def _plots(comparison: Comparison) -> Iterator[Plot]:
    """Those of the two plots that have at least one point."""
    upward, across, reading = AXES[comparison.bench]
    up = f"{LABELS[upward]}, %"
    name = f"{LABELS[upward]} against {LABELS[across]}"
    if points := list(_points(comparison, upward, across)):
        yield Plot(name, reading, draw(name, points, x=f"{LABELS[across]}, %", y=up))
    name = f"{LABELS[upward]} against cost"
    if points := list(_points(comparison, upward, None)):
        label = f"seconds of an answer over {comparison.rows[0].method}'s"
        yield Plot(name, "left is cheaper", draw(name, points, x=label, y=up))


def _points(comparison: Comparison, upward: str, across: str | None) -> Iterator[Point]:
    """The methods that have both figures, as points of a plot.

    Args:
        comparison: the comparison.
        upward: the figure on the y axis.
        across: the figure on the x axis; None is the cost.
    """
    for number, row in enumerate(comparison.rows):
        x, y = _across(row, across), _span(row.figures[upward])
        if x is None or y is None:
            continue
        control = None
        # The control was not generated, so it has no cost and no place in the plot of costs.
        if row.control is not None and across is not None:
            place = _span(row.control.figures[across]), _span(row.control.figures[upward])
            # A control without one of the figures has no place in the plot, and the method is shown without it.
            control = (place[0], place[1]) if place[0] is not None and place[1] is not None else None
        side = f"{x.value:.2f}×" if across is None else f"{LABELS[across]} {x.value:.1f} %"
        tip = f"{row.method}: {LABELS[upward]} {y.value:.1f} % [{y.low:.1f}, {y.high:.1f}], {side}"
        yield Point(number=number, style=style_of(number), tip=tip, x=x, y=y, control=control)


def _across(row: Row, name: str | None) -> Span | None:
    """The value on the x axis: a figure in per cent, or the cost for ``name=None``; None where there is no value."""
    if name is not None:
        return _span(row.figures[name])
    # A cost has no interval, so both of its ends are the value.
    cost = row.cost.relative_seconds
    return None if cost is None else Span(cost, cost, cost)


def _span(figure: Figure) -> Span | None:
    """A rate and its interval in per cent; None where there is no value."""
    if figure.value is None:
        return None
    low, high = figure.ci or (figure.value, figure.value)
    return Span(100 * figure.value, 100 * low, 100 * high)


def _footer(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines that say what was run: first the model and its weights, then a line for each run."""
    weights = ", ".join(f"{name} {value}" for name, value in (result["weights"] or {}).items() if value)
    yield (
        f"Model {result['model']}, {weights or 'weights not digested'}; questions {result['bench']['digest']}; longest"
        f" answer {result['max_new_tokens']} tokens; prompt {result['prompt']!r}."
    )
    for run in result["runs"]:
        # A run that was resumed on another machine has several entries, and one that stayed has the same one several
        # times.
        machines = [one for one in run["hardware"] if one]
        where = ", ".join(dict.fromkeys(f"{one.get('cpu')} on {one.get('device')}" for one in machines))
        libraries = ", ".join(f"{name} {number}" for name, number in (run["versions"] or {}).items())
        begun = "Begun" if run["folder"] is None else f"{run['folder']}: begun"
        yield f"{begun} {run['created']}, seed {run['seed']}, batches of {run['batch']}; {where}; {libraries}."
