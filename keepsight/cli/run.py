"""``keepsight run``: asks a model a benchmark under several methods, and keeps the answers in a folder that survives a
stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import (
    DECODING,
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
    Model,
    RawPrompt,
    References,
    limit_option,
    method_option,
    split_option,
)
from keepsight.errors import InputError

if TYPE_CHECKING:
    from keepsight.experiments.benchmark import Benchmark

DEMO_PICTURES = 500
"""How many scenes of the demo world are asked about by default."""


def run(
    bench: Annotated[
        str,
        typer.Option(
            help="[bold]chair[/bold] asks for descriptions of pictures, [bold]pope[/bold] asks whether things are in"
            " them, and [bold]beaf[/bold] asks again after things were taken out.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for the answers. If the same run was stopped there, it goes on where it stopped.",
        ),
    ],
    model: Model = "demo",
    method: Annotated[list[str] | None, method_option("only the plain model")] = None,
    split: Annotated[str | None, split_option("test")] = None,
    limit: Annotated[int | None, limit_option(f"{DEMO_PICTURES} of the demo world, all of your own")] = None,
    world_seed: Annotated[
        int | None,
        typer.Option(help="Seed of the demo world: another seed gives other pictures.", show_default="0"),
    ] = None,
    images: ImageFolder = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="pope and beaf: the questions about your pictures, in POPE's or BEAF's own form. Repeat the option for"
            " each split of POPE (coco_pope_random.json, …).",
            rich_help_panel=OWN,
        ),
    ] = None,
    annotations: Annotations = None,
    references: References = None,
    ground_truth: GroundTruth = None,
    family: Family = "pattern",
    decode: Annotated[
        str,
        typer.Option(
            metavar="DECODING",
            help="How tokens are chosen: [bold]greedy[/bold], [bold]sample:temperature=1,top_p=1[/bold] or"
            " [bold]beam:num_beams=5[/bold]. A --method may name its own first, as in"
            " [bold]sample:temperature=0.7+vcd[/bold].",
            rich_help_panel=DECODING,
        ),
    ] = "greedy",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DECODING",
            help="How the plain model chooses tokens. Repeat the option to have it answer in several ways; methods are"
            " compared with the first.",
            show_default="that of --decode",
            rich_help_panel=DECODING,
        ),
    ] = None,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Leave the plain model out.", rich_help_panel=DECODING)
    ] = False,
    prompt: BenchPrompt = None,
    raw_prompt: RawPrompt = False,
    max_new_tokens: BenchMaxNewTokens = None,
    seed: BenchSeed = 0,
    batch: BenchBatch = 16,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="When a run goes on, ask again what failed before.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Refuse to start unless so many processes share the run.",
            show_default="as many as the launcher started",
        ),
    ] = None,
) -> None:
    """Ask a model the questions of a benchmark under several methods, and keep every answer.

        keepsight run demo --bench pope --method vcd --method m3id+vhr --limit 100 --out runs/pope

        torchrun --nproc_per_node 4 -m keepsight run llava-hf/llava-1.5-7b-hf --bench chair --images val2014
        --device cuda --method m3id --out runs/llava

    The plain model is always among the alternatives. Every answer is on disk as soon as it is there: a run that was
    stopped, in whatever way, goes on when the same command is given again. A question that fails is recorded as failed,
    never as an empty answer. [bold]keepsight compare[/bold] reads the folder.
    """
    from rich.console import Console

    from keepsight.cli._model import device_map, quiet
    from keepsight.cli._run_console import shown, summarise
    from keepsight.eval.chair.score import check_family
    from keepsight.experiments.decoding_config import build_configs
    from keepsight.experiments.distributed import (
        MainProcessFailed,
        check_launch,
        end_process,
        init_process_group,
        launched_processes,
    )
    from keepsight.experiments.environment import weights
    from keepsight.experiments.manifest import QUESTION, RunConfig
    from keepsight.experiments.runner import check_folder, execute
    from keepsight.inference.loading import load

    check_launch(processes)
    check_family(family)
    if no_baseline and baseline:
        raise InputError("--baseline and --no-baseline exclude each other")
    configs = build_configs(method or (), [] if no_baseline else baseline or None, decode)
    where = device_of(device, launched_processes())
    truth = [*(annotations or ()), *(references or ()), *(ground_truth or ())]
    if images is None and (questions or truth):
        raise InputError(
            "--questions and the annotations are about pictures of your own: name their folder with --images"
        )
    if images is not None and (split is not None or world_seed is not None):
        raise InputError("--split and --world-seed belong to the demo world: leave them out beside --images")
    config = RunConfig(
        bench=build(
            bench,
            images,
            questions=questions or [],
            truth=truth,
            # The family says how captions are read. Other annotations name the objects themselves.
            family=family if references else None,
            split=split or "test",
            limit=limit,
            seed=world_seed or 0,
        ),
        ways=configs,
        model=model,
        dtype=dtype,
        prompt=QUESTION if prompt is None else prompt,
        raw_prompt=raw_prompt,
        max_new_tokens=max_new_tokens,
        batch=batch,
        seed=seed,
    )
    quiet(model)
    group = init_process_group(processes)
    try:
        # One process reads the weights for all: they may be tens of gigabytes. The folder is checked before the model is
        # loaded, so that another run in it is refused at once.
        digest = group.on_main_process(lambda: weights(model))
        group.on_main_process(lambda: check_folder(out, config, digest))
        loaded, processor = load(
            model,
            dtype=dtype,
            device_map=f"cuda:{group.local_rank}"
            if where == "cuda" and group.world_size > 1
            else device_map(where),
        )
        with shown(group.world_size, quiet=group.rank > 0) as tell:
            finished = execute(
                config,
                loaded,
                processor,
                out,
                weights=digest,
                group=group,
                retry_failed=retry_failed,
                on_progress=tell,
            )
    except MainProcessFailed:
        # The main process prints the error, and the others leave with the same exit code without a word.
        raise typer.Exit(2) from None
    finally:
        group.destroy()
    if group.rank == 0:
        summarise(Console(highlight=False), finished)
    if group.world_size > 1:
        end_process()


def build(
    name: str,
    images: Path | None,
    *,
    questions: list[Path],
    truth: list[Path],
    family: str | None,
    split: str,
    limit: int | None,
    seed: int,
) -> Benchmark:
    """The benchmark over the user's pictures if there is a folder of them, else over the demo world's."""
    from keepsight.experiments.open_benchmark import demo_benchmark, user_benchmark

    if images is None:
        return demo_benchmark(name, split, DEMO_PICTURES if limit is None else limit, seed)
    return user_benchmark(name, images=images, questions=questions, truth=truth, family=family, limit=limit)


def device_of(device: str, processes: int) -> str:
    """Check a device for the number of processes, and return it.

    Raises:
        InputError: each of several processes would spread its model over the GPUs of all.
    """
    if processes > 1 and device in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise InputError(
            f"--device {device} spreads one model over all GPUs, and {processes} processes would each do so: use --device"
            " cuda, which gives each process a GPU, or start one process"
        )
    return device
