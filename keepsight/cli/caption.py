"""``keepsight caption``: pictures in, mitigated captions out, one model for all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import DeviceMap, Dtype, MaxNewTokens, Model, Prompt, RawPrompt
from keepsight.errors import InputError

if TYPE_CHECKING:
    from keepsight.method import Method

PROMPT = "Describe this image."


def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures to describe.")],
    model: Model = "demo",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="SPEC",
            help="A method such as [bold]m3id:decay=0.05[/bold] (see [bold]keepsight methods[/bold]); several compose,"
            " in this order. Without one the model is left as it is.",
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
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    max_new_tokens: MaxNewTokens = 128,
    num_beams: Annotated[int, typer.Option(help="Beams of the search; 1 is none.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the best.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample.", show_default="1")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample.", show_default="1")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling; the same for every picture.")] = 0,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="One JSON line for each picture as it is done; [bold]keepsight chair[/bold] reads them.",
        ),
    ] = False,
) -> None:
    """Describe pictures with any image-text-to-text model, with or without mitigation.

    All pictures are read before the model is loaded, so that a bad path costs nothing.
    """
    from keepsight.eval.image_ids import image_id
    from keepsight.inference.generation import Generation, answer
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread
    from keepsight.registry import parse
    from keepsight.source.images import open_picture

    recipes = [parse(spec) for spec in method or ()]
    if calibration is not None:
        recipes = with_calibration(recipes, calibration)
    generation = Generation(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        sample=sample,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    for path in images:
        open_picture(path)

    quiet_transformers(bars=model != DEMO)
    if model == DEMO:
        use_one_thread()
    loaded, processor = load(model, dtype=dtype, device_map=device_map)
    pictures = (open_picture(path) for path in images)
    answers = answer(loaded, processor, pictures, prompt, *recipes, raw=raw_prompt, generation=generation)
    for path, said in zip(images, answers, strict=True):
        if as_json:
            line = {
                "image_id": image_id(path.stem),
                "image": str(path),
                "caption": said.texts[0],
                "method": " ".join(recipe.spec for recipe in recipes) or None,
                "model": model,
                "prompt": prompt,
                "generation": generation.arguments() | ({"seed": seed} if sample else {}),
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            print(f"{path}: {said.texts[0]}" if len(images) > 1 else said.texts[0], flush=True)


def with_calibration(recipes: Sequence[Method], path: Path) -> list[Method]:
    """The recipes, those that read a calibration and name none given this one.

    Raises:
        InputError: none of them reads one, or the file is no calibration.
    """
    from keepsight.calibration.file import Calibration

    Calibration.load(path)
    given: list[Method] = []
    takers = 0
    for recipe in recipes:
        settings = asdict(recipe)
        if "calibration" in settings:
            takers += 1
            recipe = type(recipe)(**settings | {"calibration": settings["calibration"] or str(path)})
        given.append(recipe)
    if not takers:
        chosen = ", ".join(recipe.name() for recipe in recipes) or "none"
        raise InputError(
            f"--calibration has no effect on the chosen methods ({chosen}): leave it out, or add --method var"
        )
    return given
