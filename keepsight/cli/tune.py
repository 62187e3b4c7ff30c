"""``keepsight tune``: tries a grid of a method's settings, and chooses the best that breaks no floor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import (
    OWN,
    Annotations,
    BenchBatch,
    BenchMaxNewTokens,
    BenchPrompt,
    BenchSeed,
    Device,
    Dtype,
    Family,
    GroundTruth,
    ImageFolder,
    JsonFile,
    Model,
    Parser,
    RawPrompt,
    References,
    Resamples,
    limit_option,
    one_method_option,
    split_option,
)
from keepsight.errors import InputError

CHOSEN, CURVE = "chosen.txt", "tuning.json"
"""The files that a tuning adds to the folder of its run."""
PICTURES = {"chair": 500, "pope": 100}
"""How many scenes of the demo world are taken by default."""


def tune(
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=V,V,…",
            help="Values of a parameter. Repeat the option for each parameter; all combinations are tried. Where several"
            " methods act together, NAME may be METHOD.PARAMETER.",
        ),
    ],
    model: Model = "demo",
    method: Annotated[list[str] | None, one_method_option("none: a method is required")] = None,
    bench: Annotated[
        str,
        typer.Option(
            help="On [bold]chair[/bold] the lowest CHAIR_i is chosen, on [bold]pope[/bold] the highest F1."
        ),
    ] = "chair",
    split: Annotated[str | None, split_option("val-shifted", "val-shifted or val")] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=POINTS",
            help="How much a figure may change against the baseline at worst, in points, such as recall=-1. Repeat the"
            " option for several figures; [bold]none[/bold] is no floor.",
            show_default="recall=-1",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        limit_option(f"{PICTURES['chair']} of the demo world ({PICTURES['pope']} for pope), all of your own"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the answers and the choice. If the same tuning was stopped there, it goes on where it"
            " stopped.",
            show_default="runs/tune-METHOD-BENCH-SPLIT",
        ),
    ] = None,
    reported: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A run that is reported. The tuning is refused if they share questions or pictures.",
        ),
    ] = None,
    images: ImageFolder = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="pope: the questions about your pictures. Repeat the option for each split.",
            rich_help_panel=OWN,
        ),
    ] = None,
    annotations: Annotations = None,
    references: References = None,
    ground_truth: GroundTruth = None,
    family: Family = "pattern",
    parser: Parser = "strict",
    prompt: BenchPrompt = None,
    raw_prompt: RawPrompt = False,
    max_new_tokens: BenchMaxNewTokens = None,
    seed: BenchSeed = 0,
    batch: BenchBatch = 16,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    resamples: Resamples = 10_000,
    json_file: JsonFile = None,
) -> None:
    """Choose a method's settings on validation pictures, under a floor, and show the whole curve.

        keepsight tune demo --method m3id --grid decay=0.02,0.05,0.1 --grid cutoff=0.02,0.1 --out runs/tune

        keepsight run demo --bench chair --split test --method "$(cat runs/tune/chosen.txt)" --out runs/test

    Every combination of the grid is tried, and the plain model beside them. The best setting that breaks no floor wins;
    by default, recall may not drop by more than one point. The folder then holds chosen.txt, the spec alone in a line,
    and tuning.json, the curve. Splits that are for reporting are refused, and [bold]keepsight compare[/bold] refuses
    this folder.
    """
    from rich.console import Console

    from keepsight.cli._files import check_outputs, silent, write
    from keepsight.cli._methods import only_one
    from keepsight.cli._model import open_model, quiet
    from keepsight.cli._run_console import shown
    from keepsight.cli._tune_table import broken, show
    from keepsight.cli.run import build
    from keepsight.eval.pope.answer_parsers import check_parser
    from keepsight.experiments import store
    from keepsight.experiments.compare import compare
    from keepsight.experiments.decoding_config import DecodingConfig
    from keepsight.experiments.environment import weights
    from keepsight.experiments.manifest import QUESTION, RunConfig
    from keepsight.experiments.runner import check_folder, execute
    from keepsight.experiments.scores import Scorer
    from keepsight.experiments.tune import (
        GOALS,
        BadGrid,
        NothingPasses,
        check_split,
        check_unreported,
        mark,
        parse_floor,
        pick,
        settings,
    )
    from keepsight.files import as_json, write_whole

    if bench not in GOALS:
        raise BadGrid(f"settings are chosen on {' or '.join(GOALS)}, not on {bench!r}")
    spec = only_one(method, "tune")
    if spec is None:
        raise BadGrid("there is nothing to tune: name a method, such as --method m3id")
    points = settings(spec, grid)
    wanted = floor or ["recall=-1"]
    floors = [] if wanted == ["none"] else [parse_floor(text, bench) for text in wanted]
    check_parser(parser)
    truth = [*(annotations or ()), *(references or ()), *(ground_truth or ())]
    if images is None and (questions or truth):
        raise InputError(
            "--questions and annotations are about pictures of your own: name their folder with --images"
        )
    if images is not None and split is not None:
        raise InputError("--split belongs to the demo world: leave it out beside --images")
    # A run can be scored with annotations later, but settings are chosen at once.
    if images is not None and bench == "chair" and not truth:
        raise InputError(
            "CHAIR needs what is in your pictures: --annotations, --references or --ground-truth"
        )
    check_outputs([json_file])
    chosen_on = build(
        bench,
        images,
        questions=questions or [],
        truth=truth,
        family=family if references else None,
        split=split or "val-shifted",
        limit=PICTURES[bench] if limit is None and images is None else limit,
        seed=0,
    )
    check_split(chosen_on)
    check_unreported(chosen_on, [store.open_run(folder) for folder in reported or ()])
    names = "-".join(one.name() for one in points[0].methods)
    folder = out or Path("runs") / f"tune-{names}-{bench}-{chosen_on.split}"
    config = RunConfig(
        bench=chosen_on,
        # The plain model decodes as the settings do, so that a difference to it is the method's alone.
        ways=(DecodingConfig(points[0].strategy), *points),
        model=model,
        dtype=dtype,
        prompt=QUESTION if prompt is None else prompt,
        raw_prompt=raw_prompt,
        max_new_tokens=max_new_tokens,
        batch=batch,
        seed=seed,
    )
    quiet(model)
    digest = weights(model)
    check_folder(folder, config, digest)
    loaded, processor = open_model(model, device, dtype)
    with shown(1, quiet=False) as tell:
        execute(config, loaded, processor, folder, weights=digest, on_progress=tell)
    run = store.open_run(folder)
    found = pick(
        # A tuning that is repeated compares a run that is marked as one, which is right here and nowhere else.
        compare([run], scorer=Scorer(family=family, parser=parser), resamples=resamples, allow_tuned=True),
        floors,
    )
    # The mark in the manifest lets ``keepsight compare`` refuse to report this run.
    store.write_manifest(folder, mark(run.manifest, found, spec, grid))
    curve = as_json(found.to_json())
    write_whole(folder / CURVE, curve)
    if json_file is not None:
        write(json_file, curve)
    console = Console(highlight=False)
    if not silent(json_file):
        show(console, found)
    if found.chosen is None:
        # An earlier tuning in this folder, under other floors, may have left a choice that no longer holds.
        (folder / CHOSEN).unlink(missing_ok=True)
        raise NothingPasses(
            f"{broken(found)}: the curve is in {folder / CURVE}; add weaker settings to the grid, or lower the floor"
        )
    write_whole(folder / CHOSEN, found.chosen.row.method + "\n")
    if silent(json_file):
        return
    console.print(f"[bold]chosen: {found.chosen.row.method}[/bold]", soft_wrap=True)
    print(f"wrote {folder / CHOSEN} and {folder / CURVE}")
