"""Does it pay to skip the amateur at steps that are decided? Counted and timed on the demo model.

    python benchmarks/amateur_skipping.py --pictures 100 --clock cpu --json benchmarks/results/skipping-demo-cpu.json

A step is decided where M3ID's gate is closed or one plausible token is left: the scores come out the same whatever the
amateur says. A separate branch then runs no forward pass, and catches up in one pass when it is next needed. A fused branch
has its tokens in the main pass before it is known that the step is decided, so that it cannot skip anything.

Every picture is captioned in four modes, one after the other: without a method, with an amateur that runs at every step,
with one that skips decided steps, and fused. Greedy search, one thread.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from keepsight.api import attached
from keepsight.engines.hf.contrast_processor import ContrastProcessor
from keepsight.errors import InputError
from keepsight.experiments.latency.measure import CLOCKS, Clock

Mode = Literal["plain", "every step", "skipping", "fused"]
"""No method; an amateur that runs at every step; one that skips decided steps; one that shares the model's passes."""
MODES: tuple[Mode, ...] = ("plain", "every step", "skipping", "fused")
METHODS = (
    "vcd", "vcd:beta=0.02,noise_step=999", "m3id", "m3id:decay=0.07,cutoff=0.02", "m3id:gate=0.9", "m3id:gate=0.5", "pai",
)  # fmt: skip
SPLIT = "val"
HEADINGS = ("method", "skipped steps", "plain", "ask every step", "skip", "fused", "gain of skipping")


class Steps:
    """Counts the steps of one generation at which an amateur matters, and those at which it ran.

    Its methods stand in for the three functions of a contrast. With ``skipping=False`` no step counts as decided, so that
    the amateur runs at all steps at which it matters.
    """

    def __init__(
        self,
        *,
        needed: Callable[[int], bool],
        decided: Callable[[Tensor, int], Tensor],
        combine: Callable[[Tensor, Any, int], Tensor],
        skipping: bool,
    ) -> None:
        self._needed, self._decided, self._combine, self._skipping = needed, decided, combine, skipping
        self.steps = self.asked = 0

    def needed(self, step: int) -> bool:
        needed = self._needed(step)
        # The processor asks ``needed`` at every step, ``decided`` only where the amateur's scores are needed and not at
        # hand, and calls ``combine`` at every step.
        self.steps += needed
        return needed

    def decided(self, expert: Tensor, step: int) -> Tensor:
        found = self._decided(expert, step)
        # ``decided`` runs in both modes, so the two differ in the amateur's passes alone.
        return found if self._skipping else torch.zeros_like(found)

    def combine(self, expert: Tensor, amateur: Any, step: int) -> Tensor:
        self.asked += amateur is not None
        return self._combine(expert, amateur, step)


def watch(processor: ContrastProcessor, *, skipping: bool) -> Steps:
    """Let a contrast's processor count its steps. This is the only place that knows how a processor holds its contrast."""
    held = processor.contrast
    steps = Steps(
        needed=held.needed or (lambda step: True),
        decided=held.decided or (lambda expert, step: torch.zeros_like(expert[:, 0], dtype=torch.bool)),
        combine=held.combine,
        skipping=skipping,
    )
    processor.contrast = replace(held, needed=steps.needed, decided=steps.decided, combine=steps.combine)
    return steps


def measure_skipping(
    specs: Sequence[str], *, pictures: int, new: int, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Measure for each contrastive method the share of skipped steps, and the time per picture in modes that take turns.

    Args:
        specs: specs of methods with an amateur.
        pictures: how many drawn scenes of split ``val`` are captioned, one at a time and greedily.
        new: the largest number of tokens of a caption.
        clock: ``wall`` or ``cpu`` seconds.

    Returns:
        Rows with ``method``, ``n`` pictures, ``steps`` at which the amateur has weight, the ``skipped`` share of them (None
        without such a step), ``ms`` per picture by mode, ``ratio`` of a mode's total to plain's, ``gain`` of skipping over
        an amateur that runs at every step, ``gain_quartiles`` of the pictures, and ``same_tokens``: whether the three modes
        with the method wrote the same tokens.

    Raises:
        InputError: a method has no amateur.
    """
    from keepsight.demo.model import PROMPT
    from keepsight.demo.world import scenes
    from keepsight.inference.loading import DEMO, load
    from keepsight.source.prompts import prepare

    model, processor = load(DEMO)
    shown = [prepare(processor, [scene.image()], PROMPT) for scene in scenes(SPLIT, pictures)]
    rows = []
    for spec in specs:
        seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        counted = asked = 0
        same = True
        for i, inputs in enumerate(shown):
            said = {}
            # The first picture is captioned twice, and its first times are dropped: they hold what is set up at first use.
            # Modes take turns picture by picture, so a change of the machine's speed reaches all of them.
            for mode in MODES if i else (*MODES, *MODES):
                taken, tokens, steps = _run(model, inputs, spec, mode, new, clock)
                if mode != "plain" and steps is None:
                    raise InputError(f"{spec} has no amateur that could be skipped")
                seconds[mode].append(taken)
                said[mode] = tokens
                if mode == "skipping" and steps is not None:
                    counted, asked = counted + steps.steps, asked + steps.asked
            same = same and said["every step"] == said["skipping"] == said["fused"]
        for mode in MODES:
            del seconds[mode][0]
        rows.append(_row(spec, seconds, counted, asked, same))
    return rows


def _run(
    model: Any, inputs: Any, spec: str, mode: Mode, new: int, clock: str
) -> tuple[float, list[int], Steps | None]:
    """Returns the seconds of one caption, its tokens, and what was counted; None without an amateur."""
    steps = None
    # The clock starts before the block is entered, since setting up a method is part of its cost.
    timer = Clock(inputs["input_ids"].device, clock)
    with attached(model, inputs, *([] if mode == "plain" else [spec]), fused=mode == "fused") as processors:
        for processor in processors:
            if isinstance(processor, ContrastProcessor):
                steps = watch(processor, skipping=mode == "skipping")
        out = model.generate(**inputs, max_new_tokens=new, do_sample=False, logits_processor=processors)
    return timer.now() - timer.readings[0], out[0].tolist(), steps


def _row(spec: str, seconds: dict[str, list[float]], steps: int, asked: int, same: bool) -> dict[str, Any]:
    """Returns the figures of one method, as ``measure_skipping`` documents them."""
    each = [skip / every for skip, every in zip(seconds["skipping"], seconds["every step"], strict=True)]
    quartiles = statistics.quantiles(each, n=4) if len(each) > 1 else [each[0]] * 3
    total = {mode: sum(values) for mode, values in seconds.items()}
    return {
        "method": spec,
        "n": len(each),
        "steps": steps,
        "skipped": (steps - asked) / steps if steps else None,
        "ms": {mode: 1000 * total[mode] / len(each) for mode in MODES},
        "ratio": {mode: total[mode] / total["plain"] for mode in MODES},
        "gain": 1 - total["skipping"] / total["every step"],
        # A large ratio is a small gain, so the quartiles change places.
        "gain_quartiles": [1 - quartiles[2], 1 - quartiles[0]],
        "same_tokens": same,
    }


def table(result: Mapping[str, Any]) -> str:
    """Returns the result of a run as a Markdown table, with a sentence on how it was measured."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(cells, result["skipping"])]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", facts(result)]) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns one row of the table."""
    ratio, (low, high) = row["ratio"], row["gain_quartiles"]
    skipped = "–" if row["skipped"] is None else f"{100 * row['skipped']:.1f} % of {row['steps']}"
    return [
        f"`{row['method']}`", skipped, f"{row['ms']['plain']:.1f} ms",
        *(f"{ratio[mode]:.2f}×" for mode in ("every step", "skipping", "fused")),
        f"{100 * row['gain']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]",
    ]  # fmt: skip


def facts(result: Mapping[str, Any]) -> str:
    """Returns a sentence that says how the table was measured."""
    machine, versions, settings = result["hardware"], result["versions"], result["settings"]
    clock = "CPU seconds of the process" if settings["clock"] == "cpu" else "wall time"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return (
        f"Demo model, {settings['pictures']} pictures of split `{settings['split']}` captioned one by one; ratios of total"
        f" {clock} to plain; brackets are quartiles over pictures; {machine['cpu']}, {threads}, torch"
        f" {versions['torch']}, transformers {versions['transformers']}, Keepsight {versions['keepsight']}."
    )


def main() -> None:
    """The command line."""
    from keepsight.experiments.environment import hardware, versions
    from keepsight.files import as_json, check_writable, write_whole
    from keepsight.inference.loading import quiet_transformers, use_one_thread

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100, help="how many pictures are captioned (100)")
    parser.add_argument("--new-tokens", type=int, default=128, help="largest length of a caption (128)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="which seconds are counted (wall)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    chosen = parser.parse_args()
    if chosen.pictures < 1 or chosen.new_tokens < 1:
        parser.error("--pictures and --new-tokens must be 1 or more")
    if chosen.json:
        check_writable(chosen.json)
    quiet_transformers()
    use_one_thread()
    settings = {
        "pictures": chosen.pictures,
        "split": SPLIT,
        "clock": chosen.clock,
        "new_tokens": chosen.new_tokens,
    }
    rows = measure_skipping(METHODS, pictures=chosen.pictures, new=chosen.new_tokens, clock=chosen.clock)
    result = {"settings": settings, "hardware": hardware("cpu"), "versions": versions(), "skipping": rows}
    print(table(result), end="")
    if chosen.json:
        write_whole(chosen.json, as_json(result))


if __name__ == "__main__":
    main()
