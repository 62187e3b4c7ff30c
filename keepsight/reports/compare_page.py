"""A comparison as one HTML page that needs nothing else: warnings, two plots, and the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from keepsight.experiments.compare import Comparison, Figure, Row
from keepsight.reports.compare_tables import LABELS, Cell, Grid, Line, facts, grids, remarks, title
from keepsight.reports.svg_scatter import Point, Span, draw

WAYS = 6
"""Colours in the style sheet; further methods start again behind the baseline's, and are told by their numbers."""
PLOTS: Mapping[str, tuple[str, str, str]] = {
    "chair": ("chair_i", "recall", "lower right is better"),
    "pope": ("f1", "yes_ratio", "higher is better"),
    "beaf": ("tu", "id", "upper left is better"),
}
"""For each bench the figure that goes upwards in both plots, the one across the first, and how to read that."""
STYLE = """
.warnings { margin: 22px 0 0; padding: 14px 18px 14px 36px; border: 1px solid var(--no); border-radius: 12px;
  background: var(--no-wash); font-size: 15px; }
.warnings li { margin: 4px 0; }
.legend { list-style: none; margin: 16px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 14px; }
.legend b, .number-of { display: inline-block; min-width: 20px; padding: 0 5px; margin-right: 7px; border-radius: 10px;
  background: var(--way); color: var(--card); text-align: center; font-size: 12px; font-weight: 650; line-height: 20px; }
.legend code { color: var(--soft); margin-left: 5px; overflow-wrap: anywhere; }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
svg .axis { fill: var(--soft); text-anchor: middle; font-size: 12.5px; }
svg .side { text-anchor: end; }
svg .mark line { stroke: var(--way); stroke-width: 3; stroke-linecap: round; opacity: .35; }
svg .mark .tie { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 3 4; opacity: .8; }
svg .ring { fill: var(--card); stroke: var(--way); stroke-width: 2; }
svg .disc { fill: var(--way); stroke: var(--card); stroke-width: 2; }
svg .count { fill: var(--card); text-anchor: middle; font-size: 11.5px; font-weight: 650; }
tbody th { white-space: normal; }
tr.cut th { padding-left: 34px; }
.tables td.good, .tables td.good small { color: var(--yes); }
.tables td.bad, .tables td.bad small { color: var(--no); }
.tables td.dim { color: var(--soft); }
@media (max-width: 560px) { main { padding: 32px 16px; } }
"""


def page(comparison: Comparison) -> str:
    """The whole page; it loads nothing and runs no script. Light or dark as the reader's system is."""
    style = files("keepsight.reports").joinpath("page.css").read_text(encoding="utf-8") + STYLE
    base, methods = comparison.rows[0].method, len(comparison.rows) - 1
    headline = f"{methods} method{'s' if methods != 1 else ''} against {base}" if methods else base
    warned = "".join(f"<li>{escape(one)}</li>" for one in remarks(comparison))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Keepsight: {escape(headline)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="eyebrow">Keepsight compare · {escape(title(comparison))}</p>
<h1>{escape(headline)}</h1>
<p class="soft">{escape(facts(comparison))}</p>
{f'<ul class="warnings">{warned}</ul>' if warned else ""}
{_plots(comparison)}
<div class="tables">
{"".join(map(_grid, grids(comparison)))}</div>
{_footer(comparison.to_json())}
</main>
</body>
</html>
"""


def _plots(comparison: Comparison) -> str:
    upward, across, reading = PLOTS[comparison.bench]
    up = f"{LABELS[upward]}, %"
    panels = [
        (
            f"{LABELS[upward]} against {LABELS[across]}",
            reading,
            f"{LABELS[across]}, %",
            list(_points(comparison, upward, across)),
        ),
        (
            f"{LABELS[upward]} against cost",
            "left is cheaper",
            f"seconds of an answer over {comparison.rows[0].method}'s",
            list(_points(comparison, upward, None)),
        ),
    ]
    drawn = "".join(
        f'<div class="panel"><h3>{escape(name)} <span>{escape(how)}</span></h3>{draw(name, points, x=label, y=up)}</div>'
        for name, how, label, points in panels
        if points
    )
    if not drawn:
        return ""
    keys = "".join(f"<li>{_named(at, row.method)}</li>" for at, row in enumerate(comparison.rows))
    rings = any(row.control is not None for row in comparison.rows)
    base = escape(comparison.rows[0].method)
    ringed = (
        f"<p class='note'>Bars are 95 % intervals. A ring is the control: {base}, each caption cut to as many mentions as"
        " the method made. A method that only says less lies on its ring.</p>"
        if rings
        else "<p class='note'>Bars are 95 % intervals.</p>"
    )
    return f'<div class="panels">{drawn}</div><ul class="legend">{keys}</ul>{ringed}'


def _points(comparison: Comparison, upward: str, across: str | None) -> Iterator[Point]:
    """The methods that have both figures; ``across`` None is the cost."""
    for at, row in enumerate(comparison.rows):
        x, y = _across(row, across), _span(row.figures[upward])
        if x is None or y is None:
            continue
        control = None
        if row.control is not None and across is not None:
            place = _span(row.control.figures[across]), _span(row.control.figures[upward])
            control = (place[0], place[1]) if place[0] is not None and place[1] is not None else None
        side = f"{x.value:.2f}×" if across is None else f"{LABELS[across]} {x.value:.1f} %"
        tip = f"{row.method}: {LABELS[upward]} {y.value:.1f} % [{y.low:.1f}, {y.high:.1f}], {side}"
        yield Point(number=at, style=_way(at), tip=tip, x=x, y=y, control=control)


def _across(row: Row, name: str | None) -> Span | None:
    if name is not None:
        return _span(row.figures[name])
    cost = row.cost.relative_seconds
    return None if cost is None else Span(cost, cost, cost)


def _span(figure: Figure) -> Span | None:
    """In per cent."""
    if figure.value is None:
        return None
    low, high = figure.ci or (figure.value, figure.value)
    return Span(100 * figure.value, 100 * low, 100 * high)


def _grid(grid: Grid) -> str:
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in grid.headings)
    lines = "".join(map(_line, grid.lines))
    return (
        f"<h2>{escape(grid.title)}</h2>\n<div class='scroll'><table><thead><tr><th></th>{headings}</tr></thead><tbody>\n"
        f"{lines}</tbody></table></div>\n<p class='note'>{escape(grid.note)}</p>\n"
    )


def _line(line: Line) -> str:
    style, name = (
        (_way(line.way), _named(line.way, line.name)) if not line.inner else ("cut", escape(line.name))
    )
    return f'<tr class="{style}"><th scope="row">{name}</th>{"".join(map(_cell, line.cells))}</tr>\n'


def _cell(cell: Cell) -> str:
    tone = f' class="{cell.tone}"' if cell.tone else ""
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    return f"<td{tone}>{escape(cell.text)}{detail}</td>"


def _named(at: int, spec: str) -> str:
    """A method's number, name and settings."""
    pieces = []
    for method in spec.split("+"):
        name, _, settings = method.partition(":")
        pieces.append(
            escape(name) + (f" <code>{escape(settings.replace(',', ', '))}</code>" if settings else "")
        )
    return f'<span class="{_way(at)}"><span class="number-of">{at}</span></span>{" + ".join(pieces)}'


def _way(at: int) -> str:
    return f"way-{at if at < WAYS else 1 + (at - 1) % (WAYS - 1)}"


def _footer(result: Mapping[str, Any]) -> str:
    lines = []
    for run in result["runs"]:
        machines = [one for one in run["hardware"] if one]
        where = ", ".join(dict.fromkeys(f"{one.get('cpu')} on {one.get('device')}" for one in machines))
        libraries = ", ".join(f"{name} {number}" for name, number in (run["versions"] or {}).items())
        lines.append(
            f"{run['folder']}: begun {run['created']}, seed {run['seed']}, batches of {run['batch']}; {where}; {libraries}."
        )
    weights = ", ".join(f"{name} {value}" for name, value in (result["weights"] or {}).items() if value)
    model = (
        f"Model {result['model']}, {weights or 'weights not digested'}; questions {result['bench']['digest']}; longest"
        f" answer {result['max_new_tokens']} tokens; prompt {result['prompt']!r}."
    )
    return "<footer>" + "".join(f"<p>{escape(line)}</p>" for line in [model, *lines]) + "</footer>"
