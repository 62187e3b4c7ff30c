"""Prints text dominance: figures by group of layers, the picture's share token by token, and other readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keepsight.reports.number_format import percent, points, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from keepsight.eval.modality_dominance.score import Masses, Reading
    from keepsight.eval.modality_dominance.summary import Estimate, Summary

BLOCKS = "▁▂▃▄▅▆▇█"
WIDEST = 72
"""The most blocks that a sparkline has."""
HEADINGS = {"mdi": "MDI", "aei_text": "AEI text", "aei_image": "AEI picture", "image_share": "share %"}
LEGEND = (
    "MDI: attention of a token of the text over that of a token of the picture; above 1 the text dominates."
    " AEI: share of the attention over share of the tokens. share: of all attention, what goes to the picture."
)


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """A block for each value, the lowest at ``low`` and the highest at ``high``. Neighbours are averaged where there are
    too many values.

    >>> sparkline([0.1, 0.2, 0.3], 0.1, 0.3)
    '▁▅█'
    """
    # Division rounded up: how many values one block stands for.
    step = -(-len(values) // WIDEST)
    means = [
        sum(values[at : at + step]) / len(values[at : at + step]) for at in range(0, len(values), step or 1)
    ]
    top = len(BLOCKS) - 1
    # Where all values are equal, every block is the lowest.
    spread = high - low
    return "".join(
        BLOCKS[min(max(int(top * (value - low) / spread + 0.5), 0), top) if spread > 0 else 0]
        for value in means
    )


def tell_shares(curves: Sequence[Sequence[float]]) -> list[str]:
    """Each curve as a sparkline, all on one scale, with its smallest and largest share in words."""
    every = [value for curve in curves for value in curve]
    low, high = min(every), max(every)
    return [
        f"{sparkline(curve, low, high)} {percent(min(curve))} to {percent(max(curve))} %" for curve in curves
    ]


def show_figures(
    console: Console, entries: Sequence[tuple[str, Summary]], picked: Mapping[str, Sequence[int]]
) -> None:
    """Print the table of figures: for each alternative, one line for each group of layers.

    Args:
        console: where to print.
        entries: the alternatives with their names.
        picked: the layers of each group.
    """
    table = _table("text dominance", "layers", *HEADINGS.values())
    for name, found in entries:
        table.add_row(f"[bold]{name}[/bold]")
        for group, figures in found.items():
            cells = (_estimate(figures[figure], figure) for figure in HEADINGS)
            table.add_row(f"  {group}", span(picked[group]), *cells)
    console.print(table)


def show_change(console: Console, found: Summary, name: str) -> None:
    """Print the paired differences of an alternative to the plain model."""
    table = _table("change to plain", *HEADINGS.values())
    table.add_row(f"[bold]{name}[/bold]")
    for group, figures in found.items():
        table.add_row(f"  {group}", *(_estimate(figures[figure], figure, signed=True) for figure in HEADINGS))
    console.print(table)


def show_readings(console: Console, found: Mapping[str, Sequence[Summary]]) -> None:
    """Print MDI under every reading, by group of layers; in a cell the alternatives stand one after the other."""
    groups = list(next(iter(found.values()))[0])
    table = _table("MDI if read otherwise", *groups)
    for reading, alternatives in found.items():
        cells = (" → ".join(_plain(one[group]["mdi"].value) for one in alternatives) for group in groups)
        table.add_row(f"  {reading}", *cells)
    console.print(table)


def short(spec: str) -> str:
    """The names of methods that act together, without their settings; ``plain`` if there is none."""
    return "+".join(map(_short_name, spec.split("+"))) or "plain"


def _short_name(spec: str) -> str:
    """The name of one method."""
    name, _, rest = spec.partition(":")
    # Somebody's own class is written package.module:Class, of which the class alone tells enough here.
    return rest.partition(":")[0] if "." in name else name


def tell_reading(reading: Reading, *alternatives: Sequence[Masses]) -> str:
    """The reading of the figures and the mean numbers of tokens, which differ between alternatives if ``own`` counts as
    text."""
    counts = [[one.counts for one in answers] for answers in alternatives]
    text = [
        f"{sum(count[part] for count in some for part in reading.text) / len(some):.1f}" for some in counts
    ]
    picture = sum(count["image"] for count in counts[0]) / len(counts[0])
    told = " → ".join(text if len(set(text)) > 1 else text[:1])
    return f"{reading}. |T| = {told}, |O| = {picture:.1f} tokens. Of a group: mean of its layers' figures."


def span(layers: Sequence[int]) -> str:
    """The layers of a group, such as ``0–5``, or the single layer."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"


def figures_json(found: Summary) -> dict[str, Any]:
    """The figures of each group as the dictionary that JSON output holds."""
    return {
        group: {figure: estimate.to_json() for figure, estimate in figures.items()}
        for group, figures in found.items()
    }


def _estimate(one: Estimate, figure: str, *, signed: bool = False) -> str:
    """A figure with its interval below it, or with its sign if it is a difference."""
    write = (points if signed else percent) if figure == "image_share" else (_change if signed else _plain)
    bounds = "" if one.low is None else f"\n[dim]{write(one.low)} to {write(one.high)}[/dim]"
    return write(one.value) + bounds


def _plain(value: float | None) -> str:
    """A ratio with two decimals, or a dash for None."""
    return "–" if value is None else f"{value:.2f}"


def _change(value: float | None) -> str:
    """A difference of ratios with two decimals and its sign, unless it rounds to zero."""
    return "–" if value is None else signed(value, 2)


def _table(*headings: str) -> Table:
    """A table without lines, with its first column to the left and figures to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left", no_wrap=True)
    return table
