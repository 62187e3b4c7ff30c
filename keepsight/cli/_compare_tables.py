"""Prints a comparison in the terminal. It is made for 100 columns, and legible in 80."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepsight.reports import compare_tables
from keepsight.reports.compare_tables import facts, remarks, title, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keepsight.experiments.compare import Comparison

_WIDE = 96
"""From this many columns on, names and gaps take more room."""
_STYLES = {"": "", "good": "green", "bad": "red", "dim": "dim"}


def show(console: Console, comparison: Comparison) -> None:
    """Print the tables, each with a note on how to read it, and last what must not be overlooked."""
    from rich.text import Text

    console.print(Text(title(comparison), style="bold"))
    console.print(Text(facts(comparison), style="dim"))
    for table in compare_tables.tables(comparison):
        console.print()
        console.print(_table(table, wide=console.width >= _WIDE))
        console.print(Text(table.note, style="dim"))
    found = remarks(comparison)
    if found:
        console.print()
    for remark in found:
        console.print(Text.assemble(("! ", "bold red"), remark))


def _table(shown: compare_tables.Table, *, wide: bool) -> Table:
    """A table of texts as a table of rich; ``wide`` says whether the terminal has room for longer names and gaps."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column(shown.title, justify="left", no_wrap=True)
    for heading in shown.headings:
        # In a narrow terminal a figure is broken over two lines rather than cut, since half a figure would mislead.
        table.add_column(heading, justify="right", overflow="fold")
    for row in shown.rows:
        name = "  " + row.name if row.inner else "\n".join(wrapped(row.name, 22 if wide else 16))
        table.add_row(Text(name, style="" if row.inner else "bold"), *map(_cell, row.cells))
    return table


def _cell(cell: compare_tables.Cell) -> Text:
    """A cell with its detail below it."""
    from rich.text import Text

    found = Text(cell.text, style=_STYLES[cell.tone])
    if cell.detail:
        # Four columns of differences stand side by side, for which "no significant difference" is too wide.
        detail = cell.detail.replace("significant ", "significant\n")
        found.append("\n" + detail, style="" if cell.tone in ("good", "bad") else "dim")
    return found
