"""What every engine does alike: it asks methods for their parts, and refuses by name what it cannot place."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from families import FAMILIES

from keepsight import M3ID, PAI, VHR, InputError, Method, NoImageTokens, UnsupportedModel
from keepsight.engines import default
from keepsight.engines.base import Engine
from keepsight.engines.hf.engine import HFEngine
from keepsight.parts import Contrast, Edit, Part, Prelude
from keepsight.target import Target

PROMPTS = [[1, 10, 11, 12], [1, 20]]


class ContrastsOnly(Engine):
    """An engine that can run amateurs and nothing inside the model, as a serving engine might."""

    def why_not(self, part: Part, target: Target) -> str | None:
        return None if isinstance(part, Contrast) else "this engine runs amateurs only"

    def open(self, target: Target, methods: Sequence[Method]) -> AbstractContextManager[list[Any]]:
        raise AssertionError("not asked for")

    def processor(self, target: Target, method: Method) -> Any:
        raise AssertionError("not asked for")


def target(name: str = "llava") -> Target:
    return Target(FAMILIES[name].model(), FAMILIES[name].inputs(PROMPTS))


def test_parts_come_in_the_order_of_the_methods() -> None:
    found = default().parts(target(), [VHR(layers=(1,)), PAI(), M3ID()])
    kinds = [next(kind for kind in (Contrast, Prelude, Edit) if isinstance(part, kind)) for part in found]
    assert kinds == [Prelude, Edit, Edit, Contrast, Contrast]
    assert default().parts(target(), [VHR(layers=(1,)).off(), PAI().off(), M3ID().off()]) == []


def test_what_an_engine_cannot_place_is_refused_with_the_method_and_the_reason() -> None:
    engine = ContrastsOnly()
    assert len(engine.parts(target(), [M3ID(), PAI(alpha=0.0)])) == 2
    with pytest.raises(UnsupportedModel, match="cannot be used with vhr: this engine runs amateurs only"):
        engine.parts(target(), [M3ID(), VHR(layers=(1,))])
    with pytest.raises(UnsupportedModel, match="with pai: it sees the picture by cross-attention"):
        HFEngine().parts(target("mllama"), [PAI()])
    assert len(HFEngine().parts(target("mllama"), [PAI(alpha=0.0)])) == 1


def test_a_part_of_no_known_kind_is_refused() -> None:
    class Odd(M3ID):
        def parts(self, target: Target) -> Any:
            yield "something else"

    with pytest.raises(UnsupportedModel, match="str is not a part that this engine knows"):
        default().parts(target(), [Odd()])


def test_prompts_are_checked_for_recipes_that_are_off_as_well() -> None:
    inputs = FAMILIES["llava"].inputs(PROMPTS)
    text = {**inputs, "input_ids": torch.where(inputs["input_ids"] >= 88, 5, inputs["input_ids"])}
    with pytest.raises(NoImageTokens):
        default().parts(Target(FAMILIES["llava"].model(), text), [M3ID().off()])
    right = {**inputs, "attention_mask": inputs["attention_mask"].flip(-1)}
    with pytest.raises(InputError, match="left"):
        default().parts(Target(FAMILIES["llava"].model(), right), [M3ID()])
    assert default().parts(Target(FAMILIES["llava"].model(), text), []) == []
