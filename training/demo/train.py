"""Train the demo model from nothing: ``python -m training.demo.train --out DIR --seed 0``.

Draws the scenes, trains the three stages, writes ``DIR/checkpoint`` (what the package ships) and
``DIR/checkpoint/training-log.json``. Every stage leaves its result in ``DIR``; the command run again goes on after
the last finished stage. The same arguments on the same machine give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keepsight.demo import art, world
from keepsight.errors import KeepsightError
from training.demo.train_stages import Recipe, load_lines, train_joint, train_text, train_vision


class RecipeChanged(KeepsightError):
    """The directory holds stages of another recipe."""


def train(out: Path, recipe: Recipe, threads: int = 2, device: str = "cpu") -> Path:
    """Run every stage that ``out`` does not hold yet, and return the checkpoint's directory.

    Args:
        out: the directory of the run; it is created if need be.
        recipe: the settings of all stages.
        threads: the number of worker processes on the CPU, 1 or more.
        device: ``cpu`` or a CUDA device.

    Raises:
        RecipeChanged: ``out`` was begun with another recipe, number of threads or device.
    """
    out.mkdir(parents=True, exist_ok=True)
    # The number of threads and the device change the order of sums, and so the weights: a run is not continued with others.
    given = {"recipe": asdict(recipe), "threads": threads, "device": device}
    begun = out / "recipe.json"
    if begun.is_file() and json.loads(begun.read_text()) != given:
        raise RecipeChanged(f"{out} holds a training with other settings: give another --out")
    begun.write_text(json.dumps(given))

    # The scenes and the tokenizer are one stage of their own, as all others read them.
    def draw() -> None:
        from training.demo.train_data import render_split, train_tokenizer

        train_tokenizer(recipe.seed).save_pretrained(out / "tokenizer")
        for split, n in (
            ("train", recipe.scenes),
            ("train-mixed", recipe.mixed_scenes),
            ("val", recipe.check_scenes),
        ):
            render_split(out / "data", split, n, recipe.seed, threads)
        (out / "scenes.json").write_text(json.dumps({"scenes": recipe.scenes + recipe.mixed_scenes}))

    def staged(task: Callable[..., None]) -> Callable[[], None]:
        from training.demo.train_team import work_together

        return lambda: work_together(task, (recipe, out), threads, device)

    _once(out, "scenes", draw)
    _once(out, "vision", staged(train_vision))
    _once(out, "text", staged(train_text))
    _once(out, "joint", staged(train_joint))
    return write_checkpoint(out)


def _once(out: Path, stage: str, task: Callable[[], None]) -> None:
    """Run a stage unless its timing is on disk. The timing is written last, so an interrupted stage runs again."""
    done = out / f"{stage}-timing.json"
    if done.is_file():
        print(f"{stage}: done before", flush=True)
        return
    print(f"{stage}: started", flush=True)
    wall, cpu = time.time(), _cpu_seconds()
    task()
    timing = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall)),
        "wall_seconds": round(time.time() - wall, 1),
        "cpu_seconds": round(_cpu_seconds() - cpu, 1),
    }
    done.write_text(json.dumps(timing))
    print(f"{stage}: {timing['wall_seconds']} s wall, {timing['cpu_seconds']} s CPU", flush=True)


def _cpu_seconds() -> float:
    """Returns the CPU seconds of this process and of its finished worker processes."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def write_checkpoint(out: Path) -> Path:
    """Write the float16 checkpoint with tokenizer, processor, chat template and log from the stages in ``out``."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from keepsight.demo.model import build_model, build_processor

    folder = out / "checkpoint"
    # A checkpoint of an earlier version of the code may hold files that this one does not write.
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    model = build_model(load_lines(out).vocabulary)
    # The head shares its weights with the embeddings and was left out of
    # the file, so it is the one thing that may be missing.
    missing = model.load_state_dict(load_file(out / "joint.safetensors"), strict=False)
    if missing.unexpected_keys or missing.missing_keys != ["lm_head.weight"]:
        raise RecipeChanged(
            f"{out / 'joint.safetensors'} does not fit the model: train again in another --out"
        )
    model.tie_weights()
    model.to(torch.float16).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    (folder / "training-log.json").write_text(json.dumps(write_log(out), indent=1) + "\n")
    return folder


def write_log(out: Path) -> dict[str, Any]:
    """Returns the training log: settings, versions, hardware, and for each stage its seconds, losses and checks."""
    import numpy
    import PIL
    import tokenizers
    import torch
    import transformers

    stages = {}
    for stage in ("scenes", "vision", "text", "joint"):
        timing = json.loads((out / f"{stage}-timing.json").read_text())
        stages[stage] = {**timing, **json.loads((out / f"{stage}.json").read_text())}
    # The drawings depend on the code of these two files, whose digests tell whether the scenes can be drawn again.
    sources = {
        Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        for path in (art.__file__, world.__file__)
        if path
    }
    return {
        "command": "python -m training.demo.train",
        **json.loads((out / "recipe.json").read_text()),
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: str(m.__version__) for m in (torch, transformers, tokenizers, numpy)},
            "pillow": PIL.__version__,
        },
        "hardware": {"processor": _processor(), "cores": os.cpu_count()},
        "sources_sha256": sources,
        "wall_seconds": round(sum(stage["wall_seconds"] for stage in stages.values()), 1),
        "cpu_seconds": round(sum(stage["cpu_seconds"] for stage in stages.values()), 1),
        "stages": stages,
    }


def _processor() -> str:
    """Returns the name of the CPU."""
    info = Path("/proc/cpuinfo")
    # ``platform.processor()`` is empty or as vague as "x86_64" on most Linux systems.
    if info.is_file():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        if named:
            return named[0]
    return platform.processor() or platform.machine()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.demo.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the run; resumed when it holds one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="worker processes on the CPU")
    arguments = parser.parse_args()
    print(train(arguments.out, Recipe(seed=arguments.seed), arguments.threads, arguments.device))


if __name__ == "__main__":
    main()
