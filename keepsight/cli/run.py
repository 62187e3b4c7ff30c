"""``keepsight run``: a bench, a model and ways of decoding in, a folder of answers out that survives being killed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli._options import DeviceMap, Dtype, Model, RawPrompt
from keepsight.errors import InputError

if TYPE_CHECKING:
    from keepsight.experiments.benchmark import Benchmark

DEMO_PICTURES = 500
_OWN, _HOW, _MANY = "Your own pictures", "Decoding", "Many processes"


def run(
    bench: Annotated[
        str,
        typer.Option(
            help="[bold]chair[/bold] describes pictures; [bold]pope[/bold] asks whether things are in them;"
            " [bold]beaf[/bold] asks again after things were taken out.",
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
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="SPEC",
            help="One more way of answering, such as [bold]m3id:decay=0.05[/bold] (see [bold]keepsight methods[/bold])."
            " Give the option once for each. Within one, methods parted by spaces compose:"
            " [bold]'pai vhr'[/bold]; a decoding may come first: [bold]'sample vcd'[/bold].",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of the demo world: test, test-shifted, val or val-shifted.", show_default="test"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Only the first N pictures, with all questions about them.",
            show_default=f"{DEMO_PICTURES} of the demo world, all of your own",
        ),
    ] = None,
    world_seed: Annotated[
        int | None, typer.Option(help="Of the demo world: another one is other pictures.", show_default="0")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of your pictures, instead of the demo world.",
            rich_help_panel=_OWN,
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The questions about them in POPE's or BEAF's own form. POPE: once for each split"
            " (coco_pope_random.json, …).",
            rich_help_panel=_OWN,
        ),
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="chair: COCO instances that say what is in your pictures, as for [bold]keepsight chair[/bold]. What is"
            " true can also be told later.",
            rich_help_panel=_OWN,
        ),
    ] = None,
    references: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="chair: COCO captions, likewise.", rich_help_panel=_OWN),
    ] = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--ground-truth",
            metavar="FILE",
            help='chair: JSON lines of {"image_id": 42, "objects": ["cat"]}, instead of COCO files.',
            rich_help_panel=_OWN,
        ),
    ] = None,
    family: Annotated[
        str,
        typer.Option(help="chair: how --references are read, pattern or wordnet.", rich_help_panel=_OWN),
    ] = "pattern",
    decode: Annotated[
        str,
        typer.Option(
            metavar="DECODING",
            help="How tokens are chosen where a method does not say: [bold]greedy[/bold],"
            " [bold]sample:temperature=1,top_p=1[/bold] or [bold]beam:num_beams=5[/bold].",
            rich_help_panel=_HOW,
        ),
    ] = "greedy",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DECODING",
            help="The plain model, answering in this way too; may be repeated. The methods are compared with the first.",
            show_default="that of --decode",
            rich_help_panel=_HOW,
        ),
    ] = None,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Leave the plain model out.", rich_help_panel=_HOW)
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to ask; {question} stands for the bench's own question:"
            ' "{question} Answer yes or no."',
            show_default="{question}",
            rich_help_panel=_HOW,
        ),
    ] = None,
    raw_prompt: RawPrompt = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer, in tokens.",
            show_default="512 for chair, 32 for pope and beaf",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of sampling. Every question has a stream of its own.", rich_help_panel=_HOW),
    ] = 0,
    batch: Annotated[int, typer.Option(help="Questions answered together.", rich_help_panel=_HOW)] = 16,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="When going on: ask again what failed before.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Refuse to start unless so many processes share the run.",
            show_default="as many as the launcher started",
            rich_help_panel=_MANY,
        ),
    ] = None,
) -> None:
    """Ask a model a bench of questions in several ways of decoding, and keep every answer.

    The plain model is always among them. Each answer is on disk as soon as it is there: a run that
    was stopped, in whatever way, goes on when the same command is given again. A question that fails
    is recorded as failed, never as an empty answer.

        keepsight run --bench pope --method vcd --method m3id --limit 100 --out runs/pope

        torchrun --nproc_per_node 4 -m keepsight run --bench chair --images val2014
        --model llava-hf/llava-1.5-7b-hf --device-map cuda --method m3id --out runs/llava
    """
    from rich.console import Console

    from keepsight.cli._run_console import shown, summarise
    from keepsight.eval.chair.score import check_family
    from keepsight.experiments.decoding_config import choose
    from keepsight.experiments.distributed import (
        MainProcessFailed,
        check_launch,
        init_process_group,
        launched_processes,
    )
    from keepsight.experiments.environment import weights
    from keepsight.experiments.manifest import QUESTION, RunConfig
    from keepsight.experiments.runner import check_folder, execute
    from keepsight.inference.loading import DEMO, load, quiet_transformers, use_one_thread

    check_launch(processes)
    check_family(family)
    if no_baseline and baseline:
        raise InputError("--baseline and --no-baseline exclude each other")
    ways = choose(method or (), [] if no_baseline else baseline or None, decode)
    where = device_of(device_map, launched_processes())
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
            family=family if references else None,
            split=split or "test",
            limit=limit,
            seed=world_seed or 0,
        ),
        ways=ways,
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
    group = init_process_group(processes)
    try:
        digest = group.on_main_process(lambda: weights(model))
        group.on_main_process(lambda: check_folder(out, config, digest))
        loaded, processor = load(
            model,
            dtype=dtype,
            device_map=f"cuda:{group.local_rank}" if where == "cuda" and group.world_size > 1 else where,
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
        raise typer.Exit(2) from None
    finally:
        group.destroy()
    if group.rank == 0:
        summarise(Console(highlight=False), finished)


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
    """The user's bench if there is a folder of pictures, else the demo world's."""
    from keepsight.experiments.open_benchmark import demo_benchmark, user_benchmark

    if images is None:
        return demo_benchmark(name, split, DEMO_PICTURES if limit is None else limit, seed)
    return user_benchmark(name, images=images, questions=questions, truth=truth, family=family, limit=limit)


def device_of(device_map: str | None, processes: int) -> str | None:
    """``device_map`` itself.

    Raises:
        InputError: one of several processes would spread its model over the GPUs of all.
    """
    if processes > 1 and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise InputError(
            f"--device-map {device_map} spreads one model over all GPUs, and {processes} processes would each do so: use"
            " --device-map cuda, which gives each process a GPU, or start one process"
        )
    return device_map
