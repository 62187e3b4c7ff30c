"""``keepsight caption``: describes pictures with and without methods, with one model for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import (
    CalibrationFile,
    Device,
    Dtype,
    JsonFile,
    MaxNewTokens,
    Model,
    Pictures,
    Prompt,
    RawPrompt,
    Sample,
    SampleSeed,
    Temperature,
    TopP,
    method_option,
)

PROMPT = "Describe this image."


def caption(
    model: Model,
    images: Pictures,
    method: Annotated[list[str] | None, method_option("the plain model")] = None,
    calibration: CalibrationFile = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    max_new_tokens: MaxNewTokens = 128,
    num_beams: Annotated[int, typer.Option(help="Number of beams; 1 is no beam search.")] = 1,
    sample: Sample = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: SampleSeed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Describe pictures with any image-text-to-text model, with or without mitigation.

        keepsight caption demo test-shifted:3 --method none --method m3id --method m3id+vhr

    Every picture gets one caption for each alternative. The alternative [bold]none[/bold] is the plain model. All
    pictures are read before the model is loaded, so that a wrong path costs no time. With --json, each line is one
    caption; [bold]keepsight chair[/bold] reads them.
    """
    from keepsight.cli._files import JsonLines, check_outputs, silent
    from keepsight.cli._methods import joined, label, read_alternatives, with_calibration
    from keepsight.cli._model import check_model_first, open_model
    from keepsight.cli._pictures import picture_id, read_picture
    from keepsight.inference.generation import Generation, answer_batch

    alternatives = read_alternatives(method)
    if calibration is not None:
        alternatives = with_calibration(alternatives, calibration)
    generation = Generation(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        sample=sample,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    check_model_first(model, "caption")
    check_outputs([json_file], [Path(name) for name in images])
    # The pictures are read here to refuse a wrong path before the model is loaded. They are not kept, since many large
    # pictures would fill the memory.
    for name in images:
        read_picture(name)

    loaded, processor = open_model(model, device, dtype)
    lines = JsonLines(json_file)
    for name in images:
        picture, _ = read_picture(name)
        if len(images) > 1 and len(alternatives) > 1 and not silent(json_file):
            print(name, flush=True)
        for recipes in alternatives:
            said = answer_batch(
                loaded, processor, [picture], prompt, *recipes, raw=raw_prompt, generation=generation
            )
            [text] = said.texts
            lines.add(
                {
                    "image_id": picture_id(name),
                    "image": name,
                    "caption": text,
                    "method": joined(recipes) or None,
                    "model": model,
                    "prompt": prompt,
                    "generation": generation.arguments() | ({"seed": seed} if sample else {}),
                }
            )
            if silent(json_file):
                continue
            if len(alternatives) > 1:
                print(f"{'  ' if len(images) > 1 else ''}{label(recipes)}: {text}", flush=True)
            else:
                print(f"{name}: {text}" if len(images) > 1 else text, flush=True)
    lines.close()
