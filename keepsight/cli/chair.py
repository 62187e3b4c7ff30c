"""``keepsight chair``: scores a file of captions against what is in the pictures, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import (
    Annotations,
    BootstrapSeed,
    Family,
    GroundTruth,
    HtmlFile,
    ImageKey,
    JsonFile,
    RecordedMethod,
    References,
    Resamples,
    Synonyms,
)

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.eval.chair.report import PerCaption, Report

WORST = 3
"""How many captions with hallucinations are printed by default."""
LETTERS = 4000
"""How many letters of a caption are printed."""


def chair(
    captions: Annotated[
        Path,
        typer.Argument(
            metavar="CAPTIONS",
            help='Captions to score: JSON lines, or one JSON list, of {"image_id": 42, "caption": "…"}. What '
            "[bold]keepsight caption --json[/bold] writes and [bold]keepsight run[/bold] keeps is read, and so are COCO "
            "results, POPE's caption_data, the official CHAIR script's output, and lmms-eval's and VLMEvalKit's files. An "
            "image id may be a number or a COCO file name, such as 000000000042.jpg. The output says how the file was read.",
        ),
    ],
    annotations: Annotations = None,
    references: References = None,
    ground_truth: GroundTruth = None,
    family: Family = "pattern",
    synonyms: Synonyms = None,
    caption_key: Annotated[
        str | None,
        typer.Option(
            "--caption-key",
            metavar="KEY",
            help="The key under which the file holds the captions, where its form is not known.",
            show_default="what the form of the file says",
        ),
    ] = None,
    image_key: ImageKey = None,
    method: RecordedMethod = None,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    per_caption: Annotated[
        bool,
        typer.Option(
            "--per-caption",
            help=f"Print every caption that has a hallucination, not only the {WORST} with the most.",
        ),
    ] = False,
    resamples: Resamples = 1000,
    seed: BootstrapSeed = 0,
) -> None:
    """Score captions with CHAIR: how many of the objects they name are not in the image.

        keepsight chair captions.jsonl --annotations instances_val2014.json --references captions_val2014.json

    The command needs the captions, and what is in the images: COCO's annotations, or a list of objects of your own.
    """
    from rich.console import Console

    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import one_recorded
    from keepsight.cli._yesno_tables import show_forms
    from keepsight.eval.annotations import load_truth
    from keepsight.eval.chair.captions import read_caption_file
    from keepsight.eval.chair.score import COCO, check_family, score
    from keepsight.eval.chair.synonyms import read_vocabulary
    from keepsight.files import as_json, write_whole
    from keepsight.reports.chair_page import page

    check_family(family)
    sources = [*(annotations or ()), *(references or ()), *(ground_truth or ())]
    check_outputs([json_file, html_file], [captions, *sources, *([synonyms] if synonyms else [])])
    read = read_caption_file(
        captions, method=one_recorded(method, "chair"), caption_key=caption_key, image_key=image_key
    )
    said, failed = read.captions, read.failed
    vocabulary = COCO if synonyms is None else read_vocabulary(synonyms, family)
    truth = load_truth(sources, [caption.image_id for caption in said], family, vocabulary=vocabulary)
    report = score(said, truth, family=family, vocabulary=vocabulary, resamples=resamples, seed=seed)
    alone = bool(annotations) and not references and not ground_truth
    # The page is made before the first file is written, so that a fault in it leaves no half of the results.
    html = None if html_file is None else page(report, source=captions.name)
    if json_file is not None:
        write(json_file, as_json({**report.to_json(), "read": [read.to_json()]}))
    if html_file is not None and html is not None:
        write_whole(html_file, html)
    if silent(json_file):
        return
    console = Console(highlight=False)
    show_forms(console, [read])
    _print_figures(console, report)
    if failed:
        console.print(f"{len(failed)} answers of the file failed and are in no figure.", style="dim")
    if alone:
        console.print(
            "Without --references, what only people saw in an image counts as made up.", style="dim"
        )
    _print_captions(console, report, None if per_caption else WORST)


def _print_figures(console: Console, report: Report) -> None:
    """Print the table of figures."""
    from rich.markup import escape
    from rich.table import Table

    from keepsight.reports.chair_page import FIGURES

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("")
    for name, label, scale, gloss in FIGURES:
        value, bounds = getattr(report, name), report.ci[name]
        table.add_row(
            f"[bold]{label}[/bold]",
            "–" if value is None else f"{scale * value:.1f}",
            "" if bounds is None else f"{scale * bounds[0]:.1f}–{scale * bounds[1]:.1f}",
            f"[dim]{gloss}[/dim]",
        )
    captions = "1 caption" if report.n == 1 else f"{report.n} captions"
    own = (
        ""
        if report.vocabulary == "coco"
        else f", vocabulary {report.vocabulary} ({report.vocabulary_sha256[:12]})"
    )
    console.print(f"[bold]CHAIR[/bold], family {report.family}{escape(own)}, {captions}")
    console.print(table)


def _print_captions(console: Console, report: Report, most: int | None) -> None:
    """Print captions with hallucinations: the ``most`` with the most of them, or for None all in the file's order."""
    from rich.markup import escape
    from rich.text import Text

    from keepsight.cli._console import mark

    guilty: list[PerCaption] = [row for row in report.captions if row.hallucinated]
    shown = guilty if most is None else sorted(guilty, key=lambda row: -len(row.hallucinated))[:most]
    if not shown:
        return
    colour = console.color_system is not None
    how = "struck" if colour else "in brackets"
    some = "" if len(shown) == len(guilty) else f"; the {len(shown)} with the most, all with --per-caption"
    console.print(f"\n{len(guilty)} of {report.n} name what is not there ({how}){some}:", style="dim")
    for row in shown:
        named = ", ".join(dict.fromkeys(mention.object for mention in row.hallucinated))
        console.print(f"\n[bold]{escape(str(row.image_id))}[/bold]  {named}")
        shown_part = row.caption[:LETTERS]
        # A word that the cut goes through is not marked.
        marked = [mention for mention in row.hallucinated if mention.span[1] <= LETTERS]
        console.print(Text.from_ansi(mark(shown_part, marked, colour=colour)))
        if more := len(row.caption) - len(shown_part):
            console.print(f"… and {more} more letters", style="dim")
