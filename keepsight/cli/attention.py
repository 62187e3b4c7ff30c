"""``keepsight attention``: draws where the model looks for every object word that it says about a picture."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepsight.cli._options import (
    Device,
    Dtype,
    JsonFile,
    MaxNewTokens,
    Model,
    Picture,
    Prompt,
    RawPrompt,
    method_option,
)
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError, InvalidParameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from keepsight.analysis.attention_maps import AttentionMap
    from keepsight.eval.chair.vocabulary import Vocabulary


class NoObjectWords(InputError):
    """No caption names an object, so there is no word to draw a map for."""


def attention(
    model: Model,
    image: Picture,
    method: Annotated[list[str] | None, method_option("only the plain model")] = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L/L…",
            help="The layers to average over, counted from 0, such as 2/3/4.",
            show_default="all",
        ),
    ] = None,
    objects: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="What is in the picture, if you know it. Words for other objects are then struck.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What [bold]keepsight calibrate[/bold] found in this model, for the rings around sinks, and for the"
            " methods that need it (var).",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 128,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The figure to write, a PNG.")] = Path(
        "attention.png"
    ),
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Draw where a model looks for each object word of its caption, before and after methods act.

        keepsight attention demo test-shifted:3 --method pai:alpha=0.5 --method pai+vhr

    The model captions the picture greedily, once as it is and once for each alternative, which gives a row each. The
    figure lays the attention of every object word over the picture. Rings mark attention sinks. A curve follows the
    picture's share of the attention, token by token. Text dominance (MDI, AEI) is printed as well;
    [bold]keepsight dominance[/bold] tells more of it.
    """
    from keepsight.analysis.attention_maps import look, sink_rule
    from keepsight.analysis.image_grid import seen_box
    from keepsight.calibration.file import Calibration
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import read_alternatives, reads_calibration, with_calibration
    from keepsight.cli._model import check_model_first, open_model
    from keepsight.cli._pictures import read_picture
    from keepsight.eval.modality_dominance.score import Reading
    from keepsight.files import as_json
    from keepsight.inference.generation import Generation
    from keepsight.reports.attention_figure import draw
    from keepsight.source.prompts import prepare
    from keepsight.target import Target

    alternatives = read_alternatives(method, plain_first=True)
    known = None if calibration is None else Calibration.load(calibration)
    every = [recipe for recipes in alternatives for recipe in recipes]
    # The calibration may be given for the rings alone, so it is no error if no method reads it.
    if calibration is not None and any(map(reads_calibration, every)):
        alternatives = with_calibration(alternatives, calibration)
        every = [recipe for recipes in alternatives for recipe in recipes]
    generation = Generation(max_new_tokens=max_new_tokens)
    chosen = read_layers(layers)
    check_model_first(model, "attention")
    picture, present = read_picture(image)
    if objects is not None:
        present = read_objects(objects)
    if out.suffix.lower() != ".png":
        raise InputError(f"the figure is a PNG: name {out.with_suffix('.png')} instead of {out}")
    # All that can be refused is refused before the model is loaded, which may take minutes.
    check_outputs([out, json_file], [Path(image)])

    loaded, processor = open_model(model, device, dtype)
    box = seen_box(processor.image_processor, *picture.size)
    inputs = prepare(processor, [picture], prompt, raw=raw_prompt).to(loaded.device, dtype=loaded.dtype)
    # One rule finds the sinks of all rows, so that their rings can be compared: that of the first method that knows sinks.
    rule = sink_rule(Target(loaded, inputs), every, known)
    maps = [
        look(loaded, processor, inputs, *recipes, layers=chosen, generation=generation, sinks=rule)
        for recipes in alternatives
    ]
    if not any(one.words for one in maps):
        said = " / ".join(one.caption.strip() or "nothing" for one in maps)
        raise NoObjectWords(f"no object of COCO is named in: {said}; ask for a description with --prompt")
    figure = draw(
        picture.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3]))),
        maps,
        model=model,
        prompt=prompt,
        averaged=named_layers(chosen, len(loaded.get_decoder().layers)),
        present=present,
        remarks=remarks(box, *picture.size),
    )
    save_png(figure, out)
    if json_file is not None:
        facts = {
            "image": image,
            "model": model,
            "prompt": prompt,
            "layers": chosen,
            "seen": box,
            "present": None if present is None else sorted(present),
            "reading": Reading().to_json(),
            "maps": [as_numbers(one, present) for one in maps],
        }
        write(json_file, as_json(facts))
    if not silent(json_file):
        _print(maps, present, out)


def read_layers(text: str | None) -> tuple[int, ...] | None:
    """Layers such as ``2/3`` as numbers in ascending order, each once; None for None.

    Raises:
        InvalidParameter: the text is written otherwise.
    """
    if text is None:
        return None
    if not re.fullmatch(r"\d+(/\d+)*", text):
        numbers = re.findall(r"\d+", text) or ["2", "3"]
        raise InvalidParameter(
            f"--layers {text!r} must be whole numbers joined with /, such as {'/'.join(numbers)}"
        )
    return tuple(sorted({int(part) for part in text.split("/")}))


def read_objects(text: str) -> frozenset[str]:
    """Objects such as ``dog, sofa`` by the names that CHAIR gives them.

    Raises:
        UnknownObject: a word names no object of COCO.
    """
    from keepsight.eval.chair.vocabulary import COCO

    return frozenset(_object(part.strip(), COCO) for part in text.split(",") if part.strip())


def _object(word: str, vocabulary: Vocabulary) -> str:
    """The name that CHAIR gives an object. Raises ``UnknownObject``."""
    from keepsight.eval.errors import UnknownObject

    found = vocabulary.words.get(word.lower())
    if found is None:
        raise UnknownObject(f"--objects: {word!r} names no object of COCO; {vocabulary.hint(word)}")
    return found


def named_layers(chosen: Sequence[int] | None, count: int) -> str:
    """The layers in words, such as ``all 6 layers``, ``layer 2`` or ``layers 2, 3``; ``count`` is how many there are."""
    if chosen is None or len(chosen) == count:
        return f"all {count} layers"
    return f"layer{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"


def remarks(box: tuple[float, float, float, float], width: int, height: int) -> list[str]:
    """What the figure says if the model did not see exactly the picture.

    Args:
        box: left, top, right and bottom of what it saw, in pixels of the picture.
        width, height: those of the picture.
    """
    if box == (0, 0, width, height):
        return []
    across, down = round(box[2] - box[0]), round(box[3] - box[1])
    return [
        f"Shown is what the model saw of the picture: {across} x {down} pixels about its centre, of {width} x {height}."
    ]


def save_png(figure: Image, path: Path) -> None:
    """Write a figure so that whoever opens ``path`` sees the old file or the whole new one.

    Raises:
        CannotWrite: the file cannot be written.
    """
    from keepsight.files import CannotWrite

    # Replacing a file in one step needs both on one disk, so the new one is made beside the old. The process id keeps two
    # commands apart.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.save(part, format="PNG", optimize=True)
        part.replace(path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def as_numbers(one: AttentionMap, present: frozenset[str] | None) -> dict[str, Any]:
    """One map as the dictionary that JSON output holds."""
    from keepsight.cli._dominance import figures_json
    from keepsight.eval.modality_dominance.score import PARTS, by_layer
    from keepsight.eval.modality_dominance.summary import summary

    assert one.masses is not None
    # The masses are sums over the generated tokens of each head, so this is the mean over heads and tokens.
    attention = one.masses.attention.mean(1) / one.masses.rows
    return {
        "method": one.method,
        "caption": one.caption.strip(),
        "grid": one.grid,
        "words": [
            {
                "word": word.word,
                "object": word.object,
                "present": None if present is None else word.object in present,
                "tokens": word.tokens,
                "share": word.share,
                "attention": word.attention,
            }
            for word in one.words
        ],
        "sink_threshold": one.rule.tau,
        "sink_dims": one.rule.dims,
        "sinks": [{"row": sink.row, "column": sink.column, "score": sink.score} for sink in one.sinks],
        "tokens": [
            {"text": text, "image_share": share} for text, share in zip(one.pieces, one.shares, strict=True)
        ],
        "dominance": {
            "groups": figures_json(summary([one.masses])),
            "layers": by_layer(one.masses),
            "attention": [dict(zip(PARTS, layer, strict=True)) for layer in attention.tolist()],
            "counts": one.masses.counts,
        },
    }


def _print(maps: Sequence[AttentionMap], present: frozenset[str] | None, out: Path) -> None:
    """Print captions, shares and text dominance."""
    import sys

    from rich.console import Console

    from keepsight.cli._console import mark
    from keepsight.cli._dominance import LEGEND, short, show_figures, tell_reading, tell_shares
    from keepsight.eval.modality_dominance.score import Reading, groups
    from keepsight.eval.modality_dominance.summary import summary

    for one, told in zip(maps, tell_shares([one.shares for one in maps]), strict=True):
        wrong = [word for word in one.words if present is not None and word.object not in present]
        print(f"{one.method or 'plain'}: {mark(one.caption, wrong, colour=sys.stdout.isatty()).strip()}")
        shares = ", ".join(f"{word.word} {100 * word.share:.1f} %" for word in one.words)
        print(f"  on the picture: {shares or 'no object named'}; sinks: {len(one.sinks) or 'none'}")
        print(f"  token by token: {told}")
    print()
    console = Console(highlight=False, soft_wrap=True)
    heard = [one.masses for one in maps if one.masses is not None]
    names = [short(one.method or "") for one in maps]
    figures = list(zip(names, (summary([one]) for one in heard), strict=True))
    show_figures(console, figures, groups(heard[0].layers))
    console.print(tell_reading(Reading(), heard[:1]), style="dim")
    console.print(LEGEND, style="dim")
    print(f"figure: {out}")
