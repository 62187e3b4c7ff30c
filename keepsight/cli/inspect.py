"""``keepsight inspect``: says what Keepsight sees in a model, and which methods run on it."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepsight.cli._options import Device, Dtype, JsonFile, Model, Prompt, RawPrompt
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.analysis.inspect import Inspection

SIZES = ("336x336", "1024x768")
"""The sizes of pictures whose tokens are counted by default."""
LARGEST = 8192
"""The longest side of a picture whose tokens are counted, in pixels."""


def inspect(
    model: Model = "demo",
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Try the methods on this picture.", show_default="a grey picture"),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WxH",
            help="Count the tokens that a picture of this size makes. Repeat the option for several sizes.",
            show_default=", ".join(SIZES),
        ),
    ] = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Say what Keepsight sees in a model: its decoder, its picture tokens, and which methods run on it, or why not.

    The command loads the model and generates two tokens under every method: the answer is tried, not looked up.
    """
    from keepsight.analysis.inspect import grey_picture, inspect_model
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._model import open_model
    from keepsight.files import as_json
    from keepsight.source.images import open_picture

    sizes = {text: read_size(text) for text in size or SIZES}
    pictures = {} if image is None else {image.name: open_picture(image)}
    pictures |= {text: grey_picture(*each) for text, each in sizes.items()}
    check_outputs([json_file], [] if image is None else [image])
    loaded, processor = open_model(model, device, dtype)
    found = inspect_model(loaded, processor, pictures, prompt, raw=raw_prompt)
    if json_file is not None:
        write(json_file, as_json({"model": model, **asdict(found)}))
    if not silent(json_file):
        show(model, found)


def read_size(text: str) -> tuple[int, int]:
    """The width and the height of a size such as ``640x480``.

    Raises:
        InputError: the text is written otherwise, or a side is not from 1 to 8192.
    """
    matched = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    sides = tuple(map(int, matched.groups())) if matched else (0, 0)
    if not all(1 <= side <= LARGEST for side in sides):
        raise InputError(f"--size {text!r} must be WIDTHxHEIGHT, each from 1 to {LARGEST}, such as 640x480")
    return sides[0], sides[1]


def show(model: str, found: Inspection) -> None:
    """Print an inspection: facts, then methods, then notes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{escape(model)}[/bold]  [dim]{found.model_class}, family {found.family}[/dim]\n")
    facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column()
    for name, value in _facts(found):
        facts.add_row(name, escape(value))
    console.print(facts)
    console.print()
    _show_methods(console, model, found)
    for note in found.notes:
        console.print(f"\n[bold]Note[/bold] {escape(note)}")


def _show_methods(console: Console, model: str, found: Inspection) -> None:
    """Print which methods run, and why others do not."""
    from rich.markup import escape
    from rich.table import Table

    reasons = {trial.why_not for trial in found.trials}
    # If no method runs, all for the same reason, it is said once instead of in every row.
    if len(reasons) == 1 and None not in reasons:
        console.print(f"[red]No method runs[/red]: {escape(str(*reasons))}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method", no_wrap=True)
    table.add_column("runs", no_wrap=True)
    table.add_column("why not")
    for trial in found.trials:
        runs = (
            "[green]yes[/green]"
            if trial.runs
            else "[yellow]not yet[/yellow]"
            if trial.missing
            else "[red]no[/red]"
        )
        table.add_row(trial.method, runs, escape(trial.why_not or ""))
    console.print(table)
    if any(trial.missing for trial in found.trials):
        console.print(
            f"\nnot yet: the method needs a calibration, run [bold]keepsight calibrate {escape(model)}[/bold] first"
        )


def _facts(found: Inspection) -> list[tuple[str, str]]:
    """The facts about the model as names and texts."""

    def known(value: Any) -> str:
        """A fact as text; a model whose decoder was not found has few facts."""
        return "unknown" if value is None else str(value)

    def tokens(named: tuple[tuple[int, str], ...]) -> str:
        """Tokens as text, each with its id."""
        return ", ".join(f"{text} ({token})" for token, text in named)

    grouped = "" if found.heads == found.kv_heads else f", sharing {found.kv_heads} keys and values"
    return [
        ("text decoder", known(found.decoder)),
        ("layers", known(found.layers)),
        ("heads", known(found.heads) + grouped),
        ("width", known(found.hidden_size)),
        ("attention", known(found.attention)),
        ("weights", f"{found.dtype} on {', '.join(found.devices)}"),
        ("image token", "none named" if found.image_token is None else tokens((found.image_token,))),
        ("markers", tokens(found.markers) or "none named"),
        *(
            (f"picture {name}", f"{visual} visual tokens in a prompt of {prompt}")
            for name, (visual, prompt) in found.pictures.items()
        ),
    ]
