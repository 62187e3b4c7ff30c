"""``keepsight compare``: compares the methods of one or several runs, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import (
    Annotations,
    BootstrapSeed,
    GroundTruth,
    HtmlFile,
    JsonFile,
    MarkdownFile,
    Parser,
    References,
    Resamples,
    RunFamily,
)


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Folders that [bold]keepsight run[/bold] made, of one benchmark, one model and one prompt, in any order.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The recorded method that the others are compared with, such as greedy.",
            show_default="the plain model of the runs",
        ),
    ] = None,
    parser: Parser = "strict",
    family: RunFamily = None,
    annotations: Annotations = None,
    references: References = None,
    ground_truth: GroundTruth = None,
    tuning: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder of [bold]keepsight tune[/bold] in which settings were chosen that are compared here. The"
            " comparison is refused if both used the same questions or pictures.",
        ),
    ] = None,
    allow_tuned: Annotated[
        bool,
        typer.Option(
            "--allow-tuned",
            help="Show the figures, under a warning, although settings were chosen on these very questions.",
        ),
    ] = False,
    resamples: Resamples = 10_000,
    seed: BootstrapSeed = 0,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Lay methods side by side: figures with 95 % intervals, paired differences to the baseline, and cost.

        keepsight run demo --bench chair --method vcd --method m3id --out runs/chair

        keepsight compare runs/chair --html compare.html

    All methods are judged on the questions that every one of them answered. A difference whose interval holds zero is no
    significant difference. On chair, each method also has to beat the baseline cut to as many mentions, since a caption
    that says less invents less. The options on what is in the pictures are for runs that do not know it themselves.
    """
    from rich.console import Console

    from keepsight.cli._compare_tables import show
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.experiments.compare import compare as measure
    from keepsight.experiments.scores import Scorer
    from keepsight.experiments.store import open_run
    from keepsight.files import as_json
    from keepsight.reports.compare_page import page
    from keepsight.reports.compare_tables import markdown

    outputs = (json_file, markdown_file, html_file)
    check_outputs(outputs)
    runs = [open_run(folder) for folder in folders]
    scorer = Scorer(family=family, parser=parser)
    if sources := [*(annotations or ()), *(references or ()), *(ground_truth or ())]:
        from keepsight.eval.annotations import load_truth

        # COCO's files know tens of thousands of pictures, of which only those of the runs are needed.
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
    if not silent(*outputs):
        show(Console(highlight=False), found)
    # Each text is made before the first is written, so that a fault in one leaves no half of the results.
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
