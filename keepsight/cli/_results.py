"""A comparison in the terminal: a few captions with unsupported words marked, and the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keepsight.cli._console import mark
from keepsight.reports.number_format import _number, percent, points

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from keepsight.experiments.demo_comparison import Comparison

INTERVALS = "with 95 % bootstrap intervals"
LEGEND = (
    "CHAIR_s: captions that invent an object. CHAIR_i: mentions that are invented. recall: objects that are named."
    " cost: time to generate, measured in this run on this machine."
)
CONTROL = (
    "greedy cut: greedy, each caption cut to as many mentions as the method made; a method has to beat it."
)
_RATES = ("chair_s", "chair_i", "recall")


def show(console: Console, comparison: Comparison, *, examples: int = 3) -> None:
    """Print ``examples`` pictures' captions, the table, the paired differences and how to read them."""
    from rich.table import Table
    from rich.text import Text

    from keepsight.demo.splits import SPLITS

    result = comparison.to_json()
    colour = console.color_system is not None

    def say(line: str = "", style: str = "") -> None:
        console.print(Text.from_ansi(line), style=style)

    say(f"{comparison.split}: {SPLITS[comparison.split]}")
    picked = differing(comparison, examples)
    if picked:
        marked = "struck words" if colour else "[words in brackets]"
        which = f"The first pictures of {result['n']} on which the captions differ"
        say(f"{which}; {marked} are not in the picture.", "dim")
    names = labels([entry.method for entry in comparison.entries])
    for at in picked:
        scene = comparison.scenes[at]
        say()
        say(f"picture {at + 1}, {scene.context}: {', '.join(scene.names)}", "bold")
        grid = Table.grid(padding=(0, 2))
        for label, entry in zip(names, comparison.entries, strict=True):
            judged = entry.report.captions[at]
            grid.add_row(
                f"  {label}", Text.from_ansi(mark(judged.caption, judged.hallucinated, colour=colour))
            )
        console.print(grid)
    say()
    console.print(figures(result["rows"]))
    say(f"n = {result['n']}, seed {result['seed']}, greedy search. In %, {INTERVALS} over pictures.", "dim")
    say(LEGEND, "dim")
    if len(result["rows"]) > 1:
        say(CONTROL, "dim")
        say()
        console.print(differences(result["rows"]))
        say(f"In points, paired over the same pictures, {INTERVALS}.", "dim")


def differing(comparison: Comparison, most: int) -> list[int]:
    """The first pictures whose captions differ between the ways of decoding, at most so many."""
    texts = zip(
        *([row.caption for row in entry.report.captions] for entry in comparison.entries), strict=True
    )
    return [i for i, said in enumerate(texts) if len(set(said)) > 1][:most]


def labels(specs: Sequence[str]) -> list[str]:
    """Method names where they tell the specs apart, whole specs where they do not."""
    names = [spec.partition(":")[0] for spec in specs]
    return names if len(set(names)) == len(names) else list(specs)


def figures(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table: a line of figures for each way, a line of intervals under it, then its control."""
    table = _table("", "CHAIR_s", "CHAIR_i", "recall", "words", "mentions", "cost")

    def add(name: str, row: Mapping[str, Any], cost: str) -> None:
        rates = (f"{percent(row[rate])}\n[dim]{_interval(row['ci'][rate])}[/dim]" for rate in _RATES)
        table.add_row(name, *rates, _number(row["length"]), _number(row["mentions"]), cost)

    for row in rows:
        add(_two_lines(row["method"]), row, f"{row['cost']:.1f}×")
        if "greedy_cut" in row:
            add("  greedy cut", row["greedy_cut"], "")
    return table


def differences(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each method against greedy and against its control."""
    table = _table("difference", "CHAIR_s", "CHAIR_i", "recall")
    for name, row in zip(labels([row["method"] for row in rows]), rows, strict=True):
        if "difference" in row:
            table.add_row(
                f"[bold]{name}[/bold] to greedy", *(_change(row["difference"][rate]) for rate in _RATES)
            )
            table.add_row(
                "  to greedy cut", *(_change(row["difference_to_greedy_cut"][rate]) for rate in _RATES)
            )
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left", no_wrap=True)
    return table


def _two_lines(spec: str) -> str:
    name, _, settings = spec.partition(":")
    return (
        f"[bold]{name}[/bold]\n[dim]{' '.join(_wrapped(settings, 22))}[/dim]"
        if settings
        else f"[bold]{name}[/bold]"
    )


def _wrapped(settings: str, width: int) -> Iterator[str]:
    line = ""
    for part in settings.split(","):
        if line and len(line) + 1 + len(part) > width:
            yield line + "\n"
            line = ""
        line += ("," if line else "") + part
    yield line


def _change(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci"]
    bounds = "" if low is None else f" [dim]\\[{points(low)}, {points(high)}][/dim]"
    return points(difference["value"]) + bounds


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{percent(bounds[0])}–{percent(bounds[1])}"
