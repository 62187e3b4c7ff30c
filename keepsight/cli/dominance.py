"""``keepsight dominance``: measures whether a model attends to the text more than to the picture, and what methods
change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepsight.cli._options import (
    Device,
    Dtype,
    ImageFolder,
    JsonFile,
    Limit,
    MaxNewTokens,
    Model,
    Prompt,
    RawPrompt,
    method_option,
    split_option,
)
from keepsight.cli.caption import PROMPT
from keepsight.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from keepsight.eval.modality_dominance.score import Masses, Reading

RESAMPLES = 1000
"""Bootstrap resamples of the pictures for the intervals."""
SPLIT = "test"
"""The split of the demo world that is taken by default."""


def dominance(
    model: Model = "demo",
    images: ImageFolder = None,
    method: Annotated[list[str] | None, method_option("only the plain model")] = None,
    prompt: Prompt = PROMPT,
    raw_prompt: RawPrompt = False,
    limit: Limit = 32,
    split: Annotated[str | None, split_option(SPLIT)] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar="PART+PART…",
            help="The parts that count as text: bos (what stands first), special (marks of the template and of the"
            " picture), before and after (text before and after the picture), own (what the model wrote).",
        ),
    ] = "bos+special+before+after",
    heads: Annotated[
        str,
        typer.Option(
            help="[bold]mean[/bold] averages the attention over heads first, [bold]each[/bold] averages the figures of the"
            " heads."
        ),
    ] = "mean",
    average: Annotated[
        str,
        typer.Option(
            help="[bold]samples[/bold] is the mean of each answer's figure, [bold]pooled[/bold] adds up attention and"
            " tokens of all answers first."
        ),
    ] = "samples",
    group: Annotated[
        int, typer.Option(help="How many layers each of the groups early, middle and late has.")
    ] = 2,
    max_new_tokens: MaxNewTokens = 128,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the picture's share of attention, token by token, into this file, a PNG.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure text dominance: MDI and AEI by groups of layers, and the picture's share of attention token by token.

        keepsight dominance demo --method pai:alpha=0.5 --method pai+vhr

    The model answers about every picture greedily, once as it is and once for each alternative. The definition leaves
    open what counts as text and how to average, so that figures under other choices are printed as well.
    """
    from keepsight.analysis.modality_dominance import measure_all
    from keepsight.cli._console import progress
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import joined, read_alternatives
    from keepsight.cli._model import open_model
    from keepsight.eval.modality_dominance.score import Reading
    from keepsight.experiments.environment import hardware, versions
    from keepsight.files import as_json
    from keepsight.inference.generation import Generation

    alternatives = read_alternatives(method, plain_first=True)
    reading = Reading(
        text=tuple(part.strip() for part in text.split("+")), heads=heads, average=average, group=group
    )
    generation = Generation(max_new_tokens=max_new_tokens)
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"the plot is a PNG: name {plot.with_suffix('.png')} instead of {plot}")
    count, shown, source = find_shown(model, images, split, limit)
    check_outputs([json_file, plot])

    loaded, processor = open_model(model, device, dtype)
    answers: list[list[Masses]] = [[] for _ in alternatives]
    # Each picture is shown under all alternatives before the next one is opened, so that one is in memory at a time.
    with progress(count * len(alternatives), "answering") as advance:
        for picture in shown:
            for recipes, found in zip(alternatives, answers, strict=True):
                found += measure_all(
                    loaded, processor, [picture], prompt, *recipes, raw=raw_prompt, generation=generation,
                    advance=advance,
                )  # fmt: skip
    names = [joined(recipes) for recipes in alternatives]
    facts = {"model": model, "prompt": prompt, **source, "max_new_tokens": max_new_tokens}
    if json_file is not None:
        numbers = as_numbers(names, answers, reading)
        run_on = {"hardware": hardware(loaded.device), "versions": versions()}
        write(json_file, as_json({**facts, **numbers, **run_on}))
    if plot is not None:
        _draw(plot, names, answers, model=model, prompt=prompt)
    if silent(json_file):
        return
    _show(names, answers, reading, model)
    for path in (json_file, plot):
        if path is not None:
            print(f"written: {path}")


def find_shown(
    model: str, images: Path | None, split: str | None, limit: int
) -> tuple[int, Iterator[Image], dict[str, Any]]:
    """How many pictures are shown to the model, the pictures, and where they are from, as entries of the JSON output.

    Files are all read once before a model is loaded, and again one by one when they are shown.

    Raises:
        InputError: a model other than the demo has no folder of pictures, or a split is named beside a folder.
        UnknownSplit: there is no such split.
        BadImage: a picture cannot be read.
    """
    from keepsight.cli._pictures import find_pictures
    from keepsight.inference.loading import DEMO
    from keepsight.source.images import open_picture

    if images is not None:
        if split is not None:
            raise InputError("--split names pictures of the demo world: leave it out, or --images")
        paths = find_pictures(images)[:limit]
        for path in paths:
            open_picture(path)
        return len(paths), (open_picture(path) for path in paths), {"images": str(images)}
    if model != DEMO:
        raise InputError(f"measuring {model} needs pictures: give a folder of them with --images")
    from keepsight.demo.splits import check_split
    from keepsight.demo.world import scenes

    split = check_split(split or SPLIT)
    return limit, (scene.image() for scene in scenes(split, limit)), {"split": split}


def as_numbers(names: Sequence[str], answers: Sequence[Sequence[Masses]], reading: Reading) -> dict[str, Any]:
    """Everything measured as plain data: under ``reading`` by group with intervals and by layer, under others by group.

    Args:
        names: the specs of the alternatives; that of the plain model is empty and comes first.
        answers: for each alternative what was measured on its answers, to the same pictures.
        reading: what counts as text, and how figures are averaged.
    """
    from keepsight.cli._dominance import figures_json
    from keepsight.eval.modality_dominance.score import groups
    from keepsight.eval.modality_dominance.summary import (
        difference,
        layer_figures,
        readings,
        share_curve,
        summary,
    )

    rows = []
    for name, found in zip(names, answers, strict=True):
        counts = [one.counts for one in found]
        row: dict[str, Any] = {
            "method": name or None,
            "generated": sum(one.rows for one in found),
            "counts": {part: sum(count[part] for count in counts) / len(counts) for part in counts[0]},
            "groups": figures_json(summary(found, reading, resamples=RESAMPLES)),
            "layers": layer_figures(found, reading),
            "tokens": share_curve(found),
            "readings": [
                {
                    "name": other,
                    **chosen.to_json(),
                    "groups": figures_json(summary(found, chosen, resamples=0)),
                }
                for other, chosen in readings(reading).items()
            ],
        }
        if name:
            row["difference"] = figures_json(difference(answers[0], found, reading, resamples=RESAMPLES))
        rows.append(row)
    return {
        "n": len(answers[0]),
        "reading": reading.to_json(),
        "layer_groups": {
            name: list(layers) for name, layers in groups(answers[0][0].layers, reading.group).items()
        },
        "bootstrap": {"resamples": RESAMPLES, "seed": 0, "level": 0.95},
        "rows": rows,
    }


def _draw(
    path: Path, names: Sequence[str], answers: Sequence[Sequence[Masses]], *, model: str, prompt: str
) -> None:
    """Draw the picture's share of attention token by token into a PNG."""
    from keepsight.cli.attention import save_png
    from keepsight.eval.modality_dominance.summary import share_curve
    from keepsight.reports.attention_figure import tint
    from keepsight.reports.attention_share_figure import Curve, share_figure

    curves = []
    for at, (name, found) in enumerate(zip(names, answers, strict=True)):
        points = share_curve(found)
        # Late tokens exist only in the longest answers. Where fewer than half of the answers are so long, the line is
        # pale.
        most = sum(2 * point["n"] >= len(found) for point in points)
        shares = [float(point["image_share"]) for point in points]
        curves.append(Curve(name or "plain", tint(at), shares, solid=most))
    notes = [
        f"Mean over {len(answers[0])} pictures, all layers and all heads, at the position that predicts each token, the"
        " end mark included. Pale: fewer than half of the answers are so long, so that the mean is of other pictures."
    ]
    save_png(share_figure(curves, heading=f"{model}   ·   {prompt}", notes=notes), path)


def _show(names: Sequence[str], answers: Sequence[Sequence[Masses]], reading: Reading, model: str) -> None:
    """Print figures, changes, other readings, and the picture's share token by token."""
    from rich.console import Console

    from keepsight.cli import _dominance as terminal
    from keepsight.eval.modality_dominance.score import groups
    from keepsight.eval.modality_dominance.summary import difference, readings, share_curve, summary

    console = Console(highlight=False, soft_wrap=True)
    told = [terminal.short(name) for name in names]
    summaries = [summary(found, reading, resamples=RESAMPLES) for found in answers]
    picked = groups(answers[0][0].layers, reading.group)
    terminal.show_figures(console, list(zip(told, summaries, strict=True)), picked)
    n = len(answers[0])
    compared = " and ".join(["plain", *names[1:]])
    intervals = "; under each figure its 95 % bootstrap interval over pictures" if n > 1 else ""
    console.print(f"{model}, {compared}, n = {n} pictures{intervals}.", style="dim", markup=False)
    console.print(terminal.tell_reading(reading, *answers), style="dim")
    console.print(terminal.LEGEND, style="dim")
    # An answer without any token of a part has no figure for it, and is left out of its mean.
    lacking = {one.n for found in summaries for figures in found.values() for one in figures.values()} - {n}
    if lacking:
        console.print(
            f"Some figures are of {min(lacking)} of the {n} pictures: in the others a denominator is zero.",
            style="yellow",
        )
    for name, found in zip(told[1:], answers[1:], strict=True):
        console.print()
        terminal.show_change(console, difference(answers[0], found, reading, resamples=RESAMPLES), name)
    console.print()
    other = {
        label: [summary(found, chosen, resamples=0) for found in answers]
        for label, chosen in readings(reading).items()
    }
    terminal.show_readings(console, other)
    console.print("\n[bold]the picture's share, token by token[/bold]")
    curves = [[float(point["image_share"]) for point in share_curve(found)] for found in answers]
    for name, line in zip(told, terminal.tell_shares(curves), strict=True):
        console.print(f"  {line}  {name}", markup=False)
