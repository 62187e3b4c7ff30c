"""``keepsight beaf``: scores answers to the same questions before and after an object is taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import (
    AnswerKey,
    BootstrapSeed,
    JsonFile,
    Partial,
    RecordedMethod,
    Resamples,
    command_group,
)

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.eval.beaf.score import BeafReport

app = command_group()

SHOWN = 3


@app.callback()
def beaf(context: typer.Context) -> None:
    """Score answers to BEAF's questions, which ask whether a model notices that an object is gone from a picture."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def score(
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help='Answers: a JSON list, or JSON lines, of {"id": 7, "answer": "No."}, as BEAF\'s script reads them, or '
            "answers.jsonl of a run.",
        ),
    ],
    questions: Annotated[
        Path,
        typer.Option(
            "--questions",
            "-q",
            metavar="FILE",
            help="Questions with their right answers: BEAF's beaf_qna.json, or items.jsonl of a run.",
        ),
    ],
    parser: Annotated[
        str,
        typer.Option(
            help="The rule that reads yes or no out of an answer: [bold]strict[/bold], which counts what it cannot read, "
            "or [bold]official[/bold], that of BEAF's script, which takes such an answer for the one before it. Also "
            "opera, vcd, lmms_eval, vlmevalkit, mme.",
        ),
    ] = "strict",
    answer_key: AnswerKey = None,
    method: RecordedMethod = None,
    partial: Partial = False,
    json_file: JsonFile = None,
    resamples: Resamples = 1000,
    seed: BootstrapSeed = 0,
) -> None:
    """Score answers to BEAF's questions: TU, IG, SB+, SB−, ID, and accuracy, precision, recall, F1.

    keepsight beaf score answers.json --questions beaf_qna.json
    """
    from rich.console import Console

    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import one_recorded
    from keepsight.cli._yesno_tables import show_forms, warn_of_labels
    from keepsight.eval.answer_shapes import repeat_labels
    from keepsight.eval.beaf.files import match, read_questions
    from keepsight.eval.beaf.score import rule
    from keepsight.eval.beaf.score import score as judge
    from keepsight.eval.pope.files import read_answer_file
    from keepsight.files import as_json

    rule(parser)
    wanted = one_recorded(method, "beaf score")
    check_outputs([json_file])
    asked = read_questions(questions)
    read = read_answer_file(answers, method=wanted, answer_key=answer_key)
    said = match(asked, read.said, source=str(answers), partial=partial)
    report = judge(asked, said, parser, resamples=resamples, seed=seed)
    repeats = repeat_labels((reply.answer, reply.label) for reply in report.replies)
    if json_file is not None:
        entries = [
            {
                "id": reply.question_id,
                "original": reply.image,
                "label": reply.label,
                "answer": reply.answer,
                "decision": reply.decision,
            }
            for reply in report.replies
        ]
        write(
            json_file,
            as_json(
                {
                    **report.to_json(),
                    "read": [read.to_json()],
                    "answers_repeat_labels": repeats,
                    "answers": entries,
                }
            ),
        )
    if not silent(json_file):
        console = Console(highlight=False)
        show_forms(console, [read])
        _show(console, report)
        warn_of_labels(console, repeats)


# Each figure's name in the report, its name in print, and its meaning.
_FIGURES = (
    ("tu", "TU", "removed pairs: yes, then no; seen"),
    ("ig", "IG", "removed pairs: no, then yes"),
    ("sb_plus", "SB+", "removed pairs: yes, then yes; hallucinated"),
    ("sb_minus", "SB−", "removed pairs: no, then no"),
    ("unread", "unread", "removed pairs: one answer unreadable"),
    ("id", "ID", "other pairs: right once, wrong once"),
    ("f1_tu_id", "F1(TU,ID)", "harmonic mean of TU and 100 − ID"),
    ("accuracy", "accuracy", "all questions"),
    ("precision", "precision", "of yes"),
    ("recall", "recall", "of yes"),
    ("f1", "F1", "of yes"),
)


def _show(console: Console, report: BeafReport) -> None:
    """Print the report."""
    from rich.table import Table

    console.print(
        f"[bold]BEAF[/bold], parser {_name(report.parser)}, {_many(report.n, 'question')},"
        f" {_many(report.images, 'picture')} of {_many(report.originals, 'original')}"
    )
    console.print(f"{_many(report.removed_pairs, 'removed pair')}, {_many(report.other_pairs, 'other pair')}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("")
    for name, label, gloss in _FIGURES:
        value, bounds = report.values[name], report.ci[name]
        table.add_row(
            f"[bold]{label}[/bold]",
            "–" if value is None else f"{100 * value:.2f}",
            "" if bounds is None else f"{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}",
            f"[dim]{gloss}[/dim]",
        )
    console.print(table)
    if report.resamples:
        console.print(
            "In %, with bootstrap intervals: originals are drawn, with all their edits.", style="dim"
        )
    _show_unread(console, report)
    for number, what in ((report.failed, "failed on"), (report.missing, "has no answer to")):
        if number:
            console.print(
                f"The model {what} {number} of {report.n + report.failed + report.missing} questions, which were not"
                " scored.",
                style="yellow",
            )
    if report.dropped_pairs:
        console.print(
            f"{_many(report.dropped_pairs, 'pair')} without one of the answers: left out.", style="yellow"
        )


def _many(number: int, what: str) -> str:
    """A number with its noun."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _name(parser: str) -> str:
    """The parser as the command's help calls it."""
    return "official (that of BEAF's script)" if parser == "beaf" else parser


def _show_unread(console: Console, report: BeafReport) -> None:
    """Print the first answers that could not be read as yes or no."""
    from rich.text import Text

    unread = [reply for reply in report.replies if reply.decision is None]
    if not unread:
        return
    console.print(
        f"{len(unread)} of {report.n} answers could not be read, and count as wrong. The first:",
        style="yellow",
    )
    for reply in unread[:SHOWN]:
        # Control characters in an answer must not reach the terminal, so it is printed as Python writes it.
        shown = repr(reply.answer if len(reply.answer) <= 80 else reply.answer[:79] + "…")
        console.print(Text(f"  {reply.question_id}: {shown}"), soft_wrap=True)
