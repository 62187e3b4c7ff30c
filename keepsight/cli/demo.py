"""``keepsight demo``: runs the packaged model on drawn pictures, and compares the methods with plain greedy search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import HtmlFile, JsonFile, Limit, method_option
from keepsight.demo.splits import DEFAULT_METHODS, SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from keepsight.demo.world import Scene
    from keepsight.experiments.compare import Comparison

LONGEST = 64
"""The longest caption in tokens. The demo model was trained to end its captions, which are shorter."""
EXAMPLES = 3
"""How many pictures have their captions printed."""


def demo(
    method: Annotated[list[str] | None, method_option(" and ".join(DEFAULT_METHODS))] = None,
    split: Annotated[
        str, typer.Option(help="Split of the demo world: " + ", ".join(SPLITS) + ".")
    ] = "test-shifted",
    limit: Limit = 500,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of the drawn world and of sampling. Another seed gives other pictures."
        ),
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="How many pictures are captioned together.")] = 32,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the run, with every caption, in this folder for [bold]keepsight compare[/bold]. A run that was"
            " stopped there is continued.",
            show_default="a temporary folder",
        ),
    ] = None,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Caption drawn pictures with the packaged model, with and without methods, and count what it invents.

    The model is tiny, and was really trained. It has learned which objects
    usually come together, and names them even where they are missing. By
    default the pictures are those in which that misleads it (test-shifted).
    The figures say what the methods do to this model, and nothing about
    any other.
    """
    import tempfile
    from contextlib import ExitStack

    from rich.console import Console

    from keepsight.cli._compare_tables import show
    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._run_console import shown
    from keepsight.demo.world import scenes
    from keepsight.experiments.compare import compare
    from keepsight.experiments.decoding_config import build_configs
    from keepsight.experiments.environment import weights
    from keepsight.experiments.manifest import RunConfig
    from keepsight.experiments.open_benchmark import demo_benchmark
    from keepsight.experiments.runner import check_folder, execute
    from keepsight.files import as_json
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread

    plan = RunConfig(
        bench=demo_benchmark("chair", split, limit, seed),
        ways=build_configs(method or DEFAULT_METHODS),
        model=DEMO,
        max_new_tokens=LONGEST,
        batch=batch,
        seed=seed,
    )
    check_outputs([json_file, html_file])
    digest = weights(DEMO)
    if out is not None:
        check_folder(out, plan, digest)

    quiet_transformers()
    use_one_thread()
    model, processor = load(DEMO)
    with ExitStack() as stack:
        folder = out
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keepsight-demo-"))) / "run"
        with shown(1, quiet=False) as tell:
            run = execute(plan, model, processor, folder, weights=digest, on_progress=tell)
        comparison = compare([run])
    drawn = scenes(split, limit, seed)
    # A temporary folder is gone by now, and its path would only mislead.
    kept = out is not None
    if json_file is not None:
        write(json_file, as_json(comparison.to_json(folders=kept)))
    if html_file is not None:
        from keepsight.reports.demo_page import page

        write(html_file, page(comparison, drawn, folders=kept))
    if silent(json_file, html_file):
        return
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A file or a pipe has no width, and rich assumes one that is too narrow for the tables.
        console.width = 110
    show_examples(console, comparison, drawn, EXAMPLES)
    show(console, comparison)
    for file in (json_file, html_file):
        if file is not None:
            console.print(f"wrote {file}", style="dim", markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"The run is in {out}", style="dim", markup=False, soft_wrap=True)


def show_examples(console: Console, comparison: Comparison, drawn: Sequence[Scene], most: int) -> None:
    """Print the captions of the first ``most`` pictures on which the methods differ, with unsupported words marked.

    Args:
        console: where to print.
        comparison: the comparison of the run.
        drawn: the scenes in the order of the run's questions.
        most: how many pictures are shown.
    """
    from rich.table import Table
    from rich.text import Text

    from keepsight.cli._console import mark
    from keepsight.reports.caption_examples import caption_examples, short_names

    split = comparison.merged.runs[0].manifest["bench"]["split"]
    colour = console.color_system is not None
    console.print(Text(f"{split}: {SPLITS[split]}"))
    examples = caption_examples(comparison)
    differing = [example for example in examples if example.differ][:most]
    if differing:
        marked = "struck words" if colour else "[words in brackets]"
        which = f"The first pictures of {len(examples)} on which the captions differ"
        console.print(Text(f"{which}; {marked} are not in the picture."), style="dim")
    names = short_names([row.method for row in comparison.rows])
    for example in differing:
        scene = drawn[example.number - 1]
        console.print()
        console.print(
            Text(f"picture {example.number}, {scene.context}: {', '.join(scene.names)}"), style="bold"
        )
        grid = Table.grid(padding=(0, 2))
        for name, judged in zip(names, example.captions, strict=True):
            grid.add_row(
                Text(f"  {name}"),
                Text.from_ansi(mark(judged.caption, judged.hallucinated, colour=colour)),
            )
        console.print(grid)
    console.print()
