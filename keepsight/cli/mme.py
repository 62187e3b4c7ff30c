"""``keepsight mme``: scores MME's tasks with two questions for each picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import BootstrapSeed, JsonFile, Resamples, command_group

app = command_group()


@app.callback()
def mme(context: typer.Context) -> None:
    """Score MME's tasks with two questions for each picture: existence, count, position, color."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def score(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="Answers to a task, such as existence.txt: lines of picture, question, right answer and answer, separated "
            "by tabs, two lines for each picture. Several files are summed.",
        ),
    ],
    parser: Annotated[
        str,
        typer.Option(
            help="The rule that reads yes or no out of an answer: [bold]mme[/bold], the official one, or any other that"
            " [bold]keepsight pope score[/bold] knows, such as strict.",
        ),
    ] = "mme",
    json_file: JsonFile = None,
    resamples: Resamples = 1000,
    seed: BootstrapSeed = 0,
) -> None:
    """Score MME's answers: questions right (acc), pictures with both right (acc+), and 100 · (acc + acc+).

    keepsight mme score existence.txt count.txt position.txt color.txt
    """
    from rich.console import Console

    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._yesno_tables import plain_table, safe, with_interval
    from keepsight.eval.answer_shapes import repeat_labels
    from keepsight.eval.mme import BEST, count_unbalanced, read_task, score_task
    from keepsight.eval.pope.answer_parsers import check_parser
    from keepsight.files import as_json

    check_parser(parser)
    check_outputs([json_file])
    reports = [
        score_task(read_task(path), task=path.stem, parser=parser, resamples=resamples, seed=seed)
        for path in files
    ]
    total = sum(report.score for report in reports)
    repeats = repeat_labels((reply.answer, reply.label) for report in reports for reply in report.replies)
    unbalanced = sum(map(count_unbalanced, reports))
    if json_file is not None:
        result = {
            "bench": "mme",
            "parser": parser,
            "score": total,
            "best": BEST * len(reports),
            "tasks": [report.to_json() for report in reports],
            "answers_repeat_labels": repeats,
            "unbalanced_pictures": unbalanced,
            "resamples": resamples,
            "seed": seed,
        }
        write(json_file, as_json(result))
    if silent(json_file):
        return
    console = Console(highlight=False)
    table = plain_table("", "acc", "acc+", "score", "n", "pictures", "unparsed")
    for report in reports:
        table.add_row(
            f"[bold]{safe(report.task)}[/bold]",
            with_interval(report.acc, report.ci["acc"]),
            with_interval(report.acc_plus, report.ci["acc_plus"]),
            with_interval(report.score, report.ci["score"], 1),
            str(report.n),
            str(report.images),
            str(report.unparsed),
        )
    if len(reports) > 1:
        table.add_row("[bold]sum[/bold]", "", "", f"{total:.1f}")
    console.print(f"[bold]MME[/bold], parser {parser}, best {BEST * len(reports)}")
    console.print(table)
    brackets = ", with 95 % bootstrap intervals over pictures" if resamples else ""
    console.print(f"acc and acc+ in %, score = acc + acc+{brackets}.", style="dim")
    if repeats:
        console.print(
            "Every answer is its label, word for word. The third field of a line is the label, the fourth the model's"
            " answer.",
            style="yellow",
            soft_wrap=True,
        )
    if unbalanced:
        console.print(
            f"The labels of {unbalanced} of {sum(report.images for report in reports)} pictures are not one yes and one no,"
            " as MME's are. The third field of a line is the label, the fourth the model's answer.",
            style="yellow",
            soft_wrap=True,
        )
