"""Prints a tuning: the whole curve, what the floors refused, and the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepsight.experiments.tune import COUNTED, Floor, Point, Tuning
from keepsight.reports.compare_tables import LABELS, facts, remarks, title, wrapped
from keepsight.reports.number_format import percent, points

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from keepsight.eval.stats.bootstrap import Difference
    from keepsight.experiments.compare import Row


def show(console: Console, tuning: Tuning) -> None:
    """Print every setting in the order of the grid, under the baseline."""
    from rich.table import Table
    from rich.text import Text

    base = tuning.comparison.rows[0]
    # Recall stands beside the goal in any case, because a setting can win by saying less.
    figures = list(dict.fromkeys([tuning.goal, "recall"]))
    console.print(Text(title(tuning.comparison), style="bold"))
    console.print(Text(facts(tuning.comparison), style="dim"))
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in figures:
        table.add_column(LABELS[name], justify="right", overflow="fold")
        table.add_column(f"to {base.method}", justify="right", overflow="fold")
    counted = "length" if tuning.comparison.bench == "chair" else "yes_ratio"
    table.add_column(LABELS[counted], justify="right", overflow="fold")
    table.add_column("cost", justify="right", overflow="fold")
    for row, point in ((base, None), *((point.row, point) for point in tuning.points)):
        table.add_row(
            Text("\n".join(wrapped(row.method, 22)), style="bold").append_text(_fate(tuning, point)),
            *(text for name in figures for text in _pair(row, name)),
            _value(row, counted),
            "–" if row.cost.relative_seconds is None else f"{row.cost.relative_seconds:.2f}×",
        )
    console.print(table)
    floors = ", ".join(map(_spoken, tuning.floors)) or "no floor"
    direction = "lowest" if tuning.goal == "chair_i" else "highest"
    console.print(
        Text(
            f"In %, differences in points with paired 95 % intervals. Chosen: the {direction} {LABELS[tuning.goal]} under"
            f" the floors: {floors}.",
            style="dim",
        )
    )
    console.print(
        Text(_doubt(tuning), style="yellow") if _doubt(tuning) else "", end="\n" if _doubt(tuning) else ""
    )
    # The first remarks, one for each leak, say that settings were chosen on these questions, which is what this command is
    # for.
    for remark in remarks(tuning.comparison)[len(tuning.comparison.leaks) :]:
        console.print(Text.assemble(("! ", "bold red"), remark))


def broken(tuning: Tuning) -> str:
    """The reason why no setting was chosen, in words."""
    return f"every setting breaks a floor ({', '.join(map(_spoken, tuning.floors))})"


def _fate(tuning: Tuning, point: Point | None) -> Text:
    """The text under a setting's name: that it was chosen, or why it was refused; empty for neither."""
    from rich.text import Text

    if point is None:
        return Text("")
    if point is tuning.chosen:
        return Text("\n  chosen", style="not bold green")
    differences = point.row.differences or {}
    broken = "".join(f"\n  refused: {_why(floor, differences[floor.figure])}" for floor in point.broken)
    return Text(broken, style="not bold red")


def _why(floor: Floor, change: Difference) -> str:
    """The change of the figure whose floor a setting broke."""
    if change.value is None:
        return f"no {floor.figure}"
    value = f"{change.value:+.1f}" if floor.figure in COUNTED else points(change.value)
    return f"{LABELS.get(floor.figure, floor.figure)} {value}"


def _spoken(floor: Floor) -> str:
    """A floor in words."""
    name = LABELS.get(floor.figure, floor.figure)
    many = abs(floor.change) * (1 if floor.figure in COUNTED else 100)
    unit = "" if floor.figure in COUNTED else (" point" if many == 1 else " points")
    if floor.change > 0:
        return f"{name} must rise by {many:g}{unit} or more"
    return f"{name} may lose {many:g}{unit}" if many else f"{name} may lose nothing"


def _doubt(tuning: Tuning) -> str:
    """What keeps the choice from being a success, in a sentence; empty if nothing does."""
    if tuning.chosen is None or tuning.chosen.row.differences is None:
        return ""
    change = tuning.chosen.row.differences[tuning.goal]
    base = tuning.comparison.rows[0].method
    if change.value is not None and change.value * (1 if tuning.goal == "chair_i" else -1) >= 0:
        return f"No setting that keeps the floors is better than {base}: the chosen one is the least bad."
    if not change.clear:
        return f"The chosen setting shows no significant difference to {base} in {LABELS[tuning.goal]}."
    return ""


def _pair(row: Row, name: str) -> tuple[str, str]:
    """The cells of a figure and of its difference to the baseline."""
    change = None if row.differences is None else row.differences[name]
    return _value(row, name), "" if change is None else _change(change)


def _change(change: Difference) -> str:
    """A difference with its interval, escaped for rich."""
    bounds = "" if change.low is None else f" [{points(change.low)}, {points(change.high)}]"
    # rich would read the bracket of an interval as the start of a style.
    return (points(change.value) + bounds).replace("[", "\\[")


def _value(row: Row, name: str) -> str:
    """A figure as text."""
    value = row.figures[name].value
    if name in COUNTED:
        return "–" if value is None else f"{value:.1f}"
    return percent(value)
