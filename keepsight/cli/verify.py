"""``keepsight verify``: proves on a checkpoint, with this hardware and these versions, what methods do on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepsight.cli._options import CalibrationFile, Device, Dtype, JsonFile, Model, RawPrompt, method_option
from keepsight.cli.caption import PROMPT

if TYPE_CHECKING:
    from keepsight.verification import Finding, Report

LONGER = " Answer in one sentence, and name only what can be seen."
"""What makes the second prompt of the batch longer than the first."""
SCENE = "val:0"
"""The drawn picture that is shown where no other is given."""


def verify(
    model: Model = "demo",
    method: Annotated[list[str] | None, method_option("every method")] = None,
    calibration: CalibrationFile = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Show the model this picture.", show_default="a drawn one"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What is asked about the picture.")] = PROMPT,
    raw_prompt: RawPrompt = False,
    tokens: Annotated[int, typer.Option(help="Tokens that each run writes.", min=2, max=64)] = 4,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Prove on your own checkpoint and hardware that methods do what their formulas say.

    Every method runs, and what it does is computed a second time by slow code that shares nothing with the first:
    scores by passes from scratch, edited layers by full matrices, rows of a padded batch by the rows alone. The table
    says what was compared, and how large the largest difference was. The exit code is 1 if anything is wrong.

    "Within rounding" means at most four times what the plain model's own scores with and without a cache differ by, times
    how much a method multiplies rounding (VCD with a strength of 4 does so ninefold). Weights are never copied.
    """
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import read_alternatives, with_calibration
    from keepsight.cli._model import open_model
    from keepsight.files import as_json
    from keepsight.verification import verify as run

    alternatives = read_alternatives(method) if method else []
    if calibration is not None:
        alternatives = with_calibration(alternatives, calibration)
    check_outputs([json_file], [] if image is None else [image])
    if image is None:
        from keepsight.cli._pictures import read_picture

        picture, _ = read_picture(SCENE)
    else:
        from keepsight.source.images import open_picture

        picture = open_picture(image)
    loaded, processor = open_model(model, device, dtype)
    with showing() as progress:
        report = run(
            loaded,
            processor,
            picture,
            (prompt, prompt + LONGER),
            [recipes for recipes in alternatives if recipes],
            raw=raw_prompt,
            tokens=tokens,
            progress=progress,
        )
    if json_file is not None:
        write(json_file, as_json({"model": model, **report.as_dict()}))
    if not silent(json_file):
        show(model, report)
    if report.wrong:
        raise typer.Exit(1)


@contextmanager
def showing() -> Iterator[Any]:
    """A line on stderr that names the method whose checks are running, where stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("the plain model") as status:
        yield status.update


def show(model: str, report: Report) -> None:
    """Print a report: what was run, the table, and a sentence that sums it up."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    console.print(
        f"[bold]{escape(model)}[/bold]  [dim]{report.model_class}, {report.dtype} on {report.device}, attention"
        f" {report.attention}; {versions}[/dim]"
    )
    console.print(
        f"[dim]{report.tokens} tokens after a prompt of {report.prompt}; the plain model's scores with and without a cache"
        f" differ by {report.rounding:.1e}[/dim]\n"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("compared", "verdict"):
        table.add_column(name)
    for name in ("difference", "rounding"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for found in report.findings:
        if found.method != last:
            table.add_row(f"[bold]{escape(found.method)}[/bold]")
            last = found.method
        table.add_row(f"  {escape(found.compared)}", _verdict(found), *_figures(found))
    console.print(table)
    console.print()
    for found in report.findings:
        if found.reason:
            where = escape(f"{found.method}, {found.compared}")
            console.print(f"{_verdict(found)} {where}: {escape(found.reason)}")
    console.print(f"[bold]{summary(report)}[/bold]")


def _figures(found: Finding) -> tuple[str, str]:
    """The difference of a finding, and what rounding explains of it."""
    return tuple("–" if x is None else f"{x:.1e}" for x in (found.difference, found.allowed))  # type: ignore[return-value]


def _verdict(found: Finding) -> str:
    from keepsight.verification import Verdict

    colour = {
        Verdict.EXACT: "green",
        Verdict.ROUNDING: "green",
        Verdict.REFUSED: "yellow",
        Verdict.WRONG: "bold red",
    }
    return f"[{colour[found.verdict]}]{found.verdict.value}[/]"


def summary(report: Report) -> str:
    """How many comparisons ended how, in a sentence."""
    from keepsight.verification import Verdict

    counts = {verdict: sum(found.verdict is verdict for found in report.findings) for verdict in Verdict}
    whole = len(report.findings)
    text = (
        f"{whole} comparisons: {counts[Verdict.EXACT]} exact, {counts[Verdict.ROUNDING]} within rounding,"
        f" {counts[Verdict.REFUSED]} refused, {counts[Verdict.WRONG]} WRONG."
    )
    proved = (Verdict.EXACT, Verdict.ROUNDING)
    if not any(found.method != "plain" and found.verdict in proved for found in report.findings):
        text += " Nothing was proved of any method."
    if report.wrong:
        text += " Please report this with the file of --json."
    return text
