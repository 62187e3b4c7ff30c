"""``keepsight amber``: scores responses to AMBER's prompts, descriptions and answers alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import AnswerKey, BootstrapSeed, ImageKey, JsonFile, Resamples, command_group

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.eval.amber.score import AmberReport, Part
    from keepsight.eval.chair.report import Interval

app = command_group()

SHOWN = 3


@app.callback()
def amber(context: typer.Context) -> None:
    """Score responses to AMBER's prompts: descriptions that may invent objects, and answers to yes-or-no questions."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def score(
    responses: Annotated[
        Path,
        typer.Argument(
            metavar="RESPONSES",
            help='Responses: a JSON list, or JSON lines, of {"id": 1, "response": "…"}, as AMBER\'s script reads them. Ids '
            "1 to 1004 are descriptions, the others answers; score either or both. What "
            "[bold]keepsight caption --json[/bold] writes about pictures called AMBER_1.jpg is read, too, and so are VDGD's "
            "descriptions. The output says how the file was read.",
        ),
    ],
    annotations: Annotated[Path, typer.Option(metavar="FILE", help="AMBER's annotations.json.")],
    relations: Annotated[Path, typer.Option(metavar="FILE", help="AMBER's relation.json.")],
    safe_words: Annotated[Path, typer.Option("--safe-words", metavar="FILE", help="AMBER's safe_words.txt.")],
    similarity: Annotated[
        str,
        typer.Option(
            help="What makes two words mean the same besides AMBER's own lists: [bold]exact[/bold], which is nothing, or "
            "spacy:en_core_web_lg, as the official script has it, which needs spaCy and that model. Scores of different "
            "similarities must not be compared.",
        ),
    ] = "exact",
    convention: Annotated[
        str,
        typer.Option(
            help="[bold]exact[/bold], or [bold]official[/bold], the figures that the official script prints: 0.001 more in "
            "every denominator, rounded to a tenth of a per cent, answers read as by --parser official.",
        ),
    ] = "exact",
    parser: Annotated[
        str | None,
        typer.Option(
            help="The rule that reads yes or no out of an answer: strict; official, exactly Yes or No; or another that "
            "[bold]keepsight pope score[/bold] knows.",
            show_default="strict",
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="AMBER's query_all.json, which says whose picture a question is about. Without it the intervals of "
            "answers take every question for a picture of its own, and come out too narrow.",
        ),
    ] = None,
    answer_key: AnswerKey = None,
    image_key: ImageKey = None,
    json_file: JsonFile = None,
    resamples: Resamples = 1000,
    seed: BootstrapSeed = 0,
) -> None:
    """Score AMBER: CHAIR, Cover, Hal and Cog of descriptions; accuracy, precision, recall and F1 of answers.

    keepsight amber score responses.json --annotations annotations.json --relations relation.json
    --safe-words safe_words.txt
    """
    from rich.console import Console

    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._yesno_tables import show_forms, warn_of_labels
    from keepsight.eval.amber.files import read_annotations, read_lexicon, read_queries, read_response_file
    from keepsight.eval.amber.score import check_convention, rule
    from keepsight.eval.amber.score import score as judge
    from keepsight.eval.amber.similarity import similarity as named
    from keepsight.eval.answer_shapes import repeat_labels
    from keepsight.files import as_json

    # Whatever can be refused by name is checked before files are read and a language model is loaded.
    check_convention(convention)
    rule(parser, convention)
    alike = named(similarity)
    check_outputs([json_file])
    read = read_response_file(responses, answer_key=answer_key, image_key=image_key)
    report = judge(
        read.responses,
        read_annotations(annotations),
        read_lexicon(relations, safe_words),
        alike,
        convention=convention,
        parser=parser,
        pictures=None if queries is None else read_queries(queries),
        resamples=resamples,
        seed=seed,
    )
    repeats = repeat_labels((one.answer, one.label) for one in report.answered)
    if json_file is not None:
        write(
            json_file,
            as_json(
                {
                    **report.to_json(),
                    "read": [form.to_json() for form in read.forms],
                    "answers_repeat_labels": repeats,
                }
            ),
        )
    if not silent(json_file):
        console = Console(highlight=False)
        show_forms(console, read.forms)
        _show(console, report)
        warn_of_labels(console, repeats)


# Each figure's name in the report, its name in print, and its meaning.
_DESCRIBED = (
    ("chair", "CHAIR", "object nouns that are not in the picture"),
    ("cover", "Cover", "annotated objects that are named; better high"),
    ("hal", "Hal", "responses with an object that is not there"),
    ("cog", "Cog", "objects models tend to imagine that are named"),
)


def _show(console: Console, report: AmberReport) -> None:
    """Print the report."""
    console.print(f"[bold]AMBER[/bold], convention {report.convention}, similarity {report.similarity}")
    if report.generative is not None:
        _show_descriptions(console, report.generative, report.total[0])
    if report.discriminative:
        _show_answers(console, report)
    if report.amber_score is not None:
        score = f"{100 * report.amber_score:.1f}{_between(report.amber_score_ci)}"
        console.print(f"\n[bold]AMBER score[/bold]  {score}")
        console.print(
            "(100 − CHAIR + F1) / 2, as papers quote it; not part of the official script. Two things in one number.",
            style="dim",
        )
    notes = "In %"
    if report.resamples:
        drawn = ["pictures"] * (report.generative is not None or report.unit == "image")
        if report.discriminative and report.unit == "question":
            drawn.append("questions for answers, which is too narrow: --queries gives the pictures")
        notes += f", with 95 % bootstrap intervals over {', over '.join(drawn)}"
        if report.convention == "official":
            notes += "; intervals are those of the exact convention"
    console.print(f"\n{notes}.", style="dim")
    for number, what in zip(report.failed, ("descriptions", "questions"), strict=True):
        if number:
            console.print(f"The model failed on {number} {what}, which were not scored.", style="yellow")


def _show_descriptions(console: Console, figures: Part, total: int) -> None:
    """Print the figures of descriptions; ``total`` is how many descriptions AMBER asks for."""
    from rich.table import Table

    console.print(f"\nDescriptions, {figures.n} of {total}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "score", "95 %", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, label, gloss in _DESCRIBED:
        value, bounds = figures.values[name], figures.ci[name]
        table.add_row(
            f"[bold]{label}[/bold]",
            "–" if value is None else f"{100 * value:.1f}",
            "" if bounds is None else f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}",
            f"[dim]{gloss}[/dim]",
        )
    console.print(table)


def _show_answers(console: Console, report: AmberReport) -> None:
    """Print the figures of answers, and the first answers that could not be read."""
    from rich.text import Text

    from keepsight.cli._yesno_tables import plain_table, with_interval

    rows = report.discriminative
    rule = "official (exactly Yes or No)" if report.parser == "official" else report.parser
    console.print(f"\nAnswers, {rows['all'].n} of {report.total[1]}, parser {rule}; no is the positive class")
    table = plain_table("", "accuracy", "precision", "recall", "F1", "n", "unparsed")
    for name, row in rows.items():
        cells = [with_interval(row.values[rate], row.ci[rate]) for rate in row.values]
        table.add_row(f"[bold]{name}[/bold]", *cells, str(row.n), str(row.unparsed))
    console.print(table)
    if "existence" in rows:
        console.print("Every existence question's answer is no: precision says nothing there.", style="dim")
    unread = [one for one in report.answered if one.decision is None]
    if unread:
        console.print(
            f"{len(unread)} of {rows['all'].n} answers could not be read, and count as wrong. The first:",
            style="yellow",
        )
    for one in unread[:SHOWN]:
        # Control characters in an answer must not reach the terminal, so it is printed as Python writes it.
        console.print(Text(f"  {one.id}: {one.answer[:80]!r}"), soft_wrap=True)


def _between(bounds: Interval | None) -> str:
    """An interval in per cent with a space before it; empty for none."""
    return "" if bounds is None else f" [dim]{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}[/dim]"
