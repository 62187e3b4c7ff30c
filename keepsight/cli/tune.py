"""``keepsight tune``: a method and a grid of settings in, the whole curve and the best setting under a floor out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import DeviceMap, Dtype, Model, RawPrompt
from keepsight.errors import InputError

CHOSEN, CURVE = "chosen.txt", "tuning.json"
PICTURES = {"chair": 500, "pope": 100}
_OWN, _HOW = "Your own pictures", "Decoding"


def tune(
    method: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="The method, with what the grid leaves as it is: m3id:cutoff=0.02."
        ),
    ],
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=V,V,…",
            help="Values of a parameter. Give the option once for each parameter; all combinations are tried.",
        ),
    ],
    bench: Annotated[
        str, typer.Option(help="[bold]chair[/bold]: the lowest CHAIR_i. [bold]pope[/bold]: the highest F1.")
    ] = "chair",
    split: Annotated[
        str | None,
        typer.Option(help="Of the demo world: val-shifted or val.", show_default="val-shifted"),
    ] = None,
    model: Model = "demo",
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=POINTS",
            help="How much a figure may change against the baseline, at worst, in points: recall=-1. May be repeated;"
            " [bold]none[/bold] for no floor.",
            show_default="recall=-1",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "--n",
            metavar="N",
            help="Only the first N pictures.",
            show_default=f"{PICTURES['chair']} of the demo world (pope: {PICTURES['pope']}), all of your own",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the answers and the choice; given again, a stopped tuning goes on.",
            show_default="runs/tune-METHOD-BENCH-SPLIT",
        ),
    ] = None,
    reported: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A run that is reported: refused if it shares questions or pictures with this bench.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of your pictures, instead of the demo world.", rich_help_panel=_OWN
        ),
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="pope: the questions, once for each split.", rich_help_panel=_OWN),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="chair: COCO instances.", rich_help_panel=_OWN),
    ] = None,
    references: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="chair: COCO captions.", rich_help_panel=_OWN)
    ] = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--ground-truth",
            metavar="FILE",
            help='chair: JSON lines of {"image_id": 42, "objects": ["cat"]}.',
            rich_help_panel=_OWN,
        ),
    ] = None,
    family: Annotated[str, typer.Option(help="chair: pattern or wordnet.", rich_help_panel=_OWN)] = "pattern",
    parser: Annotated[str, typer.Option(help="pope: the rule that reads yes or no.")] = "strict",
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to ask; {question} stands for the bench's own.",
            show_default="{question}",
            rich_help_panel=_HOW,
        ),
    ] = None,
    raw_prompt: RawPrompt = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer, in tokens.", show_default="512 for chair, 32 for pope", rich_help_panel=_HOW
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.", rich_help_panel=_HOW)] = 0,
    batch: Annotated[int, typer.Option(help="Questions answered together.", rich_help_panel=_HOW)] = 16,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples; 0 for no intervals.")] = 10_000,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the curve and the choice here too.")
    ] = None,
) -> None:
    """Choose a method's settings on validation pictures, under a floor, and show the whole curve.

    Tries every combination of the grid, and the plain model beside them. The best setting wins that
    does not break a floor: by default recall may not drop by more than one point. The folder then
    holds chosen.txt, the spec alone in a line, and tuning.json, the curve. Splits that are for
    reporting are refused, and keepsight compare refuses this folder.

        keepsight tune --method m3id --grid decay=0.02,0.05,0.1 --grid cutoff=0.02,0.1 --out runs/tune

        keepsight run --bench chair --split test --method "$(cat runs/tune/chosen.txt)" --out runs/test
    """
    from rich.console import Console

    from keepsight.cli._run_console import shown
    from keepsight.cli._tune_table import broken, show
    from keepsight.cli.run import build
    from keepsight.eval.pope.answer_parsers import check_parser
    from keepsight.experiments import store
    from keepsight.experiments.compare import compare
    from keepsight.experiments.decoding_config import Way
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
    from keepsight.files import as_json, check_writable, write_whole
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread

    if bench not in GOALS:
        raise BadGrid(f"settings are chosen on {' or '.join(GOALS)}, not on {bench!r}")
    ways = settings(method, grid)
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
    if images is not None and bench == "chair" and not truth:
        raise InputError(
            "CHAIR needs what is in your pictures: --annotations, --references or --ground-truth"
        )
    if json_file is not None:
        check_writable(json_file)
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
    names = "-".join(one.name() for one in ways[0].methods)
    folder = out or Path("runs") / f"tune-{names}-{bench}-{chosen_on.split}"
    config = RunConfig(
        bench=chosen_on,
        ways=(Way(ways[0].decoding), *ways),
        model=model,
        dtype=dtype,
        prompt=QUESTION if prompt is None else prompt,
        raw_prompt=raw_prompt,
        max_new_tokens=max_new_tokens,
        batch=batch,
        seed=seed,
    )
    quiet_transformers(bars=model != DEMO)
    if model == DEMO:
        use_one_thread()
    digest = weights(model)
    check_folder(folder, config, digest)
    loaded, processor = load(model, dtype=dtype, device_map=device_map)
    with shown(1, quiet=False) as tell:
        execute(config, loaded, processor, folder, weights=digest, on_progress=tell)
    run = store.open_run(folder)
    found = pick(
        compare([run], scorer=Scorer(family=family, parser=parser), resamples=resamples, allow_tuned=True),
        floors,
    )
    store.write_manifest(folder, mark(run.manifest, found, method, grid))
    curve = as_json(found.to_json())
    write_whole(folder / CURVE, curve)
    if json_file is not None:
        write_whole(json_file, curve)
    console = Console(highlight=False)
    show(console, found)
    if found.chosen is None:
        (folder / CHOSEN).unlink(missing_ok=True)
        raise NothingPasses(
            f"{broken(found)}: the curve is in {folder / CURVE}; add weaker settings to the grid, or lower the floor"
        )
    write_whole(folder / CHOSEN, found.chosen.row.method + "\n")
    console.print(f"[bold]chosen: {found.chosen.row.method}[/bold]", soft_wrap=True)
    print(f"wrote {folder / CHOSEN} and {folder / CURVE}")
