"""A comparison in the terminal: made for 100 columns, and legible in 80."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepsight.reports.compare_tables import Cell, Grid, facts, grids, remarks, title, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keepsight.experiments.compare import Comparison

_WIDE = 96
_STYLES = {"": "", "good": "green", "bad": "red", "dim": "dim"}


def show(console: Console, comparison: Comparison) -> None:
    """Print the tables, how to read them, and what must not be overlooked last."""
    from rich.text import Text

    console.print(Text(title(comparison), style="bold"))
    console.print(Text(facts(comparison), style="dim"))
    for grid in grids(comparison):
        console.print()
        console.print(_table(grid, wide=console.width >= _WIDE))
        console.print(Text(grid.note, style="dim"))
    found = remarks(comparison)
    if found:
        console.print()
    for remark in found:
        console.print(Text.assemble(("! ", "bold red"), remark))


def _table(grid: Grid, *, wide: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column(grid.title, justify="left", no_wrap=True)
    for heading in grid.headings:
        # Where it is narrow a figure is broken, never cut
        table.add_column(heading, justify="right", overflow="fold")
    for line in grid.lines:
        name = "  " + line.name if line.inner else "\n".join(wrapped(line.name, 22 if wide else 16))
        table.add_row(Text(name, style="" if line.inner else "bold"), *map(_cell, line.cells))
    return table


def _cell(cell: Cell) -> Text:
    from rich.text import Text

    found = Text(cell.text, style=_STYLES[cell.tone])
    if cell.detail:
        # Four of these stand side by side
        detail = cell.detail.replace("significant ", "significant\n")
        found.append("\n" + detail, style="" if cell.tone in ("good", "bad") else "dim")
    return found
