"""Does it pay to skip the second opinion where a step is decided already? Counted and timed on the demo model.

A step is decided where M3ID's gate is closed or one plausible token is left: the scores come out the same whatever the
amateur says. A separate branch then runs no forward, and catches up in one pass when it is next asked. A fused branch has
its tokens in the main pass before the step is known to be decided, so it has nothing to skip.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from keepsight.engines.hf.contrast_processor import ContrastMethod, ContrastProcessor
from keepsight.experiments.latency.measure import CLOCKS

Mode = Literal["plain", "every step", "skipping", "fused"]
MODES: tuple[Mode, ...] = ("plain", "every step", "skipping", "fused")
METHODS = (
    "vcd", "vcd:beta=0.02,noise_step=999", "m3id", "m3id:decay=0.07,cutoff=0.02", "m3id:gate=0.9", "m3id:gate=0.5", "pai",
)  # fmt: skip


class Watched:
    """A contrastive method as its processor sees it, with a count of the steps that could ask and of those that did."""

    def __init__(self, method: ContrastMethod, *, skipping: bool) -> None:
        self._method, self._skipping = method, skipping
        self.steps = self.asked = 0

    @property
    def is_off(self) -> bool:
        return self._method.is_off

    def needs_amateur(self, step: int) -> bool:
        needed = self._method.needs_amateur(step)
        self.steps += needed
        return needed

    def decided(self, expert: Tensor, step: int) -> Tensor:
        found = self._method.decided(expert, step)
        return found if self._skipping else torch.zeros_like(found)

    def combine(self, expert: Tensor, amateur: Tensor | None, step: int) -> Tensor:
        self.asked += amateur is not None
        return self._method.combine(expert, amateur, step)


def measure_skipping(
    specs: Sequence[str],
    *,
    pictures: int,
    new: int,
    clock: str = "wall",
    split: str = "val",
    advance: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """For each contrastive method: the share of skipped steps, and seconds per picture in four modes taken by turns.

    Args:
        specs: of methods with a second opinion.
        pictures: of ``split`` of the drawn scenes, captioned one by one, greedily, to their end or ``new`` tokens.
        clock: ``wall`` or ``cpu`` seconds.

    Returns:
        Rows: ``method``, ``n`` pictures, ``steps`` at which the second opinion has weight, ``skipped`` share of them,
        ``ms`` per picture by mode, ``ratio`` of its total to plain's by mode, ``gain`` of skipping over asking at every
        step with ``gain_quartiles`` over pictures, ``same_tokens``.

    Raises:
        InputError: a method without a second opinion.
    """
    from keepsight.demo.model import PROMPT
    from keepsight.demo.world import scenes
    from keepsight.errors import InputError
    from keepsight.inference.loading import DEMO, load
    from keepsight.source.prompts import prepare

    assert clock in CLOCKS
    model, processor = load(DEMO)
    shown = [prepare(processor, [scene.image()], PROMPT) for scene in scenes(split, pictures)]
    rows = []
    for spec in specs:
        seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        steps = asked = 0
        same = True
        for i, inputs in enumerate(shown):
            said = {}
            for mode in MODES if i else (*MODES, *MODES):  # the first picture warms up
                taken, tokens, watched = _run(model, inputs, spec, mode, new, clock)
                if mode != "plain" and watched is None:
                    raise InputError(f"--skipping: {spec} has no second opinion that could be skipped")
                seconds[mode].append(taken)
                said[mode] = tokens
                if mode == "skipping" and watched is not None:
                    steps, asked = steps + watched.steps, asked + watched.asked
            same = same and said["every step"] == said["skipping"] == said["fused"]
            advance(1)
        for mode in MODES:
            del seconds[mode][0]
        rows.append(_row(spec, seconds, steps, asked, same))
    return rows


def _run(
    model: Any, inputs: Any, spec: str, mode: Mode, new: int, clock: str
) -> tuple[float, list[int], Watched | None]:
    from keepsight.api import attached
    from keepsight.experiments.latency.measure import Clock

    watch = Clock(inputs["input_ids"].device, clock)
    watched = None
    with attached(model, inputs, *([] if mode == "plain" else [spec]), fused=mode == "fused") as processors:
        for processor in processors:
            if isinstance(processor, ContrastProcessor):
                watched = Watched(processor.method, skipping=mode == "skipping")
                vars(processor)["method"] = watched
        out = model.generate(**inputs, max_new_tokens=new, do_sample=False, logits_processor=processors)
    return watch.now() - watch.readings[0], out[0].tolist(), watched


def _row(spec: str, seconds: dict[str, list[float]], steps: int, asked: int, same: bool) -> dict[str, Any]:
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
        "gain_quartiles": [1 - quartiles[2], 1 - quartiles[0]],
        "same_tokens": same,
    }
