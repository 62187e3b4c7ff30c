"""VAR: worked numbers, laws of redistribution, and the paper's formula written out once more."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from eager import run
from families import FAMILIES, IMAGE, SPECIAL
from restated import NAMES, compare, stream
from torch import Tensor

from keepsight import VAR, InvalidParameter, NeedsCalibration, UnsupportedModel, mitigate, parse
from keepsight.analysis.probe import probe
from keepsight.attention_mods.var import image_centric, redistribute, scaled_tau, sink_score
from keepsight.calibration.file import BadCalibration, CalibrationMismatch
from keepsight.target import cache_among

# columns: BOS, text, v0..v3, question, current; sinks are BOS and v0
ROW = torch.tensor([[[[0.40, 0.05, 0.20, 0.05, 0.10, 0.05, 0.10, 0.05]]]])
PICTURE = torch.tensor([[False, False, True, True, True, True, False, False]])
SINKS = torch.tensor([[True, False, True, False, False, False, False, False]])


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.4, [0.24, 0.05, 0.12, 0.11, 0.22, 0.11, 0.10, 0.05]),
        (0.6, [0.16, 0.05, 0.08, 0.14, 0.28, 0.14, 0.10, 0.05]),
        (0.0, ROW.flatten().tolist()),
    ],
)
def test_worked_redistribution(fraction: float, expected: list[float]) -> None:
    moved = redistribute(ROW, PICTURE, SINKS, fraction=fraction, ratio=0.5, mass=0.2)
    torch.testing.assert_close(moved.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_heads_that_are_left_alone() -> None:
    options = {"fraction": 0.6, "ratio": 0.5, "mass": 0.2}
    assert torch.equal(redistribute(ROW, PICTURE, SINKS, **{**options, "ratio": 0.51}), ROW)
    assert torch.equal(redistribute(ROW, PICTURE, SINKS, **{**options, "mass": 0.41}), ROW)
    only_text = torch.zeros_like(SINKS)
    only_text[0, 0] = True
    assert torch.equal(redistribute(ROW, PICTURE, only_text, **options), ROW)
    assert torch.equal(redistribute(ROW, PICTURE, PICTURE, fraction=0.6, ratio=0.0, mass=0.0), ROW)


def test_heads_that_look_at_the_picture() -> None:
    # 0.4 of the attention is on the picture, and half of that off its sink
    for ratio, mass, expected in ((0.5, 0.2, True), (0.51, 0.2, False), (0.5, 0.41, False), (0.0, 0.0, True)):
        assert image_centric(ROW, PICTURE, SINKS, ratio=ratio, mass=mass).tolist() == [[[expected]]]
    assert not image_centric(ROW, PICTURE, SINKS & ~PICTURE, ratio=0.0, mass=0.0).any()


def test_redistribution_keeps_sums_and_proportions() -> None:
    probs = torch.rand(2, 3, 4, 8).softmax(-1)
    image, sinks = PICTURE.expand(2, -1), SINKS.expand(2, -1)
    moved = redistribute(probs, image, sinks, fraction=0.7, ratio=0.0, mass=0.0)
    torch.testing.assert_close(moved.sum(-1), torch.ones(2, 3, 4), atol=2e-6, rtol=0)
    assert (moved >= 0).all()
    torch.testing.assert_close(moved[..., 3] / moved[..., 4], probs[..., 3] / probs[..., 4])
    assert torch.equal(moved[..., [1, 6, 7]], probs[..., [1, 6, 7]])
    assert (moved[..., 2:6].sum(-1) > probs[..., 2:6].sum(-1)).all()


def test_sink_score() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])  # rms 2.5
    assert sink_score(x, (0,)).item() == pytest.approx(1.2, abs=1e-6)
    assert sink_score(x, (0, 1)).item() == pytest.approx(1.6, abs=1e-6)
    assert sink_score(-x, (1, 2)).item() == pytest.approx(1.6, abs=1e-6)
    lone = torch.zeros(1, 64)
    lone[0, 5] = 9.0
    assert sink_score(lone, (5,)).item() == pytest.approx(8.0, abs=1e-3)  # never above sqrt(64)


def test_threshold_keeps_the_share_of_energy() -> None:
    assert scaled_tau(4096) == 20
    assert scaled_tau(3584) == pytest.approx(18.7, abs=0.05)
    assert scaled_tau(896) == pytest.approx(9.4, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_paper_restated(name: str) -> None:
    dims, tau, fraction = (5,), 0.6, 0.9

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        picture = (inputs["input_ids"][0] == IMAGE).nonzero().flatten().tolist()
        sinks: dict[int, list[int]] = {}

        def find(layer: int, hidden: Tensor) -> Tensor:
            sinks[layer] = [
                j
                for j in range(prompt)
                if max(abs(hidden[j, d].item()) for d in dims) / math.sqrt(hidden[j].square().mean() + 1e-6)
                >= tau
            ]
            return hidden

        def move(layer: int, weights: Tensor) -> Tensor:
            weights = weights.clone()
            clear = [j for j in picture if j not in sinks[layer]]
            if len(clear) == len(picture) or not clear:
                return weights
            for head in range(weights.shape[0]):
                for row in range(picture[-1] + 1, weights.shape[1]):
                    a = weights[head, row].clone()
                    mass = sum(a[j].item() for j in picture)
                    share = sum(a[j].item() for j in clear)
                    if mass < 0.05 or share / mass < 0.1:
                        continue
                    budget = fraction * sum(a[j].item() for j in sinks[layer])
                    for j in sinks[layer]:
                        weights[head, row, j] = a[j] * (1 - fraction)
                    for j in clear:
                        weights[head, row, j] = a[j] + budget * a[j] / share
            return weights

        return run(model, stream(model, inputs, generated), enter=find, probabilities=move)[0]

    recipe = VAR(fraction=fraction, ratio=0.1, mass=0.05, tau=tau, dims=dims, layers=(0, 1))
    compare(name, recipe, logits)


def test_rows_up_to_the_end_of_the_picture_stay_bit_for_bit() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, 10, 11, 12, 13]])
    options: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "return_dict_in_generate": True}
    plain = cache_among(model.generate(**inputs, **options))
    with mitigate(model, VAR(fraction=1.0, ratio=0.0, mass=0.0, tau=0.6, dims=(5,), layers=(0, 1))):
        edited = cache_among(model.generate(**inputs, **options))
    end = int((inputs["input_ids"][0] == IMAGE).nonzero().max()) + 1
    for a, b in zip(plain.layers, edited.layers, strict=True):
        assert torch.equal(a.keys[:, :, :end], b.keys[:, :, :end])
    assert not torch.equal(plain.layers[1].keys[:, :, end:], edited.layers[1].keys[:, :, end:])


def test_two_pictures_in_one_process_give_what_each_gives_alone() -> None:
    """The released code keeps the first picture's sinks for every later one."""
    family = FAMILIES["llava"]
    recipe = VAR(fraction=1.0, ratio=0.0, mass=0.0, tau=0.6, dims=(5,), layers=(0, 1))
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6}
    first, second = (family.inputs([[1, 10, 11]], seed=seed) for seed in (0, 1))
    with mitigate(family.model(), recipe):
        alone = family.model().generate(**second, **options)
    with mitigate(family.model(), recipe):
        family.model().generate(**first, **options)
        after = family.model().generate(**second, **options)
    assert torch.equal(alone, after)


def test_constants_are_not_borrowed_from_another_checkpoint() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, 5, 6]])
    with mitigate(model, VAR()), pytest.raises(NeedsCalibration, match="dims"):
        model.generate(**inputs, max_new_tokens=1)
    with mitigate(model, VAR(dims=(32,))), pytest.raises(InvalidParameter, match="between 0 and 31"):
        model.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("name", ["llava", "internvl", "mistral3"])
def test_a_calibration_gives_dims_and_tau(name: str, tmp_path: Path) -> None:
    """On a model with planted sinks."""
    file = str(tmp_path / "file.json")
    found = probe(planted.build(name), [planted.prompt(name, seed) for seed in (0, 1)], prompt="x")
    found.save(file)
    model, inputs = planted.build(name), planted.prompt(name, seed=7)
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": SPECIAL}
    strong: dict[str, Any] = {"fraction": 1.0, "ratio": 0.0, "mass": 0.0}

    def scores(*recipes: VAR) -> Tensor:
        with mitigate(model, *recipes):
            out = model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
        return torch.stack(out.scores)

    plain, calibrated = scores(), scores(VAR(**strong, calibration=file))
    assert torch.equal(calibrated, scores(VAR(**strong, dims=found.dims, tau=found.tau)))
    assert not torch.equal(calibrated.argmax(-1), plain.argmax(-1)), "the same tokens: nothing happened"
    # what is given beside the file wins over it
    high = scores(VAR(**strong, calibration=file, tau=9.0))  # √64 is the most a score can be
    assert torch.equal(high, scores(VAR(**strong, dims=found.dims, tau=9.0)))
    assert torch.equal(high.argmax(-1), plain.argmax(-1))
    other = scores(VAR(**strong, calibration=file, dims=(3,)))
    assert torch.equal(other, scores(VAR(**strong, dims=(3,), tau=found.tau)))


def test_a_spec_names_the_calibration() -> None:
    recipe = VAR(calibration="some/file.json")
    assert recipe.spec == "var:calibration=some/file.json"
    assert parse(recipe.spec) == recipe


def test_a_calibration_of_another_model_or_without_sinks_is_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "file.json")
    inputs = planted.prompt("llava")
    for sinks, error, words in (
        (True, CalibrationMismatch, "another model"),
        (False, UnsupportedModel, "no massive activation"),
    ):
        model = planted.build("llava", sinks=sinks)
        found = probe(model, [inputs], prompt="x")
        (replace(found, layers=7) if sinks else found).save(file)
        with mitigate(model, VAR(calibration=file)), pytest.raises(error, match=words):
            model.generate(**inputs, max_new_tokens=1)
    with mitigate(model, VAR(calibration=file + "x")), pytest.raises(BadCalibration, match="no such"):
        model.generate(**inputs, max_new_tokens=1)
