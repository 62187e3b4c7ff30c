"""A comparison as tables of texts, which the terminal, Markdown and the page then draw."""

from __future__ import annotations

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
"""Figures that are numbers; all others are rates."""
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
SHOWN: Mapping[str, tuple[str, ...]] = {
    "chair": ("chair_s", "chair_i", "recall", "f1", "length", "mentions"),
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio"),
    "beaf": ("tu", "ig", "sb_plus", "sb_minus", "id", "f1_tu_id"),
}
CHANGED: Mapping[str, tuple[str, ...]] = {
    "chair": ("chair_s", "chair_i", "recall", "length"),
    "pope": ("accuracy", "recall", "f1", "yes_ratio"),
    "beaf": ("tu", "sb_plus", "id", "f1_tu_id"),
}
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
    """A text, a smaller one under it, and whether it is for better or worse."""

    text: str
    detail: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: what it is about, its cells; ``inner`` ones belong to the row above, ``way`` is its colour."""

    name: str
    cells: tuple[Cell, ...]
    inner: bool = False
    way: int = 0


@dataclass(frozen=True)
class Grid:
    """A table."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str


def grids(comparison: Comparison) -> tuple[Grid, ...]:
    """The tables of a comparison: figures, differences (where there is something to compare), cost."""
    found = [_figures(comparison), _differences(comparison), _costs(comparison)]
    return tuple(grid for grid in found if grid.lines)


def title(comparison: Comparison) -> str:
    """What was compared, in a line."""
    manifest = comparison.merged.runs[0].manifest
    bench = manifest["bench"]
    return f"{bench['name']}, {bench.get('source', bench['split'])}, model {manifest.get('model')}"


def facts(comparison: Comparison) -> str:
    """What the figures hang on, in a sentence."""
    asked, images = len(comparison.merged.ids), comparison.images
    what = "originals" if comparison.bench == "beaf" else "pictures"
    drawn = (
        f"{comparison.resamples:,} resamples of the {what}, seed {comparison.seed}"
        if comparison.resamples
        else "no intervals were asked for"
    )
    return f"n = {asked} questions, {images} {what}; {comparison.rule}; {drawn}."


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """What must not be overlooked, a sentence each."""
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
    """How to read the figures."""
    return LEGENDS[comparison.bench]


def splits(comparison: Comparison) -> tuple[str, ...]:
    """POPE's splits where there are several: the prefixes of their figures."""
    names = (name.rpartition(".")[0] for name in comparison.rows[0].figures)
    return tuple(dict.fromkeys(name for name in names if name))


def _figures(comparison: Comparison) -> Grid:
    names = SHOWN[comparison.bench]
    base, parts = comparison.rows[0].method, splits(comparison)
    lines = []
    for way, row in enumerate(comparison.rows):
        cost = row.cost.relative_seconds
        own = tuple(_figure(name, row.figures[name]) for name in names)
        lines.append(Line(row.method, (*own, Cell("–" if cost is None else f"{cost:.2f}×")), way=way))
        for part in parts:
            cells = tuple(_figure(name, row.figures[f"{part}.{name}"]) for name in names)
            lines.append(Line(part, (*cells, Cell("")), inner=True, way=way))
        if row.control is not None:
            cells = tuple(_figure(name, row.control.figures[name]) for name in names)
            lines.append(Line(f"{base} cut", (*cells, Cell("")), inner=True, way=way))
    control = (
        f" {base} cut: {base}, each caption cut to as many mentions as the method made; a method has to beat it."
        if any(row.control for row in comparison.rows)
        else ""
    )
    return Grid(
        "Figures",
        (*(LABELS[name] for name in names), "cost"),
        tuple(lines),
        f"Rates in %, with 95 % intervals. {legend(comparison)} cost: seconds of an answer over {base}'s in the same run."
        f"{control}",
    )


def _differences(comparison: Comparison) -> Grid:
    names = CHANGED[comparison.bench]
    base, parts = comparison.rows[0].method, splits(comparison)
    lines = []
    for way, row in enumerate(comparison.rows):
        if row.differences is None:
            continue
        lines.append(Line(row.method, tuple(_change(row.differences[name]) for name in names), way=way))
        for part in parts:
            cells = tuple(_change(row.differences[f"{part}.{name}"]) for name in names)
            lines.append(Line(part, cells, inner=True, way=way))
        if row.control is not None:
            cells = tuple(_change(row.control.differences[name]) for name in names)
            lines.append(Line(f"to {base} cut", cells, inner=True, way=way))
    words = " (words in words)" if "length" in names else ""
    return Grid(
        f"Difference to {base}",
        tuple(LABELS[name] for name in names),
        tuple(lines),
        f"In points{words}, paired over the same pictures, with 95 % intervals. {MANY}",
    )


def _costs(comparison: Comparison) -> Grid:
    base = comparison.rows[0].method
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
    return Grid(
        "Answers and cost",
        headings,
        tuple(Line(row.method, tuple(_cost(row, reads)), way=way) for way, row in enumerate(comparison.rows)),
        f"×: over {base} in the same run, on the questions that both answered.",
    )


def _cost(row: Row, reads: bool) -> Iterator[Cell]:
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
    if name in COUNTED:
        return Cell("–" if figure.value is None else f"{figure.value:.1f}")
    low, high = figure.ci or (None, None)
    return Cell(percent(figure.value), "" if low is None else f"{percent(low)}–{percent(high)}")


def _change(change: Difference) -> Cell:
    counted = change.metric in COUNTED
    shown = Difference(
        change.metric,
        *(None if one is None else one / 100 for one in (change.value, change.low, change.high)),
    )
    text = f"{points((shown if counted else change).value)} {_bounds(shown if counted else change)}".strip()
    if change.value is None or change.low is None:
        return Cell(text)
    good = better(change)
    if verdict(change) == NO_DIFFERENCE:
        return Cell(text, NO_DIFFERENCE, "dim")
    if good is None or change.metric.rpartition(".")[2] in NEITHER:
        return Cell(text, verdict(change))
    return Cell(text, "better" if good else "worse", "good" if good else "bad")


def _bounds(change: Difference) -> str:
    return "" if change.low is None else f"[{points(change.low)}, {points(change.high)}]"


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown: headings, tables, remarks."""
    parts = [f"**{_escaped(title(comparison))}**\n\n{_escaped(facts(comparison))}\n"]
    if found := remarks(comparison):
        parts.append("".join(f"- **!** {_escaped(one)}\n" for one in found))
    for grid in grids(comparison):
        head = f"| {grid.title} | " + " | ".join(grid.headings) + " |\n"
        rule = "|---|" + "---:|" * len(grid.headings) + "\n"
        lines = "".join(
            f"| {'&emsp;' + _escaped(line.name) if line.inner else _code(line.name)} | "
            + " | ".join(_flat(cell) for cell in line.cells)
            + " |\n"
            for line in grid.lines
        )
        parts.append(f"{head}{rule}{lines}\n{_escaped(grid.note)}\n")
    return "\n".join(parts)


def _flat(cell: Cell) -> str:
    return _escaped(cell.text) + (f"<br>{_escaped(cell.detail)}" if cell.detail else "")


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    for mark in "\\|*_<`":
        text = text.replace(mark, "\\" + mark)
    return text


def wrapped(spec: str, width: int) -> Sequence[str]:
    """A spec in lines: broken after a colon or comma, or before a method's name, where it is too long."""
    lines: list[str] = []
    for method in spec.split(" "):
        name, colon, settings = method.partition(":")
        lines.append(name + colon if len(method) > width else method)
        if len(method) <= width:
            continue
        line = ""
        for part in settings.split(","):
            if line and len(line) + 1 + len(part) > width:
                lines.append(line + ",")
                line = ""
            line += ("," if line else "") + part
        lines.append(line)
    return lines
