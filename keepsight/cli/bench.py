"""``keepsight bench``: what each method costs over plain ``generate``, on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from keepsight.cli._options import Prompt, RawPrompt
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a Hugging Face id, or [bold]demo[/bold] for the packaged model.",
            show_default="demo",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Instead of MODEL: random weights of a LLaVA's shape, [bold]130m[/bold], [bold]1b[/bold] or"
            " [bold]7b[/bold]; nothing is downloaded, and speed does not depend on the values. demo is MODEL demo.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", metavar="SPEC", help="Give it once for each method.", show_default="every method"
        ),
    ] = None,
    new_tokens: Annotated[
        str, typer.Option(metavar="N,…", help="Tokens to generate, 8 or more; several are all measured.")
    ] = "128",
    batch: Annotated[
        str, typer.Option(metavar="N,…", help="Rows of a batch; several are all measured.")
    ] = "1",
    image_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Visual tokens of a prompt, with --shape; several are all measured.",
            show_default="576",
        ),
    ] = None,
    fused: Annotated[
        str,
        typer.Option(
            help="Second opinions in the main generation's passes: [bold]auto[/bold] measures both where that is"
            " possible, [bold]on[/bold] and [bold]off[/bold] one of them."
        ),
    ] = "auto",
    peer: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="What else to compare with, or none. [bold]naive[/bold]: a full second forward after the first, as"
            " published code does. [bold]cfg[/bold]: guidance_scale of transformers. [bold]eager[/bold]: attention that"
            " returns its weights, as released VAR needs. [bold]static[/bold], [bold]compiled[/bold]: plain, with that"
            " cache.",
        ),
    ] = "naive,cfg,eager",
    cache: Annotated[
        str,
        typer.Option(
            help="Of every generation, plain too: dynamic, static, or compiled (static, with torch.compile)."
        ),
    ] = "dynamic",
    repeats: Annotated[int, typer.Option(help="Pairs of a plain and another generation.")] = 5,
    clock: Annotated[
        str,
        typer.Option(help="wall, or cpu: CPU seconds of the process, for a machine that others use as well."),
    ] = "wall",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's own, else float32.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of torch on the CPU.", show_default="torch's")
    ] = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    memory: Annotated[
        bool,
        typer.Option(help="Peak memory: on the CPU, each row costs a fresh process that loads the model."),
    ] = True,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every figure.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw it, a PNG; several lengths make lines. Needs matplotlib.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what each method costs: prefill, time per token and peak memory over plain generate.

        keepsight bench
        keepsight bench --shape 130m --threads 1 --new-tokens 32 --batch 1,8
        keepsight bench --shape 7b --device cuda --dtype bfloat16 --batch 1,8 --json 7b.json

    Plain and other generations alternate, so that a machine whose speed drifts slows both; the ratio is the median
    over pairs, with the smallest and the largest. Prefill is the time to the first token, the second opinion's included.
    """
    from keepsight.cli._console import progress
    from keepsight.cli._files import check_outputs
    from keepsight.experiments.latency.report import markdown as as_markdown
    from keepsight.experiments.latency.subjects import Source, find_shape
    from keepsight.files import as_json, write_whole
    from keepsight.inference.loading import DEMO, quiet_transformers
    from keepsight.registry import parse
    from keepsight.reports.latency_figure import check_plots, draw

    if model is not None and shape is not None:
        raise InputError("give MODEL or --shape, not both: --shape has random weights of its own")
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"the plot is a PNG: name {plot.with_suffix('.png')} instead of {plot}")
    for spec in method or ():
        parse(spec)
    sizes = None if shape in (None, DEMO) else find_shape(str(shape))
    if sizes is None and image_tokens is not None:
        raise InputError(
            "--image-tokens is for --shape 130m, 1b or 7b: a checkpoint's processor decides by itself"
        )
    counts = {
        "new_tokens": whole("--new-tokens", new_tokens),
        "batch": whole("--batch", batch),
        "image_tokens": whole("--image-tokens", image_tokens or "576"),
    }
    check_outputs([json_out, markdown, plot], [])
    if plot is not None:
        check_plots()

    from keepsight.experiments.latency.run import Settings, check, run
    from keepsight.experiments.latency.variants import METHODS

    settings = Settings(
        **counts, repeats=repeats, fused=fused, cache=cache, clock=clock, memory=memory, threads=threads,
        peers=() if peer == "none" else tuple(part.strip() for part in peer.split(",")),
    )  # fmt: skip
    source = Source(
        model=None if sizes else model or DEMO,
        shape=sizes,
        device=device,
        dtype=dtype,
        prompt=prompt,
        raw=raw_prompt,
    )
    check(source, settings)
    quiet_transformers(bars=source.model not in (None, DEMO))
    result = run(source, settings, method or METHODS, bar=progress)
    result["subject"] = f"random weights, shape {shape}" if sizes else f"model {source.model}"
    table = as_markdown(result)
    show(result)
    if json_out is not None:
        write_whole(json_out, as_json(result))
    if markdown is not None:
        write_whole(markdown, table)
    if plot is not None:
        save(draw(result), plot)


def whole(option: str, text: str) -> tuple[int, ...]:
    """The numbers of ``1,8``. Raises ``InputError`` where it is written otherwise."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r} must be whole numbers parted by commas, such as 1,8") from None


def show(result: Mapping[str, Any]) -> None:
    """Print the table and what it hangs on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from keepsight.experiments.latency.report import (
        HEADINGS,
        cells,
        facts,
    )

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for at, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if at < 2 else "right")
    for row in result["rows"]:
        table.add_row(*(escape(cell) for cell in cells(row, "{}")))
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(escape(facts(result)), style="dim")
    for note in result.get("notes", ()):
        console.print(f"[bold]Note[/bold] {escape(note)}")
    differing = [row["method"] for row in result["rows"] if row["same_tokens"] is False]
    if differing:
        console.print(
            f"[yellow]Other tokens than in the separate branch:[/yellow] {escape(', '.join(differing))}"
        )


def save(picture: bytes, path: Path) -> None:
    """Write the plot so that whoever opens ``path`` sees the old file or the whole new one."""
    import io

    from PIL import Image

    from keepsight.cli.attention import save_png

    save_png(Image.open(io.BytesIO(picture)), path)
