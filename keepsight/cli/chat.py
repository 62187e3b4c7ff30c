"""``keepsight chat``: questions about pictures, answered under methods, doubtful words marked."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from keepsight.cli._options import (
    CalibrationFile,
    Device,
    Dtype,
    MaxNewTokens,
    Model,
    Sample,
    SampleSeed,
    Temperature,
    TopP,
    one_method_option,
)
from keepsight.errors import InvalidParameter


def chat(
    model: Model = "demo",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="The first picture, or a drawn scene such as [bold]test-shifted:5[/bold]. In the chat, [bold]/image"
            " IMAGE[/bold] shows another.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[list[str] | None, one_method_option("the plain model")] = None,
    calibration: CalibrationFile = None,
    max_new_tokens: MaxNewTokens = 256,
    sample: Sample = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: SampleSeed = 0,
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
            "--single-turn",
            help="Ask every question without those before it, as is always done with the demo model.",
        ),
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Chat about pictures with any image-text-to-text model, in the terminal.

    Answers appear as they are written. Then object words that the picture may not support turn red.

    In the chat, [bold]/image IMAGE[/bold] shows a picture, [bold]/method m3id+vhr[/bold] chooses methods, and
    [bold]/help[/bold] lists all commands.

    From a pipe, every line is a question or a command. Flagged words then stand in brackets, and the chat ends at the
    first line that is refused.
    """
    from keepsight.calibration.file import Calibration
    from keepsight.cli._chat import Chat, converse
    from keepsight.cli._chat_screen import Screen
    from keepsight.cli._methods import only_one, read_methods
    from keepsight.cli._model import open_model
    from keepsight.cli._pictures import read_picture
    from keepsight.grounding import THRESHOLD
    from keepsight.inference.generation import Generation
    from keepsight.inference.loading import DEMO

    spec = only_one(method, "chat")
    recipes = () if spec is None else read_methods(spec)
    if calibration is not None:
        Calibration.load(calibration)
    if threshold is not None and not math.isfinite(threshold):
        raise InvalidParameter(f"--threshold {threshold} must be a finite number")
    generation = Generation(
        max_new_tokens=max_new_tokens, sample=sample, temperature=temperature, top_p=top_p, seed=seed
    )
    if image is not None:
        # The first picture is read here to refuse a wrong path before the model is loaded.
        read_picture(image)
    # The screen is opened before the model is loaded, since it refuses a closed input or output.
    screen = Screen()
    loaded, processor = open_model(model, device, dtype)
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
