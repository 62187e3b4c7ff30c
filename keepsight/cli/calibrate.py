"""``keepsight calibrate``: finds a checkpoint's own constants, and writes them to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import Device, Dtype, ImageFolder, Limit, Model, Prompt, RawPrompt
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.calibration.file import Calibration

FEW = 16
"""Figures from fewer pictures than this are called rough."""
HEADS_SHOWN = 8
"""How many heads are printed."""
BAR = 30
"""The width of a full bar in characters."""


def calibrate(
    model: Model,
    images: ImageFolder = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The file to write, in JSON.", show_default="MODEL-calibration.json"
        ),
    ] = None,
    limit: Limit = 32,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Find where a model's attention sinks are, which heads answer to the picture, and in which layers it looks.

    The method var needs the file that this command writes: [bold]keepsight caption MODEL IMAGE --method var --calibration
    FILE[/bold]. The rest of what is printed helps to choose heads and layers. The pictures should be as varied as those
    that the model will see later. Every picture takes three passes, one of them without it, and nothing is generated.
    """
    from keepsight.cli._console import progress
    from keepsight.cli._model import open_model
    from keepsight.cli._pictures import find_pictures
    from keepsight.files import check_writable
    from keepsight.inference.loading import DEMO
    from keepsight.source.images import open_picture
    from keepsight.source.prompts import prepare

    if images is not None:
        paths = find_pictures(images)[:limit]
        # Every picture is opened once before the model is loaded, so that a broken file costs no time. They are not kept,
        # since many large pictures would fill the memory.
        for path in paths:
            open_picture(path)
        shown = (open_picture(path) for path in paths)
    elif model == DEMO:
        from keepsight.demo.world import scenes

        shown = (scene.image() for scene in scenes("val", limit))
    else:
        raise InputError(
            f"calibrating {model} needs pictures: give a folder of some 32 varied ones with --images"
        )
    out = out or Path(f"{Path(model).name}-calibration.json")
    check_writable(out)

    loaded, processor = open_model(model, device, dtype)
    from keepsight.analysis.probe import probe

    prompts = [
        prepare(processor, [picture], prompt, raw=raw_prompt).to(loaded.device, dtype=loaded.dtype)
        for picture in shown
    ]
    with progress(2 * len(prompts), "reading pictures") as advance:
        found = probe(loaded, prompts, prompt=prompt, advance=advance)
    found.save(out)
    show(found, out)


def show(found: Calibration, out: Path) -> None:
    """Print a calibration for a reader who has not seen one before."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{found.model}[/bold]: {found.model_class}, {found.layers} layers, {found.heads} heads, width"
        f" {found.hidden_size}. {found.images} pictures, “{found.prompt}”"
    )
    if found.images < FEW:
        console.print(
            f"[yellow]Only {found.images} pictures:[/yellow] figures from less than {FEW} are rough."
        )
    _show_sinks(console, found)
    _show_heads(console, found)
    _show_layers(console, found)
    console.print(f"\nWritten to {out}")


def _show_sinks(console: Console, found: Calibration) -> None:
    """Print whether the model has attention sinks, and where."""
    console.print(
        "\n[bold]Attention sinks[/bold]: tokens that draw attention whatever is asked; VAR needs them"
    )
    evidence = found.evidence
    if found.supported:
        console.print("  found: VAR can run")
    else:
        console.print("  not confirmed: VAR cannot run on this model")
        for reason in found.reasons:
            console.print(f"  - {reason}")
    start, peak = max(evidence["first_token_mass"]), max(evidence["visual_peak"])
    console.print(
        f"  At most, over layers, the first token gets {start:.0%} of the attention, and one token of the picture"
        f" {peak:.1f} times the picture's mean."
    )
    if not found.dims:
        return
    gap = evidence["gap"]
    source = f"the gap from {gap[0]:.2f} to {gap[1]:.2f}" if gap else "the published one, for want of a gap"
    console.print(f"  dimensions   {', '.join(map(str, found.dims))} of the residual stream")
    console.print(f"  threshold    {found.tau:.2f} ({source})")
    console.print(f"  first token  is a sink in {evidence['first_token_flagged']:.0%} of the prompts")
    low, high = min(evidence["visual_flagged"]), max(evidence["visual_flagged"])
    console.print(f"  the picture  {low:.2%} to {high:.2%} of its tokens are sinks, depending on the layer")
    if evidence["attention_ratio"] is not None:
        console.print(
            f"  they get     {evidence['attention_ratio']:.1f} times the attention of its other tokens"
        )


def _show_heads(console: Console, found: Calibration) -> None:
    """Print the heads whose output moves most when the picture is taken away."""
    from rich.padding import Padding
    from rich.table import Table

    ranked = sorted(
        ((found.divergence[layer][head], layer, head) for layer in range(found.layers) for head in range(found.heads)),
        reverse=True,
    )  # fmt: skip
    console.print(
        "\n[bold]Heads that answer to the picture[/bold]: their output moves most when it is taken away (VHD)"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("layer", "head", "VHD", "chosen by VHR's rule in"):
        table.add_column(name, justify="right")
    for moved, layer, head in ranked[:HEADS_SHOWN]:
        table.add_row(
            str(layer), str(head), f"{moved:.2f}", f"{found.chosen[layer][head]:.0%} of the pictures"
        )
    console.print(Padding(table, (0, 0, 0, 2)))
    always = sum(share == 1 for row in found.chosen for share in row)
    never = sum(share == 0 for row in found.chosen for share in row)
    console.print(
        f"  Of {len(ranked)} heads, VHR's rule chooses {always} for every picture and {never} for none. One that moves far"
        " but is seldom chosen also stands out without the picture.",
        style="dim",
    )


def _show_layers(console: Console, found: Calibration) -> None:
    """Print how much of the question's attention goes to the picture, layer by layer."""
    first, last = found.window
    console.print("\n[bold]Attention of the question to the picture[/bold], by layer")
    for layer, mass in enumerate(found.visual_mass):
        bar = "█" * round(BAR * mass)
        marked = "  ← middle window" if layer == first else "  ←" if first < layer <= last else ""
        console.print(f"  {layer:>3}  {mass:4.0%}  {bar}[dim]{'·' * (BAR - len(bar))}[/dim]{marked}")
