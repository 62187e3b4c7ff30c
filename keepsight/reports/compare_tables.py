"""The tables of a comparison as texts, which the terminal, Markdown and the HTML page lay out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from keepsight.eval.stats.bootstrap import Difference
from keepsight.experiments.compare import (
    COLLAPSE,
    NEITHER,
    NO_DIFFERENCE,
    Comparison,
    Figure,
    Row,
    better,
    verdict,
)
from keepsight.reports.number_format import percent, points

Tone = Literal["", "good", "bad", "dim"]
COUNTED = frozenset({"length", "mentions"})
"""The figures that are numbers; all others are rates."""
LABELS: Mapping[str, str] = {
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "recall": "recall",
    "f1": "F1",
    "length": "words",
    "mentions": "mentions",
    "accuracy": "accuracy",
    "precision": "precision",
    "yes_ratio": "yes",
    "tu": "TU",
    "ig": "IG",
    "sb_plus": "SB+",
    "sb_minus": "SB−",
    "id": "ID",
    "f1_tu_id": "F1(TU,ID)",
}
"""What tables and plots call each figure."""
SHOWN: Mapping[str, tuple[str, ...]] = {
    "chair": ("chair_s", "chair_i", "recall", "f1", "length", "mentions"),
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio"),
    "beaf": ("tu", "ig", "sb_plus", "sb_minus", "id", "f1_tu_id"),
}
"""The figures in the table of figures, by benchmark; the JSON output holds all figures."""
CHANGED: Mapping[str, tuple[str, ...]] = {
    "chair": ("chair_s", "chair_i", "recall", "length"),
    "pope": ("accuracy", "recall", "f1", "yes_ratio"),
    "beaf": ("tu", "sb_plus", "id", "f1_tu_id"),
}
"""The figures in the table of differences. A difference with its interval is wide, so there are fewer of them."""
LEGENDS: Mapping[str, str] = {
    "chair": "CHAIR_s: captions that invent an object. CHAIR_i: mentions that are invented. recall: objects in the pictures"
    " that are named. F1: of the objects named. words, mentions: of a caption, on average.",
    "pope": "yes: how often the model says yes. An answer that cannot be read is wrong. Under a method stand the splits;"
    " beside it their plain mean.",
    "beaf": "TU: the change was seen. IG: wrong both times. SB+, SB−: stubborn yes (a hallucination), stubborn no. ID:"
    " changed its mind without a reason. TU, F1 are better high, the others low.",
}
MANY = "Each interval is about one difference alone: of many methods that do nothing, one in twenty looks different."


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: the figure.
        detail: a smaller text under it, such as an interval.
        tone: whether it is for better or worse; empty for neither.
    """

    text: str
    detail: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Args:
        name: what the row is about; a method's spec unless the row is ``inner``.
        cells: one for each of the table's headings.
        inner: whether the row belongs to the method in the row above: a split, or the control.
        series: the number of its method in the comparison, 0 for the baseline; it decides the colour.
    """

    name: str
    cells: tuple[Cell, ...]
    inner: bool = False
    series: int = 0


@dataclass(frozen=True)
class Table:
    """A table with its headings, and a note that says how to read it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str


def tables(comparison: Comparison) -> tuple[Table, ...]:
    """The tables of a comparison: figures, differences if there is a method besides the baseline, and cost."""
    found = [_figures(comparison), _differences(comparison), _costs(comparison)]
    return tuple(table for table in found if table.rows)


def title(comparison: Comparison) -> str:
    """What was compared, in one line."""
    manifest = comparison.merged.runs[0].manifest
    bench = manifest["bench"]
    return f"{bench['name']}, {bench.get('source', bench['split'])}, model {manifest.get('model')}"


def facts(comparison: Comparison) -> str:
    """What the figures depend on, in a sentence: how much was asked, how it was judged, and how intervals were drawn."""
    asked, images = len(comparison.merged.ids), comparison.images
    what = "originals" if comparison.bench == "beaf" else "pictures"
    drawn = (
        f"{comparison.resamples:,} resamples of the {what}, seed {comparison.seed}"
        if comparison.resamples
        else "no intervals were asked for"
    )
    return f"n = {asked} questions, {images} {what}; {comparison.rule}; {drawn}."


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """What a reader must not overlook, a sentence each."""
    base = comparison.rows[0].method
    found = [
        f"TUNED ON THESE QUESTIONS: {leak}. These figures flatter it; do not report them."
        for leak in comparison.leaks
    ]
    found += comparison.merged.notes
    total = len(comparison.merged.runs[0].items)
    if left := total - len(comparison.merged.ids):
        found.append(
            f"Questions left out of all figures, since not every method answered them: {left} of {total}."
        )
    for row in comparison.rows:
        if row.counts.failed or row.counts.missing:
            found.append(
                f"{row.method}: answers failed: {row.counts.failed}, missing: {row.counts.missing}; none of them is scored."
            )
        if row.unparsed:
            found.append(f"{row.method}: answers that could not be read as yes or no: {row.unparsed}.")
        if "recall_collapse" in row.warnings and row.differences is not None:
            change = row.differences["recall"]
            found.append(
                f"{row.method}: RECALL COLLAPSE, {points(change.value)} points {_bounds(change)}: it misses what is there"
                f" (more than {100 * COLLAPSE:.0f} points clearly lost)."
            )
        if "says_less" in row.warnings:
            found.append(
                f"{row.method}: invents less than {base}, but not clearly less than {base} cut to as many mentions: it may"
                " merely say less."
            )
    return tuple(found)


def legend(comparison: Comparison) -> str:
    """How to read the figures of the benchmark, in words."""
    return LEGENDS[comparison.bench]


def splits(comparison: Comparison) -> tuple[str, ...]:
    """The splits of POPE, which are the prefixes of their figures; empty where there is only one, or another benchmark."""
    names = (name.rpartition(".")[0] for name in comparison.rows[0].figures)
    return tuple(dict.fromkeys(name for name in names if name))


def _figures(comparison: Comparison) -> Table:
    """The table of figures, with a row for each split and for the control under each method."""
    names = SHOWN[comparison.bench]
    base, parts = comparison.rows[0].method, splits(comparison)
    rows = []
    for series, row in enumerate(comparison.rows):
        cost = row.cost.relative_seconds
        own = tuple(_figure(name, row.figures[name]) for name in names)
        rows.append(
            TableRow(row.method, (*own, Cell("–" if cost is None else f"{cost:.2f}×")), series=series)
        )
        for part in parts:
            cells = tuple(_figure(name, row.figures[f"{part}.{name}"]) for name in names)
            rows.append(TableRow(part, (*cells, Cell("")), inner=True, series=series))
        if row.control is not None:
            cells = tuple(_figure(name, row.control.figures[name]) for name in names)
            rows.append(TableRow(f"{base} cut", (*cells, Cell("")), inner=True, series=series))
    control = (
        f" {base} cut: {base}, each caption cut to as many mentions as the method made; a method has to beat it."
        if any(row.control for row in comparison.rows)
        else ""
    )
    return Table(
        "Figures",
        (*(LABELS[name] for name in names), "cost"),
        tuple(rows),
        f"Rates in %, with 95 % intervals. {legend(comparison)} cost: seconds of an answer over {base}'s in the same run."
        f"{control}",
    )


def _differences(comparison: Comparison) -> Table:
    """The table of differences to the baseline, and of each method to its control."""
    names = CHANGED[comparison.bench]
    base, parts = comparison.rows[0].method, splits(comparison)
    rows = []
    for series, row in enumerate(comparison.rows):
        # The baseline has no differences to itself.
        if row.differences is None:
            continue
        rows.append(
            TableRow(row.method, tuple(_change(row.differences[name]) for name in names), series=series)
        )
        for part in parts:
            cells = tuple(_change(row.differences[f"{part}.{name}"]) for name in names)
            rows.append(TableRow(part, cells, inner=True, series=series))
        if row.control is not None:
            cells = tuple(_change(row.control.differences[name]) for name in names)
            rows.append(TableRow(f"to {base} cut", cells, inner=True, series=series))
    words = " (words in words)" if "length" in names else ""
    return Table(
        f"Difference to {base}",
        tuple(LABELS[name] for name in names),
        tuple(rows),
        f"In points{words}, paired over the same pictures, with 95 % intervals. {MANY}",
    )


def _costs(comparison: Comparison) -> Table:
    """The table of answers, failures and cost."""
    base = comparison.rows[0].method
    # CHAIR reads no yes or no, so nothing can be unread.
    reads = comparison.bench != "chair"
    headings = (
        "answers",
        "failed",
        "missing",
        *(["unread"] if reads else []),
        "s/answer",
        "×",
        "tokens/s",
        "×",
    )
    return Table(
        "Answers and cost",
        headings,
        tuple(
            TableRow(row.method, tuple(_cost(row, reads)), series=series)
            for series, row in enumerate(comparison.rows)
        ),
        f"×: over {base} in the same run, on the questions that both answered.",
    )


def _cost(row: Row, reads: bool) -> Iterator[Cell]:
    """The cells of a row of the table of cost; ``reads`` says whether the benchmark reads yes or no."""
    yield Cell(str(row.counts.answered))
    for count in (row.counts.failed, row.counts.missing):
        yield Cell(str(count), tone="bad" if count else "")
    if reads:
        yield Cell(str(row.unparsed), tone="bad" if row.unparsed else "")
    cost = row.cost
    for value, relative, digits in (
        (cost.seconds, cost.relative_seconds, 3),
        (cost.speed, cost.relative_speed, 0),
    ):
        yield Cell("–" if value is None else f"{value:.{digits}f}")
        yield Cell("–" if relative is None else f"{relative:.2f}×")


def _figure(name: str, figure: Figure) -> Cell:
    """The cell of a figure with its interval."""
    if name in COUNTED:
        return Cell("–" if figure.value is None else f"{figure.value:.1f}")
    low, high = figure.ci or (None, None)
    return Cell(percent(figure.value), "" if low is None else f"{percent(low)}–{percent(high)}")


def _change(change: Difference) -> Cell:
    """The cell of a difference, with the verdict on it."""
    text = difference(change)
    # Without resamples there is no interval, and so no verdict.
    if change.value is None or change.low is None:
        return Cell(text)
    good = better(change)
    if verdict(change) == NO_DIFFERENCE:
        return Cell(text, NO_DIFFERENCE, "dim")
    if good is None or change.metric.rpartition(".")[2] in NEITHER:
        return Cell(text, verdict(change))
    return Cell(text, "better" if good else "worse", "good" if good else "bad")


def difference(change: Difference) -> str:
    """A difference with its interval, in points or, for counts, in their own unit: ``−2.9 [−5.8, +0.1]``."""
    if change.metric in COUNTED:
        # The formatter multiplies by 100 to make points of fractions, and counts are no fractions.
        parts = (None if one is None else one / 100 for one in (change.value, change.low, change.high))
        change = Difference(change.metric, *parts)
    return f"{points(change.value)} {_bounds(change)}".strip()


def _bounds(change: Difference) -> str:
    """The interval of a difference in brackets; empty where there is none."""
    return "" if change.low is None else f"[{points(change.low)}, {points(change.high)}]"


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: a headline, remarks, and the tables."""
    parts = [f"**{_escaped(title(comparison))}**\n\n{_escaped(facts(comparison))}\n"]
    if found := remarks(comparison):
        parts.append("".join(f"- **!** {_escaped(one)}\n" for one in found))
    for table in tables(comparison):
        head = f"| {table.title} | " + " | ".join(table.headings) + " |\n"
        rule = "|---|" + "---:|" * len(table.headings) + "\n"
        rows = "".join(
            # Markdown drops leading spaces in a cell, so rows that belong to a method are indented by an entity.
            f"| {'&emsp;' + _escaped(row.name) if row.inner else _code(row.name)} | "
            + " | ".join(_flat(cell) for cell in row.cells)
            + " |\n"
            for row in table.rows
        )
        parts.append(f"{head}{rule}{rows}\n{_escaped(table.note)}\n")
    return "\n".join(parts)


def _flat(cell: Cell) -> str:
    """A cell as Markdown: its detail goes into a second line of the same cell."""
    return _escaped(cell.text) + (f"<br>{_escaped(cell.detail)}" if cell.detail else "")


def _code(text: str) -> str:
    """A text as code in a cell of a Markdown table, where a bar would end the cell even inside code."""
    return "`" + text.replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    """A text in which no character means anything to Markdown."""
    # The backslash comes first, or it would escape the backslashes of the other marks.
    for mark in "\\|*_<`":
        text = text.replace(mark, "\\" + mark)
    return text


def spec_parts(spec: str) -> list[tuple[str, str]]:
    """The methods of a spec that act together, each as its name and its settings; settings are empty where there are
    none.

    >>> spec_parts("sample+m3id:decay=0.05,gate=0.9")
    [('sample', ''), ('m3id', 'decay=0.05,gate=0.9')]
    """
    found = []
    for part in re.split("[+ ]", spec):
        name, _, settings = part.partition(":")
        if "." in name:
            # Somebody's own class is written package.module:Class, so that its name holds the first colon.
            class_name, _, settings = settings.partition(":")
            name = f"{name}:{class_name}"
        found.append((name, settings))
    return found


def wrapped(spec: str, width: int) -> Sequence[str]:
    """A spec in lines of at most ``width`` characters, broken after a colon or comma, or before a method's name.

    A single setting that is longer than ``width`` stays whole.
    """
    lines: list[str] = []
    for number, (name, settings) in enumerate(spec_parts(spec)):
        joined = ("+" if number else "") + name
        whole = f"{joined}:{settings}" if settings else joined
        if len(whole) <= width or not settings:
            lines.append(whole)
            continue
        lines.append(f"{joined}:")
        line = ""
        for part in settings.split(","):
            if line and len(line) + 1 + len(part) > width:
                lines.append(line + ",")
                line = ""
            line += ("," if line else "") + part
        lines.append(line)
    return lines
