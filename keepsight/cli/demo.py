"""``keepsight demo``: the packaged model invents objects, methods take some of them back, CHAIR counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.demo.splits import DEFAULT_METHODS, SPLITS

if TYPE_CHECKING:
    from keepsight.method import Method


def demo(
    images: Annotated[int, typer.Option(min=1, help="How many drawn pictures.")] = 500,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            "--method",
            metavar="SPEC[,SPEC…]",
            help="What to compare with greedy (see [bold]keepsight methods[/bold]); may be repeated.",
            show_default=" and ".join(DEFAULT_METHODS),
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which pictures: " + ", ".join(SPLITS) + ".")] = "test-shifted",
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn world: another seed, other pictures.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")
    ] = None,
    captions: Annotated[
        bool, typer.Option("--captions", help="Put every caption into the --json file.")
    ] = False,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write one page with pictures, captions and figures here."
        ),
    ] = None,
) -> None:
    """Caption drawn pictures with the packaged model, greedily and mitigated, and count what it invents.

    The model is tiny and really trained; it hallucinates from what usually
    comes together. By default the pictures are those where that misleads it
    (test-shifted). The figures say what the methods do to this model, and
    nothing about any other.
    """
    from rich.console import Console

    from keepsight.cli._console import progress
    from keepsight.cli._results import show
    from keepsight.demo.model import WEIGHTS
    from keepsight.demo.splits import check_split
    from keepsight.errors import InputError
    from keepsight.experiments.demo_comparison import compare, digest
    from keepsight.files import as_json, check_writable, write_whole
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread

    recipes = split_specs(methods or list(DEFAULT_METHODS))
    check_split(split)
    if captions and json_file is None:
        raise InputError("--captions goes into the --json file: name one")
    for file in (json_file, html_file):
        if file is not None:
            check_writable(file)

    quiet_transformers()
    use_one_thread()
    model, processor = load(DEMO)
    with progress(images * (1 + len(recipes)), f"{images} pictures, {1 + len(recipes)} ways") as advance:
        comparison = compare(
            model,
            processor,
            recipes,
            split=split,
            n=images,
            seed=seed,
            batch=batch,
            weights=digest(WEIGHTS / "model.safetensors"),
            advance=advance,
        )
    if json_file is not None:
        write_whole(json_file, as_json(comparison.to_json(captions=captions)))
    if html_file is not None:
        from keepsight.reports.demo_page import page

        write_whole(html_file, page(comparison))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    show(console, comparison)
    for file in (json_file, html_file):
        if file is not None:
            console.print(f"wrote {file}", style="dim", markup=False, soft_wrap=True)


def split_specs(texts: list[str]) -> list[Method]:
    """The recipes in spec strings that commas join: ``vcd,m3id:decay=0.05,cutoff=0.05`` are two.

    A piece between commas that is ``parameter=value`` continues the spec before it.

    Raises:
        UnknownMethod, UnknownParameter, InvalidParameter: as ``keepsight.parse``.
    """
    from keepsight.registry import parse

    specs: list[str] = []
    for text in texts:
        first = len(specs)
        for piece in filter(None, (part.strip() for part in text.split(","))):
            if len(specs) > first and "=" in piece and ":" not in piece:
                specs[-1] += ("," if ":" in specs[-1] else ":") + piece
            else:
                specs.append(piece)
    return [parse(spec) for spec in specs]
