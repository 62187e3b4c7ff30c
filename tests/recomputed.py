"""The slow truth about a contrast: both branches recomputed from scratch at every step, each row alone and unpadded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from families import SPECIAL, Family
from strong import STRONG
from torch import Tensor
from transformers import LogitsProcessor

from keepsight import M3ID, Method
from keepsight.parts import Contrast, View
from keepsight.target import Target

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
NEW = 8
PLAIN: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "suppress_tokens": SPECIAL}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beam": {"do_sample": False, "num_beams": 3},
    "beam_sample": {"do_sample": True, "num_beams": 3, "temperature": 1.3, "top_k": 20},
}
METHODS: dict[str, Method] = {name: STRONG[name] for name in ("vcd", "m3id")}


def contrast_of(method: Method, target: Target) -> Contrast:
    """The one part of a method that is a contrast."""
    (part,) = method.parts(target)
    assert isinstance(part, Contrast)
    return part


def amateur_inputs(method: Method, target: Target) -> dict[str, Any]:
    """What the one amateur of a method is given."""
    (view,) = contrast_of(method, target).views
    return view.inputs(target)


class Given(View):
    """A view that is whatever it is made of."""

    def __init__(self, make: Callable[[Target], dict[str, Any]]) -> None:
        self.make = make

    def inputs(self, target: Target) -> dict[str, Any]:
        return self.make(target)


class Recomputed(LogitsProcessor):
    """The same formula over amateur logits that are recomputed from scratch, row by row."""

    def __init__(self, family: Family, method: Method, prompts: list[list[int]]) -> None:
        self.family, self.method, self.prompts = family, method, prompts
        self.width = family.inputs(prompts)["input_ids"].shape[1]
        self.contrast = contrast_of(method, Target(family.model(), family.inputs(prompts)))

    def amateur(self, index: int) -> dict[str, Any]:
        if isinstance(self.method, M3ID):
            return self.family.text_only(self.prompts[index])
        target = Target(self.family.model(), self.family.row(self.prompts, index))
        return self.contrast.views[0].inputs(target)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        each = len(input_ids) // len(self.prompts)
        amateur = torch.stack(
            [
                self.family.uncached_logits(self.amateur(i // each), row[self.width :])
                for i, row in enumerate(input_ids)
            ]
        )
        step = input_ids.shape[1] - self.width
        return self.contrast.combine(scores, [amateur], step).log_softmax(-1)


def run(family: Family, prompts: list[list[int]], *processors: Any, seed: int = 3, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    inputs = family.inputs(prompts)
    out = family.model().generate(**inputs, **{**PLAIN, **options}, logits_processor=list(processors))
    return out[:, inputs["input_ids"].shape[1] :]


def fresh(family: Family, method: Method, prompts: list[list[int]]) -> LogitsProcessor:
    return method.processor(family.model(), family.inputs(prompts))
