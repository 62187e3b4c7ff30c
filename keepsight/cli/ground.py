"""``keepsight ground``: measures how much of each object word of a caption the model owes to the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    method_option,
)
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError, InvalidParameter
from keepsight.reports.number_format import MINUS

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.grounding import Grounding, Nouns, WordGrounding
    from keepsight.method import Method


def ground(
    model: Model,
    images: Pictures,
    method: Annotated[list[str] | None, method_option("the plain model")] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Judge this text about the one picture, instead of a caption that the model writes.",
            show_default=False,
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            metavar="NOUN,…",
            help="The nouns to judge, or a file that holds one on each line.",
            show_default="the 80 objects of COCO",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="The score that judges a word: [bold]contrast[/bold], [bold]difference[/bold], [bold]likelihood[/bold], "
            "[bold]negative_entropy[/bold] or [bold]divergence[/bold]. Each is high where the picture supports the word.",
            show_default="contrast",
        ),
    ] = None,
    aggregate: Annotated[
        str | None,
        typer.Option(
            help="How the score of a word is made of the scores of its tokens: first, mean, min or sum.",
            show_default="mean",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Flag words whose score is below this. The default, -0.18, was chosen on the demo world's val-shifted"
            " split: choose your own for another model. It holds for the default score and aggregate; with others, no"
            " word is flagged without this option.",
            show_default=False,
        ),
    ] = None,
    calibration: CalibrationFile = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    max_new_tokens: MaxNewTokens = 128,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Flag the words of a caption that the picture may not support, without annotations.

        keepsight ground demo test-shifted:1 --method none --method m3id

    The model captions each picture greedily, once for each alternative; the alternative [bold]none[/bold] is the plain
    model. The plain model then reads every caption twice, with the picture and without it. A word is flagged if the
    picture supports it too little. With --json, each line is one caption with all its tokens.
    """
    from keepsight.cli._files import JsonLines, check_outputs, silent
    from keepsight.cli._methods import joined, label, read_alternatives, with_calibration
    from keepsight.cli._model import check_model_first, open_model
    from keepsight.cli._pictures import picture_id, read_picture
    from keepsight.grounding import AGGREGATE, AGGREGATES, SCORE, SCORES, THRESHOLD, WEIGHT
    from keepsight.grounding.scores import check_choice
    from keepsight.inference.generation import Generation

    alternatives = read_alternatives(method)
    if calibration is not None:
        alternatives = with_calibration(alternatives, calibration)
    score, aggregate = score or SCORE, aggregate or AGGREGATE
    check_choice("score", score, SCORES)
    check_choice("aggregate", aggregate, AGGREGATES)
    if threshold is not None and not math.isfinite(threshold):
        raise InvalidParameter(f"--threshold {threshold} must be a finite number")
    # The default threshold was chosen for the default score, and means nothing for another.
    if threshold is None and (score, aggregate) == (SCORE, AGGREGATE):
        threshold = THRESHOLD
    if caption is not None and (len(images) > 1 or method):
        raise InputError(
            "--caption is about one picture and written already: leave out the other pictures and --method"
        )
    if caption is not None and not caption.strip():
        raise InputError("--caption is empty: give a text")
    nouns = read_nouns(words)
    generation = Generation(max_new_tokens=max_new_tokens)
    check_model_first(model, "ground")
    check_outputs([json_file], [Path(name) for name in images])
    # The pictures are read here to refuse a wrong path before the model is loaded, and again one by one below.
    for name in images:
        read_picture(name)

    loaded, processor = open_model(model, device, dtype)
    lines = JsonLines(json_file)
    for name in images:
        picture, present = read_picture(name)
        if nouns is not None:
            # What is in a drawn scene is known by COCO's names, with which the user's own nouns cannot be compared.
            present = None
        for recipes in alternatives:
            found = look(loaded, processor, picture, prompt, recipes, caption, raw_prompt, generation)
            judged = found.words(nouns, score=score, aggregate=aggregate)
            lines.add(
                {
                    "image_id": picture_id(name),
                    "image": name,
                    "caption": found.text,
                    "method": joined(recipes) or None,
                    "model": model,
                    "prompt": prompt,
                    "score": score,
                    "aggregate": aggregate,
                    "weight": WEIGHT,
                    "threshold": threshold,
                    **as_numbers(found, judged, threshold, present),
                }
            )
            if not silent(json_file):
                heading = name if len(alternatives) == 1 else f"{name}, {label(recipes)}"
                _print(heading, found, judged, score, threshold, present)
    lines.close()
    if not silent(json_file):
        _explain(score, threshold)


def look(
    model: Any,
    processor: Any,
    picture: Any,
    prompt: str,
    recipes: Sequence[Method],
    caption: str | None,
    raw: bool,
    generation: Any,
) -> Grounding:
    """The grounding of a given caption, or of the one that the model writes under methods.

    Args:
        model, processor: the loaded model.
        picture: the picture that the caption is about.
        prompt: the question.
        recipes: the methods that act together while the caption is written.
        caption: the caption to judge; None lets the model write one.
        raw: whether the prompt is used as it is, without the chat template.
        generation: how the caption is searched for.
    """
    from keepsight.grounding import ground as judge
    from keepsight.grounding import teacher_force
    from keepsight.grounding.scores import joined
    from keepsight.inference.generation import generate
    from keepsight.source.prompts import prepare

    if caption is not None:
        return judge(model, processor, picture, prompt, caption, raw=raw)
    inputs = prepare(processor, [picture], prompt, raw=raw).to(model.device, dtype=model.dtype)
    # The very ids that the model wrote are judged: encoding the text again could split it into other tokens.
    [ids] = generate(model, inputs, recipes, generation=generation).tokens
    [[figures]] = teacher_force(model, inputs, [ids])
    return joined(processor.tokenizer, ids, figures)


def read_nouns(text: str | None) -> Nouns | None:
    """The nouns of a list such as ``dog, fire truck``, or of a file of that name with one on each line; None for None.

    Raises:
        BadNoun: there is none, or one is not a word.
        InputError: the file is not a text.
    """
    from keepsight.grounding import Nouns

    if text is None:
        return None
    path = Path(text)
    # A list of nouns has commas, and a single noun is seldom the name of a file.
    if "," in text or not path.is_file():
        return Nouns.of(text.split(","))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--words: cannot read {path} as a text ({error})") from None
    return Nouns.of(lines)


def as_numbers(
    found: Grounding,
    judged: Sequence[WordGrounding],
    threshold: float | None,
    present: frozenset[str] | None,
) -> dict[str, Any]:
    """Tokens and words as plain data, in nats; an infinite figure is null.

    Args:
        found: the grounding of the caption's tokens.
        judged: its object words.
        threshold: words with less support are flagged; None flags none, and the JSON says null.
        present: the objects known to be in the picture; None if it is not known.
    """
    from keepsight.files import finite_or_none

    return {
        "tokens": [
            {
                "id": token.id,
                "text": found.text[slice(*token.span)],
                "span": list(token.span),
                **{
                    name: finite_or_none(getattr(token, name))
                    for name in (
                        "with_image",
                        "without_image",
                        "difference",
                        "contrast",
                        "entropy",
                        "divergence",
                    )
                },
            }
            for token in found.tokens
        ],
        "words": [
            {
                "word": word.word,
                "object": word.object,
                "span": list(word.span),
                "tokens": list(word.tokens),
                "with_image": finite_or_none(word.with_image),
                "without_image": finite_or_none(word.without_image),
                "difference": finite_or_none(word.difference),
                "support": finite_or_none(word.support),
                "flagged": None if threshold is None else word.support < threshold,
                "present": None if present is None else word.object in present,
            }
            for word in judged
        ],
    }


def _print(
    heading: str,
    found: Grounding,
    judged: Sequence[WordGrounding],
    score: str,
    threshold: float | None,
    present: frozenset[str] | None,
) -> None:
    """Print the caption with its flagged words, and the table of its object words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(heading, style="bold"))
    console.print(shade(console, found.text, judged, threshold))
    if not judged:
        console.print(Text("The caption holds no object word.", style="dim"))
        console.print()
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("word", no_wrap=True)
    for heading in ("with", "without", "difference", *([score] if score != "difference" else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    if threshold is not None:
        table.add_column("flagged", no_wrap=True)
    if present is not None:
        table.add_column("in the picture", no_wrap=True)
    for word in judged:
        figures = [word.with_image, word.without_image, word.difference]
        row = [word.word, *(nats(value) for value in figures[:2]), nats(figures[2], sign=True)]
        if score != "difference":
            row.append(nats(word.support))
        if threshold is not None:
            row.append("flagged" if word.support < threshold else "")
        if present is not None:
            row.append("yes" if word.object in present else "no")
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()


def shade(console: Console, text: str, judged: Sequence[WordGrounding], threshold: float | None) -> Any:
    """The caption with flagged words red and others green; where there is no colour, flagged words stand in brackets."""
    from rich.text import Text

    shown, at = Text(), 0
    for word in judged:
        start, end = word.span
        flagged = threshold is not None and word.support < threshold
        shown.append(text[at:start])
        if console.color_system is not None and threshold is not None:
            shown.append(text[start:end], style="bold red" if flagged else "green")
        else:
            shown.append(f"[{text[start:end]}]" if flagged else text[start:end])
        at = end
    shown.append(text[at:])
    return shown


def nats(value: float, *, sign: bool = False) -> str:
    """A figure in nats with two decimals and a typographic minus; a plus too if ``sign`` is set."""
    return f"{value:{'+' if sign else ''}.2f}".replace("-", MINUS)


def _explain(score: str, threshold: float | None) -> None:
    """Print what the columns mean, and by which threshold words were flagged."""
    from rich.console import Console

    from keepsight.grounding import THRESHOLD

    console = Console(highlight=False)
    console.print(
        "with, without: the log-probability of the word with the picture and without it, in nats.",
        style="dim",
    )
    if threshold is None:
        console.print(f"No word is flagged: {score} has no default threshold, give --threshold.", style="dim")
        return
    own = ", chosen on the demo world; for another model choose your own" if threshold == THRESHOLD else ""
    console.print(f"Flagged: {score} below {nats(threshold)}{own}.", style="dim")
