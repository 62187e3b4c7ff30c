"""``keepsight bench``: what each method costs over plain ``generate``, on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from keepsight.cli._options import (
    Device,
    Dtype,
    JsonFile,
    MarkdownFile,
    Model,
    Prompt,
    RawPrompt,
    method_option,
)
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError


def bench(
    model: Model = "demo",
    shape: Annotated[
        str | None,
        typer.Option(
            help="Measure random weights of a LLaVA's shape instead of MODEL: [bold]130m[/bold], [bold]1b[/bold] or"
            " [bold]7b[/bold]. Nothing is downloaded, and speed does not depend on the values.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[list[str] | None, method_option("every method")] = None,
    new_tokens: Annotated[
        str,
        typer.Option(
            metavar="N,…",
            help="How many tokens are generated, 8 or more. All numbers of a list are measured.",
        ),
    ] = "128",
    batch: Annotated[
        str,
        typer.Option(metavar="N,…", help="How many rows a batch has. All numbers of a list are measured."),
    ] = "1",
    image_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="With --shape, how many visual tokens a prompt has. All numbers of a list are measured.",
            show_default="576",
        ),
    ] = None,
    fused: Annotated[
        str,
        typer.Option(
            help="Whether the amateur shares the passes of the main generation. [bold]auto[/bold] measures both where"
            " that is possible, [bold]on[/bold] and [bold]off[/bold] one of them."
        ),
    ] = "auto",
    peer: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="What else to compare with, or none. [bold]naive[/bold]: a full second forward after the first, as"
            " published code does. [bold]cfg[/bold]: guidance_scale of transformers. [bold]eager[/bold]: attention that"
            " returns its weights, as released VAR needs. [bold]static[/bold], [bold]compiled[/bold]: plain generation"
            " with that cache.",
        ),
    ] = "naive,cfg,eager",
    cache: Annotated[
        str,
        typer.Option(
            help="The cache of every generation, the plain one too: dynamic, static, or compiled (static, with"
            " torch.compile)."
        ),
    ] = "dynamic",
    repeats: Annotated[
        int, typer.Option(help="How many pairs of a plain and another generation are measured.")
    ] = 5,
    clock: Annotated[
        str,
        typer.Option(
            help="[bold]wall[/bold] measures wall time, [bold]cpu[/bold] the CPU seconds of the process, for a machine that"
            " others use as well."
        ),
    ] = "wall",
    device: Device = "cpu",
    dtype: Dtype = "auto",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many CPU threads torch uses.", show_default="torch's own choice"),
    ] = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    memory: Annotated[
        bool,
        typer.Option(
            help="Measure peak memory. On the CPU, each row then costs a fresh process that loads the model."
        ),
    ] = True,
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the ratios into this file, a PNG. Several lengths make lines. Needs matplotlib.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what each method costs: prefill, time per token and peak memory over plain generate.

        keepsight bench
        keepsight bench --shape 130m --threads 1 --new-tokens 32 --batch 1,8
        keepsight bench --shape 7b --device cuda --dtype bfloat16 --batch 1,8 --json 7b.json

    Plain and other generations alternate, so that a machine whose speed drifts slows both. A ratio is the median over
    pairs, with the smallest and the largest. Prefill is the time to the first token, the amateur's prefill included.
    """
    from keepsight.cli._console import progress
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import joined, read_alternatives
    from keepsight.experiments.latency.report import markdown as as_markdown
    from keepsight.experiments.latency.subjects import Source, find_shape
    from keepsight.files import as_json
    from keepsight.inference.loading import DEMO, quiet_transformers
    from keepsight.reports.latency_figure import check_plots, draw

    if model != DEMO and shape is not None:
        raise InputError("give MODEL or --shape, not both: --shape has random weights of its own")
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"the plot is a PNG: name {plot.with_suffix('.png')} instead of {plot}")
    specs = [joined(recipes) for recipes in read_alternatives(method, plain_first=True)[1:]]
    sizes = None if shape is None else find_shape(shape)
    if sizes is None and image_tokens is not None:
        raise InputError(
            "--image-tokens is for --shape 130m, 1b or 7b: a checkpoint's processor decides by itself"
        )
    counts = {
        "new_tokens": whole("--new-tokens", new_tokens),
        "batch": whole("--batch", batch),
        # The option has no default of its own, so that giving it together with a checkpoint can be refused above.
        "image_tokens": whole("--image-tokens", image_tokens or "576"),
    }
    check_outputs([json_file, markdown_file, plot])
    if plot is not None:
        check_plots()

    # These modules import torch, which takes seconds: all that needs no torch has been checked by now.
    from keepsight.experiments.latency.run import Settings, check, run
    from keepsight.experiments.latency.variants import METHODS

    settings = Settings(
        **counts, repeats=repeats, fused=fused, cache=cache, clock=clock, memory=memory, threads=threads,
        peers=() if peer == "none" else tuple(part.strip() for part in peer.split(",")),
    )  # fmt: skip
    source = Source(
        model=None if sizes else model,
        shape=sizes,
        device=device,
        dtype=dtype,
        prompt=prompt,
        raw=raw_prompt,
    )
    check(source, settings)
    quiet_transformers(bars=source.model not in (None, DEMO))
    result = run(source, settings, specs or METHODS, bar=progress)
    result["subject"] = f"random weights, shape {shape}" if sizes else f"model {source.model}"
    if not silent(json_file, markdown_file):
        show(result)
    if json_file is not None:
        write(json_file, as_json(result))
    if markdown_file is not None:
        write(markdown_file, as_markdown(result))
    if plot is not None:
        save(draw(result), plot)


def whole(option: str, text: str) -> tuple[int, ...]:
    """The numbers of a list such as ``1,8``.

    Args:
        option: the option's name, for the message.
        text: the list.

    Raises:
        InputError: the text is written otherwise.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option} {text!r} must be whole numbers separated by commas, such as 1,8"
        ) from None


def show(result: Mapping[str, Any]) -> None:
    """Print the table, and the settings and the machine that the figures belong to."""
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
    # A file or a pipe has no width, and rich assumes 80 columns, which would break every row of this table.
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(escape(facts(result)), style="dim")
    for note in result.get("notes", ()):
        console.print(f"[bold]Note[/bold] {escape(note)}")
    differing = [row["method"] for row in result["rows"] if row["same_tokens"] is False]
    if differing:
        console.print(
            f"[yellow]Other tokens than where the amateur runs in passes of its own:[/yellow] {escape(', '.join(differing))}"
        )


def save(picture: bytes, path: Path) -> None:
    """Write the plot so that whoever opens ``path`` sees the old file or the whole new one. Raises ``CannotWrite``."""
    import io

    from PIL import Image

    from keepsight.cli.attention import save_png

    save_png(Image.open(io.BytesIO(picture)), path)
