"""Verifies methods on LLaVAs with random weights on a GPU, and times them, within a number of minutes.

``benchmarks/gpu/run`` starts it. Each step writes a file of its own as soon as it is done, so that a run that is cut short
keeps what it has. The exit code is 1 if anything is WRONG.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from keepsight.experiments.environment import hardware, versions
from keepsight.experiments.latency.run import Settings
from keepsight.experiments.latency.run import run as bench
from keepsight.experiments.latency.subjects import SHAPES, Source, Subject, build
from keepsight.files import as_json, write_whole
from keepsight.inference.loading import quiet_transformers
from keepsight.verification import Report, verify_inputs

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
TINY: dict[str, Any] = {
    "text": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 32064},
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip
"""The shape of a dry run."""
METHODS = ("m3id", "vcd", "pai", "pai:alpha=0.0", "vhr", "vsv", "vsv:site=mlp", "sla", "var", "m3id+vhr")
FEW = ("m3id", "vcd", "pai:first_layer=0", "vhr", "vsv", "sla:window=2", "var")
"""What a dry run checks, at settings that four layers have room for."""
TIMED = ("m3id", "vcd", "pai", "vhr", "vsv")
SPREAD = 8.0
"""By how much the output projection of random weights is widened: fresh ones give all tokens nearly the same score, and
rounding could not be told from a difference."""


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Args:
        name: that of its file.
        seconds: how long it may take on an H200 or a card like it; a step is left out where less is left.
        run: does it, and returns what is written.
    """

    name: str
    seconds: float
    run: Callable[[], dict[str, Any]]


def padded(subject: Subject, cut: int = 7) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two prompts padded on the left to one batch, the second shorter by some tokens, and each of them alone."""
    both = subject.inputs(2)
    ids, mask, pixels = both["input_ids"], both["attention_mask"], both["pixel_values"]
    each = len(pixels) // 2
    short = torch.cat([ids[1, :1], ids[1, 1 + cut :]]) if ids[1, 1 + cut] < 32000 else ids[1, :-cut]
    ids, mask = ids.clone(), mask.clone()
    ids[1, cut:], ids[1, :cut], mask[1, :cut] = short, 0, 0
    rows = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row[None]), "pixel_values": part}
        for row, part in zip((ids[0], short), pixels.split(each), strict=True)
    ]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, rows


def verified(
    shape: str, sizes: dict[str, Any], device: str, dtype: str, image_tokens: int, specs: Sequence[str]
) -> dict[str, Any]:
    """Every check of some methods on random weights of a shape."""
    subject = build(Source(shape=sizes, device=device, dtype=dtype, image_tokens=image_tokens))
    with torch.no_grad():
        subject.model.get_output_embeddings().weight.mul_(SPREAD)
    subject.model.generation_config.pad_token_id = 0
    batch, rows = padded(subject)
    begun = time.perf_counter()
    report: Report = verify_inputs(subject.model, rows[0], (batch, rows), methods=specs)
    return {
        "subject": f"random weights, shape {shape}",
        "seconds": time.perf_counter() - begun,
        "hardware": hardware(device),
        "seed": 0,
        **report.as_dict(),
    }


def timed(shape: str, sizes: dict[str, Any], device: str, dtype: str, settings: Settings) -> dict[str, Any]:
    """What methods cost on random weights of a shape, amateurs in shared passes and apart."""
    found = bench(Source(shape=sizes, device=device, dtype=dtype), settings, TIMED)
    return {**found, "subject": f"random weights, shape {shape}", "seed": 0}


def plan(dry: bool) -> list[Step]:
    """The steps in their order, the surest figures first."""

    def check(shape: str, dtype: str, seconds: float) -> Step:
        name = f"verify-{shape}-{dtype}"
        if dry:
            return Step(name, 20, lambda: verified("tiny", TINY, "cpu", dtype, 16, FEW))
        return Step(name, seconds, lambda: verified(shape, SHAPES[shape], "cuda", dtype, 576, METHODS))

    def cost(shape: str, seconds: float) -> Step:
        if dry:
            few = Settings(new_tokens=(8,), batch=(1,), image_tokens=(16,), repeats=1, peers=(), memory=False)
            return Step(f"bench-{shape}", 20, lambda: timed("tiny", TINY, "cpu", "float32", few))
        settings = Settings(new_tokens=(64,), batch=(1, 8), repeats=3, peers=("naive",))
        return Step(
            f"bench-{shape}", seconds, lambda: timed(shape, SHAPES[shape], "cuda", "bfloat16", settings)
        )

    if dry:
        return [check("tiny", "float32", 20), check("tiny", "bfloat16", 20), cost("tiny", 20)]
    return [
        check("130m", "float32", 60), check("1b", "bfloat16", 60), check("1b", "float16", 60),
        cost("1b", 75), check("7b", "bfloat16", 90), cost("7b", 120),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 1 if anything is wrong or fails, else 0."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--minutes", type=float, default=8.0, help="how long all of it may take (default 8)")
    asked.add_argument(
        "--out", type=Path, default=None, help="folder of the results (default benchmarks/results/gpu)"
    )
    asked.add_argument("--dry-run", action="store_true", help="on the CPU with tiny shapes")
    options = asked.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    if not options.dry_run and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --dry-run does the same on the CPU", file=sys.stderr)
        return 2
    out = options.out or (Path(tempfile.mkdtemp(prefix="keepsight-gpu-")) if options.dry_run else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    quiet_transformers()
    print(f"{hardware('cpu' if options.dry_run else 'cuda')}\n{versions()}\nresults in {out}", flush=True)
    wrong = 0
    for step in plan(options.dry_run):
        left = end - time.monotonic()
        if left < step.seconds:
            print(
                f"{step.name}: left out, {left:.0f} s are left and it may take {step.seconds:.0f}", flush=True
            )
            continue
        begun = time.monotonic()
        try:
            found = step.run()
        except Exception as error:  # the other steps still tell something
            wrong += 1
            print(f"{step.name}: failed, {type(error).__name__}: {error}", flush=True)
            continue
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        write_whole(out / f"{step.name}.json", as_json({"versions": versions(), **found}))
        print(f"{step.name}: {summary(found)} ({time.monotonic() - begun:.0f} s)", flush=True)
        wrong += found.get("wrong", 0)
    return 1 if wrong else 0


def summary(found: dict[str, Any]) -> str:
    """A line about a result."""
    if "findings" not in found:
        rows = found["rows"]
        return "; ".join(
            f"{row['method']} {row['way']}, batch {row['batch']}: {row['decode_ratio']:.2f}" for row in rows
        )
    counts = dict.fromkeys(("exact", "within rounding", "refused", "WRONG"), 0)
    for one in found["findings"]:
        counts[one["verdict"]] += 1
        if one["verdict"] == "WRONG":
            print(f"  WRONG {one['method']}, {one['compared']}: {one['difference']} ({one['reason']})")
    return ", ".join(f"{number} {name}" for name, number in counts.items())


if __name__ == "__main__":
    sys.exit(main())
