"""``keepsight compare``: the methods of one or several runs side by side, with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TRUTH, _OUT = "What is in the pictures, where the run does not know", "Output"


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Folders of [bold]keepsight run[/bold]: one bench, one model, one prompt. Their order does not matter.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="What the others are compared with.",
            show_default="the plain model of the runs",
        ),
    ] = None,
    parser: Annotated[
        str,
        typer.Option(
            help="pope, beaf: the rule that reads yes or no: strict, official, opera, vcd, lmms_eval, vlmevalkit, mme,"
            " beaf."
        ),
    ] = "strict",
    family: Annotated[
        str | None,
        typer.Option(help="chair: pattern or wordnet.", show_default="the run's, else pattern"),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="COCO instances, as for keepsight chair.", rich_help_panel=_TRUTH),
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
            help="A folder of [bold]keepsight tune[/bold] that chose settings compared here: refused if it used the same"
            " questions or pictures.",
        ),
    ] = None,
    allow_tuned: Annotated[
        bool,
        typer.Option(
            "--allow-tuned",
            help="Show figures although settings were chosen on these very questions, and say so.",
        ),
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples of the pictures; 0 for no intervals.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures.", rich_help_panel=_OUT),
    ] = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option(
            "--markdown", metavar="FILE", help="Write the tables as Markdown.", rich_help_panel=_OUT
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with tables and plots; it needs no other file.",
            rich_help_panel=_OUT,
        ),
    ] = None,
) -> None:
    """Lay methods side by side: figures with 95 % intervals, paired differences to the baseline, cost.

    All methods are judged on the questions that every one of them answered. A difference whose
    interval holds zero is no significant difference. For CHAIR, each method also has to beat the
    baseline cut to as many mentions, since who says less makes up less.

        keepsight run --bench chair --method vcd --method m3id --out runs/chair

        keepsight compare runs/chair --html compare.html
    """
    from rich.console import Console

    from keepsight.cli._compare_tables import show
    from keepsight.experiments.compare import compare as measure
    from keepsight.experiments.scores import Scorer
    from keepsight.experiments.store import open_run
    from keepsight.files import as_json, check_writable, write_whole
    from keepsight.reports.compare_page import page
    from keepsight.reports.compare_tables import markdown

    for file in (json_file, markdown_file, html_file):
        if file is not None:
            check_writable(file)
    runs = [open_run(folder) for folder in folders]
    scorer = Scorer(family=family, parser=parser)
    if sources := [*(annotations or ()), *(references or ()), *(ground_truth or ())]:
        from keepsight.eval.annotations import load_truth

        asked = dict.fromkeys(item.image_id for run in runs for item in run.items)
        scorer = Scorer(family=family, parser=parser, truth=load_truth(sources, asked, family or "pattern"))
    found = measure(
        runs,
        baseline=baseline,
        scorer=scorer,
        resamples=resamples,
        seed=seed,
        tunings=[open_run(folder) for folder in tuning or ()],
        allow_tuned=allow_tuned,
    )
    written: list[tuple[Path, str]] = []
    if json_file is not None:
        written.append((json_file, as_json(found.to_json())))
    if markdown_file is not None:
        written.append((markdown_file, markdown(found)))
    if html_file is not None:
        written.append((html_file, page(found)))
    show(Console(highlight=False), found)
    for file, text in written:
        write_whole(file, text)
        print(f"wrote {file}")
