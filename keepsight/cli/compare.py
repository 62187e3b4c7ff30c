"""``keepsight compare``: compares the methods of one or several runs, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TRUTH, _OUT = "What is in the pictures, where the run does not know", "Output"
_STDOUT = " With - it goes to standard output, and nothing else does."


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Folders of [bold]keepsight run[/bold] with one benchmark, one model and one prompt, in any order.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The method that the others are compared with.",
            show_default="the plain model of the runs",
        ),
    ] = None,
    parser: Annotated[
        str,
        typer.Option(
            help="pope, beaf: the rule that reads yes or no out of an answer: strict, official, opera, vcd, lmms_eval,"
            " vlmevalkit, mme or beaf."
        ),
    ] = "strict",
    family: Annotated[
        str | None,
        typer.Option(
            help="chair: the rules that find objects in captions, pattern or wordnet.",
            show_default="that of the run, else pattern",
        ),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="COCO instances, as [bold]keepsight chair[/bold] reads them.",
            rich_help_panel=_TRUTH,
        ),
    ] = None,
    references: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="COCO captions.", rich_help_panel=_TRUTH)
    ] = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--ground-truth",
            metavar="FILE",
            help='JSON lines of {"image_id": 42, "objects": ["cat"]}.',
            rich_help_panel=_TRUTH,
        ),
    ] = None,
    tuning: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder of [bold]keepsight tune[/bold] in which settings of these methods were chosen. The comparison is"
            " refused if the two share questions or pictures.",
        ),
    ] = None,
    allow_tuned: Annotated[
        bool,
        typer.Option(
            "--allow-tuned",
            help="Show the figures, under a warning, although settings were chosen on these very questions.",
        ),
    ] = False,
    resamples: Annotated[
        int,
        typer.Option(
            min=0, help="Bootstrap resamples of the pictures for the intervals; 0 for no intervals."
        ),
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write everything as JSON to this file." + _STDOUT,
            rich_help_panel=_OUT,
        ),
    ] = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Write the tables as Markdown to this file." + _STDOUT,
            rich_help_panel=_OUT,
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with the tables and plots to this file. The page needs no other file.",
            rich_help_panel=_OUT,
        ),
    ] = None,
) -> None:
    """Compare methods: figures with 95 % intervals, paired differences to the baseline, and cost.

    All methods are judged on the questions that every one of them answered. A difference whose
    interval holds zero is no significant difference. For CHAIR, each method also has to beat the
    baseline cut to as many mentions, since a method that says less makes up less.

        keepsight run --bench chair --method vcd --method m3id --out runs/chair

        keepsight compare runs/chair --html compare.html
    """
    from rich.console import Console

    from keepsight.cli._compare_tables import show
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.experiments.compare import compare as measure
    from keepsight.experiments.scores import Ruler
    from keepsight.experiments.store import open_run
    from keepsight.files import as_json
    from keepsight.reports.compare_page import page
    from keepsight.reports.compare_tables import markdown

    outputs = (json_file, markdown_file, html_file)
    check_outputs(outputs)
    runs = [open_run(folder) for folder in folders]
    ruler = Ruler(family=family, parser=parser)
    if sources := [*(annotations or ()), *(references or ()), *(ground_truth or ())]:
        from keepsight.eval.annotations import load_truth

        asked = dict.fromkeys(item.image_id for run in runs for item in run.items)
        ruler = Ruler(family=family, parser=parser, truth=load_truth(sources, asked, family or "pattern"))
    found = measure(
        runs,
        baseline=baseline,
        ruler=ruler,
        resamples=resamples,
        seed=seed,
        tunings=[open_run(folder) for folder in tuning or ()],
        allow_tuned=allow_tuned,
    )
    if not silent(*outputs):
        show(Console(highlight=False), found)
    # Each text is made before the first is written, so that a fault in one leaves no half of the results
    texts = [
        (json_file, as_json(found.to_json()) if json_file is not None else ""),
        (markdown_file, markdown(found) if markdown_file is not None else ""),
        (html_file, page(found) if html_file is not None else ""),
    ]
    for file, text in texts:
        if file is not None:
            write(file, text)
            if not silent(*outputs):
                print(f"wrote {file}")
