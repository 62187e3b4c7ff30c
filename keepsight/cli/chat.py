"""``keepsight chat``: questions about pictures, answered under methods, doubtful words marked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import DeviceMap, Dtype
from keepsight.errors import InvalidParameter


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder, a Hugging Face id, or [bold]demo[/bold] for the packaged model."
        ),
    ] = "demo",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The first picture, or a drawn scene such as [bold]test-shifted:5[/bold]. In the chat:"
            " [bold]/image PATH[/bold].",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="SPEC",
            help="A method to start with (see [bold]keepsight methods[/bold]); several compose. In the chat:"
            " [bold]/method SPEC…[/bold].",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What [bold]keepsight calibrate[/bold] found in this model, for the methods that need it (var).",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the best.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample.", show_default="1")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample.", show_default="1")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling; the same for every answer.")] = 0,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Flag words whose grounding (see [bold]keepsight ground[/bold]) is below this. The default was chosen on"
            " the demo world.",
            show_default="-0.18",
        ),
    ] = None,
    single_turn: Annotated[
        bool,
        typer.Option(
            "--single-turn", help="Let every question stand alone, as it always does with the demo model."
        ),
    ] = False,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
) -> None:
    """Chat about pictures with any image-text-to-text model, in the terminal.

    Answers appear as they are written. Then object words that the picture may not support turn red.

    [bold]/image PATH[/bold] shows a picture, [bold]/method SPEC…[/bold] chooses methods, [bold]/help[/bold] tells the rest.

    From a pipe it reads a question or command a line, ends at the first that is refused, and puts flagged words in brackets.
    """
    from keepsight.cli._chat import Chat, converse
    from keepsight.cli._chat_screen import Screen
    from keepsight.cli.attention import read_picture
    from keepsight.cli.caption import with_calibration
    from keepsight.grounding import THRESHOLD
    from keepsight.inference.generation import Generation
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread
    from keepsight.registry import parse

    recipes = [parse(spec) for spec in method or ()]
    if calibration is not None:
        with_calibration([parse("var")], calibration)
    if threshold is not None and not math.isfinite(threshold):
        raise InvalidParameter(f"--threshold {threshold} must be a finite number")
    generation = Generation(
        max_new_tokens=max_new_tokens, sample=sample, temperature=temperature, top_p=top_p, seed=seed
    )
    if image is not None:
        read_picture(image)
    screen = Screen()
    quiet_transformers(bars=model != DEMO)
    if model == DEMO:
        use_one_thread()
    loaded, processor = load(model, dtype=dtype, device_map=device_map)
    talk = Chat(
        name=model,
        model=loaded,
        processor=processor,
        screen=screen,
        generation=generation,
        threshold=THRESHOLD if threshold is None else threshold,
        alone=single_turn or model == DEMO,
        calibration=calibration,
    )
    talk.choose(recipes)
    talk.greet()
    if image is not None:
        talk.show(image)
    converse(talk)
