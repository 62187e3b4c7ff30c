"""Prints tables of yes-or-no scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keepsight.reports.number_format import percent, points

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from keepsight.eval.answer_shapes import Form
    from keepsight.eval.chair.report import Interval
    from keepsight.eval.pope.compare_parsers import ParserRow
    from keepsight.eval.pope.pairing import Joined
    from keepsight.eval.pope.repope import Changes
    from keepsight.eval.pope.score import MeanReport, YesNoReport

_RATES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_HEADINGS = ("accuracy", "precision", "recall", "F1", "says yes")
UNREAD_SHOWN = 3


REPOPE = "RePOPE"
"""What stands at the line with the figures by RePOPE's labels."""


def show_score(
    console: Console,
    reports: Mapping[str, YesNoReport],
    over_splits: MeanReport,
    joined: Joined,
    corrected: Mapping[str, YesNoReport] | None = None,
) -> None:
    """Print figures and intervals for each split, their mean, and what could not be scored.

    Args:
        console: where to print.
        reports: the score of each split.
        over_splits: their mean.
        joined: the answers.
        corrected: the score of each split by RePOPE's labels, printed below that by POPE's.
    """
    from keepsight.eval.pope.score import mean

    some = next(iter(reports.values()))
    table = plain_table("", *_HEADINGS, "n", "unparsed")
    lines: list[tuple[str, YesNoReport | MeanReport, int]] = []
    for split, of_split in reports.items():
        lines.append((split, of_split, of_split.counts.unparsed))
        if corrected:
            lines.append((REPOPE, corrected[split], corrected[split].counts.unparsed))
    if len(reports) > 1:
        lines.append(("mean", over_splits, over_splits.unparsed))
        if corrected:
            other = mean(corrected)
            lines.append((REPOPE, other, other.unparsed))
    for name, report, unparsed in lines:
        cells = [with_interval(getattr(report, rate), report.ci[rate]) for rate in _RATES]
        # The line by RePOPE's labels belongs to the one above it.
        heading = f"  [dim]{name}[/dim]" if name is REPOPE else f"[bold]{safe(name)}[/bold]"
        table.add_row(heading, *cells, str(report.n), str(unparsed))
    console.print(f"[bold]POPE[/bold], parser {some.parser}, {_many(over_splits.n, 'answer')}")
    console.print(table)
    unit = "pictures" if joined.pictures_known else "questions"
    brackets = f", with 95 % bootstrap intervals over {unit}" if some.resamples else ""
    console.print(f"In %{brackets}. An answer that could not be read counts as wrong.", style="dim")
    if some.resamples and not joined.pictures_known:
        console.print(
            "The file does not name every picture, so that questions about one picture are drawn apart and the intervals are"
            " too narrow; --questions, or --image-key, gives the pictures.",
            style="yellow",
            soft_wrap=True,
        )
    _show_unread(console, reports)
    for kind, what in (("failed", "could not be answered by the model"), ("missing", "no answer")):
        number = sum(getattr(joined, kind).values())
        if number:
            be, have = ("was", "has") if number == 1 else ("were", "have")
            said = f"{have} {what}" if kind == "missing" else what
            console.print(f"{_many(number, 'question')} {said} and {be} not scored.", style="yellow")


def show_forms(console: Console, files: Sequence[Form], matched: str = "", what: str = "") -> None:
    """Print a line for each form in which files were read: the files, the form and the keys.

    Args:
        console: where to print.
        files: the files with their forms.
        matched: what the answers were matched by, a key of ``_MATCHED``; another value adds nothing to the line.
        what: what the files are, such as "baseline", if they are not the answers themselves.
    """
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.words(), []).append(file.path.name)
    how = _MATCHED.get(matched, "")
    for form, of_form in names.items():
        console.print(
            f"Read {what}{safe(', '.join(of_form))} as {safe(form)}{how}.", style="dim", soft_wrap=True
        )


_MATCHED = {
    "id alone": "; matched to the questions by their ids alone, since no line repeats its question or names its picture",
    "order": "; matched to the questions by order, checked by the question in each line",
    "picture": "; matched to the questions by picture and text",
}


def warn_of_labels(console: Console, repeats: bool) -> None:
    """Print a warning if every answer is the word of its label."""
    if repeats:
        console.print(
            "Every answer is its label, word for word. If the key that was read holds the labels, name that of the model's"
            " answers with --answer-key.",
            style="yellow",
            soft_wrap=True,
        )


def show_changes(console: Console, changes: Mapping[str, Changes]) -> None:
    """Print what RePOPE makes of the questions of each split."""
    for split, change in changes.items():
        console.print(
            f"RePOPE labels {change.kept} of {_many(change.questions, 'question')} of {safe(split)}:"
            f" {change.yes_to_no} changed from yes to no, {change.no_to_yes} from no to yes,"
            f" {change.questions - change.kept} left out.",
            style="dim",
            soft_wrap=True,
        )


def _show_unread(console: Console, reports: Mapping[str, YesNoReport]) -> None:
    """Print the first answers that could not be read as yes or no."""
    from rich.text import Text

    unread = [
        (split, reply)
        for split, report in reports.items()
        for reply in report.replies
        if reply.decision is None
    ]
    if not unread:
        return
    cut = f", the first {UNREAD_SHOWN}" if len(unread) > UNREAD_SHOWN else ""
    console.print(f"{_many(len(unread), 'answer')} could not be read{cut}:", style="yellow")
    for split, reply in unread[:UNREAD_SHOWN]:
        # Control characters in an answer must not reach the terminal, so it is printed as Python writes it.
        shown = repr(reply.answer if len(reply.answer) <= 80 else reply.answer[:79] + "…")
        console.print(Text(f"  {_printable(f'{split} {reply.question_id}')}: {shown}"), soft_wrap=True)


def show_parsers(console: Console, rows: Sequence[ParserRow], splits: int) -> None:
    """Print the figures that every parser gives for the same answers."""
    table = plain_table("parser", "accuracy", "F1", "says yes", "unparsed", "≠ strict")
    for row in rows:
        table.add_row(
            f"[bold]{row.parser}[/bold]",
            percent(row.accuracy),
            percent(row.f1),
            percent(row.yes_ratio),
            str(row.unparsed),
            str(row.differs) if row.parser != "strict" else "",
        )
    over = f", mean over {splits} splits" if splits > 1 else ""
    console.print(f"\nThe same {_many(rows[0].n, 'answer')} read by every rule{over}, in %:")
    console.print(table)


def show_differences(console: Console, changes: Sequence[Mapping[str, Any]]) -> None:
    """Print each figure's paired difference to the baseline."""
    table = plain_table("", "change", "95 %")
    for heading, change in zip(_HEADINGS, changes, strict=True):
        bounds = change["ci"]
        between = "" if bounds is None else f"[dim]{points(bounds[0])} to {points(bounds[1])}[/dim]"
        table.add_row(f"[bold]{heading}[/bold]", points(change["value"]), between)
    questions = _many(changes[0]["n"], "question")
    console.print(f"\nMinus the baseline, in points, paired over the {questions} that both answered:")
    console.print(table)


def plain_table(*headings: str) -> Table:
    """A table without lines, with figures to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left", no_wrap=True)
    return table


def with_interval(value: float | None, bounds: Interval | None, scale: float = 100) -> str:
    """A figure times ``scale``, and its interval below it."""
    text = "–" if value is None else f"{scale * value:.1f}"
    return text if bounds is None else f"{text}\n[dim]{scale * bounds[0]:.1f}–{scale * bounds[1]:.1f}[/dim]"


def _many(number: int, what: str) -> str:
    """A number with its noun."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def safe(name: str) -> str:
    """A name from a file, without what a terminal or rich would take for a command."""
    from rich.markup import escape

    return escape(_printable(name))


def _printable(name: str) -> str:
    """A name in which characters that cannot be printed are replaced."""
    return "".join(char if char.isprintable() else "�" for char in name)
