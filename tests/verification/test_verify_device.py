"""Verification on another device than the CPU: nothing that it or an engine makes stays behind on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES
from pretended_device import DEVICE, MixedDevices, There, moved_there, pretending, there

from keepsight.engines.hf import packing
from keepsight.verification import Report, Verdict, explicit, verify_inputs
from keepsight.verification.record import exact_convolutions

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]


def report(name: str, *specs: str) -> Report:
    family = FAMILIES[name]
    model = moved_there(copy.deepcopy(family.model()))
    batch = (there(family.inputs(PROMPTS)), [there(family.row(PROMPTS, i)) for i in range(2)])
    with pretending():
        return verify_inputs(model, there(family.inputs(PROMPTS[:1])), batch, methods=specs)


@pytest.fixture(autouse=True)
def _own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing asks for the very class of its tensors, which is another one here."""
    monkeypatch.setattr(packing, "Tensor", There)


@pytest.mark.parametrize("spec", ["m3id+vhr", "var:layers=0/1"])
def test_nothing_mixes_devices(spec: str) -> None:
    found = report("llava", spec)
    assert found.device == str(DEVICE)
    assert not found.wrong, found.wrong
    compared = {one.compared: one.verdict for one in found.findings}
    for what in ("off", "large strength, from scratch", "padded batch, rows alone", "beams, from scratch"):
        assert compared[what] in (Verdict.EXACT, Verdict.ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_and_no_method_mixes_devices(name: str) -> None:
    found = report(
        name,
        "m3id",
        "vcd",
        "pai:first_layer=0",
        "vhr",
        "vsv",
        "vsv:site=mlp,rows=all",
        "sla:window=1",
        "var:layers=0/1",
    )
    assert not found.wrong, found.wrong


def test_a_tensor_left_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_behind(*args: Any, **kwargs: Any) -> Any:
        return visible(*args, **{**kwargs, "device": torch.device("cpu"), "causal": True})

    visible = explicit.visible_keys
    monkeypatch.setattr(explicit, "visible_keys", left_behind)
    wrong = [one.reason or "" for one in report("llava", "vhr").wrong]
    assert any(MixedDevices.__name__ in reason for reason in wrong), wrong


def test_the_pretended_device_follows_the_rules_of_a_real_one() -> None:
    with torch.no_grad(), pretending():
        value = there(torch.arange(6.0).reshape(2, 3))
        assert value.device == DEVICE
        assert (value + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert value[:, [2, 0]].tolist() == [[2, 0], [5, 3]]
        assert value[torch.tensor([1])].tolist() == [[3, 4, 5]]
        assert torch.tensor([1.0], device=value.device).device == DEVICE
        assert value.cpu().device.type == "cpu"
        for mixed in (
            lambda: value + torch.ones(3),
            lambda: torch.cat([value, torch.ones(1, 3)]),
            lambda: torch.where(torch.ones(3, dtype=torch.bool), value, 0.0),
            lambda: torch.ones(3)[there(torch.tensor([0]))],
        ):
            with pytest.raises(MixedDevices):
                mixed()


def test_convolutions_are_exact_on_cuda_and_the_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conv:
        fp32_precision = "tf32"

    monkeypatch.setattr(torch.backends.cudnn, "conv", Conv)
    with exact_convolutions(torch.device("cpu")):
        assert Conv.fp32_precision == "tf32"
    with exact_convolutions(torch.device("cuda")):
        assert Conv.fp32_precision == "ieee"
    assert Conv.fp32_precision == "tf32"
