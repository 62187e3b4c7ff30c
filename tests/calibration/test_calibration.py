"""Calibration: worked numbers, planted sinks that must be found, and what a file may not say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from eager import embed, run
from families import FAMILIES, IMAGE
from torch import Tensor

from keepsight import InputError, Target, UnsupportedModel
from keepsight.analysis.attention_sinks import (
    Look,
    Threshold,
    examined_layers,
    judge,
    massive,
    middle_window,
    sink_dims,
    threshold,
)
from keepsight.analysis.probe import probe
from keepsight.calibration.file import (
    BadCalibration,
    Calibration,
    CalibrationMismatch,
    fingerprint,
)


class TestArithmetic:
    @pytest.mark.parametrize(
        ("count", "layers"),
        [(32, range(2, 30)), (6, range(2, 4)), (5, [2]), (4, [1]), (3, [1]), (2, [0]), (1, [0])],
    )
    def test_layers_examined(self, count: int, layers: range) -> None:
        assert list(examined_layers(count)) == list(layers)

    def test_massive(self) -> None:
        energy, outlier = massive(torch.tensor([[0.0, 3.0, -4.0, 1.0, 0.0]]))  # rms √5.2, median 1
        torch.testing.assert_close(energy, torch.tensor([[0.0, 3.0, 4.0, 1.0, 0.0]]) / math.sqrt(5.2))
        torch.testing.assert_close(outlier, torch.tensor([[0.0, 3.0, 4.0, 1.0, 0.0]]))

    def test_sink_dims_are_ordered_and_at_most_three(self) -> None:
        first = torch.ones(3, 4, 64)
        for dim, value in ((5, 300.0), (9, -500.0), (20, 400.0), (33, 200.0)):
            first[:, :, dim] = value
        assert sink_dims(first) == (9, 20, 5)

    def test_a_sink_dim_needs_energy_outlier_and_layers(self) -> None:
        first = torch.ones(3, 10, 64)
        first[:, :, 7] = 99.0  # not 100 times the median
        assert sink_dims(first) == ()
        first[:, :, 7] = 101.0
        assert sink_dims(first) == (7,)
        first[:, 2:, 7] = 1.0  # two layers of ten
        assert sink_dims(first) == ()
        first[:, 2, 7] = 101.0
        assert sink_dims(first) == (7,)
        first[1:, :, 7] = 1.0  # one prompt of three: the median prompt has none
        assert sink_dims(first) == ()
        weak = torch.ones(1, 1, 10_000)
        weak[..., 0] = 102.0  # rms 1.43: 71 times it, above 25; but below once others are large, too
        assert sink_dims(weak) == (0,)
        weak[..., 1:5000] = 10.0
        assert sink_dims(weak) == ()

    def test_threshold_is_the_middle_of_the_widest_gap(self) -> None:
        found = threshold(torch.tensor([1.0, 2.0, 3.0, 12.0, 60.0]), 4096)  # window 8 to 42.7
        assert found.below == 12
        assert found.above == pytest.approx(64 / 1.5)
        assert found.tau == pytest.approx(math.sqrt(12 * 64 / 1.5))
        found = threshold(torch.tensor([[0.5, 9.0], [36.0, 60.0]]), 4096)
        assert (found.below, found.above, found.tau) == (9, 36, 18)

    @pytest.mark.parametrize("scores", [[1.0, 2.0, 7.0], [9.0, 13.0, 19.0, 28.0, 41.0], [50.0], [50.0, 60.0]])
    def test_without_a_gap_the_published_threshold_is_scaled(self, scores: list[float]) -> None:
        assert threshold(torch.tensor(scores), 4096) == Threshold(20.0)
        assert threshold(torch.tensor([0.1, 0.2]), 896).tau == pytest.approx(9.4, abs=0.05)

    def test_middle_window(self) -> None:
        mass = [0.9, 0.8, 0.1, 0.19, 0.4, 0.3, 0.2, 0.05, 0.3, 0.9]
        assert middle_window(mass, range(2, 9)) == (4, 6)
        assert middle_window(mass, range(2, 4)) == (2, 3)
        assert middle_window([0.5], range(1)) == (0, 0)


def look(scores: list[list[float]], attention: list[list[float]]) -> Look:
    """Two layers, a first token, four of the picture, one of text."""
    image = torch.tensor([False, True, True, True, True, False])
    return Look(torch.tensor(scores), torch.tensor(attention), image)


class TestVerdict:
    """With dims (0,) and width 4, a first token of (1, 0, 0, 0) scores 2."""

    first = torch.tensor([[[1.0, 0.0, 0.0, 0.0]] * 2] * 4)
    attention = ([0.4, 0.20, 0.01, 0.01, 0.02, 0.1], [0.4, 0.40, 0.04, 0.04, 0.04, 0.1])

    def test_accepted_with_the_figures_worked_by_hand(self) -> None:
        one_of_four = look([[2, 2, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]], list(self.attention))
        none = [look([[2, 0, 0, 0, 0, 0]] * 2, list(self.attention))] * 9
        verdict = judge([one_of_four, *none], self.first, (0,), 1.5)
        assert verdict.first == 1
        assert verdict.visual == pytest.approx((1 / 40, 0))
        # layer 0 of the first look alone has both kinds: 0.2 against (0.01 + 0.01 + 0.02) / 3
        assert verdict.attention == pytest.approx(15)
        assert verdict.reasons == ()

    def test_first_tokens_that_are_no_sinks(self) -> None:
        first = self.first.clone()
        first[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
        spots = [look([[2, 2, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]], list(self.attention))]
        verdict = judge(spots, first, (0,), 1.5)
        assert verdict.first == 0.75
        assert any("75% of the prompts" in reason for reason in verdict.reasons)

    def test_too_many_visual_sinks(self) -> None:
        verdict = judge([look([[2, 2, 0, 0, 0, 0]] * 2, list(self.attention))], self.first, (0,), 1.5)
        assert verdict.visual == (0.25, 0.25)
        assert [reason for reason in verdict.reasons if "25.00%" in reason] == list(verdict.reasons)

    def test_visual_sinks_that_nobody_looks_at(self) -> None:
        even = [[0.4, 0.04, 0.02, 0.02, 0.02, 0.1]] * 2
        verdict = judge([look([[2, 2, 0, 0, 0, 0]] * 2, even)], self.first, (0,), 1.5)
        assert verdict.attention == pytest.approx(2)
        assert any("2.0 times the attention" in reason for reason in verdict.reasons)

    def test_no_visual_sink_at_all(self) -> None:
        verdict = judge([look([[2, 0, 0, 0, 0, 0]] * 2, list(self.attention))], self.first, (0,), 1.5)
        assert verdict.attention is None
        assert any("no token of any picture" in reason for reason in verdict.reasons)


def calibrated(name: str, model: Any, pictures: int = 3) -> Calibration:
    return probe(model, [planted.prompt(name, seed) for seed in range(pictures)], prompt="What is this?")


@pytest.mark.parametrize("name", planted.NAMES)
class TestPlantedSinks:
    def test_exactly_these_are_found(self, name: str) -> None:
        found = calibrated(name, planted.build(name))
        assert found.supported, found.reasons
        assert found.dims == (planted.DIM,)
        # of 64 tokens of every picture one, in every layer examined, and position 0 in every prompt
        assert found.evidence["visual_flagged"] == [1 / 64, 1 / 64]
        assert found.evidence["first_token_flagged"] == 1
        assert found.evidence["attention_ratio"] > 5

    def test_without_planting_there_are_none(self, name: str) -> None:
        found = calibrated(name, planted.build(name, sinks=False))
        assert not found.supported
        assert found.dims == ()
        assert found.tau is None
        assert "no massive activation" in found.reasons[0]

    def test_the_flagged_tokens_are_those_that_were_planted(self, name: str) -> None:
        model = planted.build(name)
        found = calibrated(name, model)
        inputs = planted.prompt(name, seed=5)
        stream = model(**inputs, output_hidden_states=True).hidden_states
        picture = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
        for layer in examined_layers(planted.LAYERS):
            x = stream[layer][0]
            score = x[:, planted.DIM].abs() / x.square().mean(-1).sqrt()
            flagged = (score >= found.tau).nonzero().flatten().tolist()
            assert flagged == [0, int(picture[planted.SPOT])]

    def test_the_model_is_left_as_it_was(self, name: str) -> None:
        model, inputs = planted.build(name), planted.prompt(name)

        def hooks() -> list[int]:
            return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

        before, hung = model(**inputs).logits, hooks()  # transformers hangs its own on the vision tower
        calibrated(name, model, pictures=1)
        assert torch.equal(model(**inputs).logits, before)
        assert hooks() == hung


def test_a_sink_on_the_first_token_alone_does_not_do() -> None:
    model = planted.build("llava")
    model.model.multi_modal_projector = model.model.multi_modal_projector.projector
    found = calibrated("llava", model)
    assert found.dims == (planted.DIM,)
    assert not found.supported
    assert any("no token of any picture is a sink" in reason for reason in found.reasons)


def test_visual_mass_and_head_divergence_against_slow_attention() -> None:
    model = planted.build("llava", sinks=False)
    found = calibrated("llava", model, pictures=2)
    mass, moved = [], []
    for seed in range(2):
        inputs = planted.prompt("llava", seed)
        picture = inputs["input_ids"][0] == IMAGE
        rows = slice(int(picture.nonzero().max()) + 1, None)
        weights: dict[int, Tensor] = {}
        heads: dict[bool, dict[int, Tensor]] = {True: {}, False: {}}

        def keep(kept: dict[int, Tensor]) -> Callable[[int, Tensor], Tensor]:
            return lambda layer, value: kept.setdefault(layer, value)

        run(model, embed(model, inputs), probabilities=keep(weights), heads=keep(heads[True]))
        text = {"input_ids": inputs["input_ids"][:, ~picture]}
        run(model, embed(model, text), heads=keep(heads[False]))
        mass.append([float(weights[i][:, rows][:, :, picture].sum(-1).mean()) for i in range(6)])
        moved.append([(heads[True][i][-1] - heads[False][i][-1]).norm(dim=-1) for i in range(6)])
    torch.testing.assert_close(torch.tensor(found.visual_mass), torch.tensor(mass).mean(0), atol=1e-5, rtol=0)
    expected = torch.stack([torch.stack(one) for one in moved]).mean(0)
    torch.testing.assert_close(torch.tensor(found.divergence), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01
    # VHR's rule takes at most half of a layer's heads for each picture
    shares = torch.tensor(found.chosen)
    assert shares.shape == (6, 4)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares.sum(-1) <= 2).all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mllama"])
def test_every_family_can_be_probed(name: str) -> None:
    family = FAMILIES[name]
    found = probe(family.model(), [family.inputs([[1, 10, 11, 12]], seed=i) for i in (0, 1)], prompt="x")
    assert len(found.divergence) == len(found.visual_mass) == found.layers == 2
    assert all(0 < mass < 1 for mass in found.visual_mass)
    assert max(map(max, found.divergence)) > 0
    assert not found.supported


class TestRefused:
    def test_cross_attention(self) -> None:
        family = FAMILIES["mllama"]
        with pytest.raises(UnsupportedModel, match="cross-attention"):
            probe(family.model(), [family.inputs([[1, 10, 11]])], prompt="x")

    def test_nothing(self) -> None:
        with pytest.raises(InputError, match="at least one picture"):
            probe(FAMILIES["llava"].model(), [], prompt="x")

    def test_batches_and_padding(self) -> None:
        family = FAMILIES["llava"]
        with pytest.raises(InputError, match="one unpadded prompt"):
            probe(family.model(), [family.inputs([[1, 10, 11], [1, 10]])], prompt="x")

    def test_no_question_after_the_picture(self) -> None:
        family = FAMILIES["llava"]
        with pytest.raises(InputError, match="a question after the picture"):
            probe(family.model(), [family.inputs([[1]])], prompt="x")


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrated("llava", planted.build("llava"))


class TestFile:
    def test_what_is_saved_is_what_is_loaded(self, found: Calibration, tmp_path: Path) -> None:
        for one in (found, calibrated("llava", planted.build("llava", sinks=False))):
            one.save(tmp_path / "file.json")
            assert Calibration.load(tmp_path / "file.json") == one
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("dims", [1.5]), ("dims", "11"), ("dims", [64]), ("dims", [-1]), ("tau", None), ("tau", 0), ("tau", "4"),
            ("tau", True), ("tau", math.nan), ("supported", 1), ("reasons", [1]), ("hidden_size", 64.0), ("layers", None),
            ("divergence", [1.0]), ("window", [1]), ("evidence", []), ("model", None), ("revision", 3),
        ],
    )  # fmt: skip
    def test_malformed(self, found: Calibration, tmp_path: Path, key: str, value: Any) -> None:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(json.loads(found.text()) | {key: value}))
        with pytest.raises(BadCalibration, match=f"{key}.*run keepsight calibrate again"):
            Calibration.load(path)

    def test_missing_key(self, found: Calibration, tmp_path: Path) -> None:
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(found.text()).items() if k != "revision"}))
        with pytest.raises(BadCalibration, match="'revision' is missing"):
            Calibration.load(path)

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"{", "is not JSON"), (b"[]", "is no calibration"), (b"{}", "is no calibration"), (b"\xff\xfe", "cannot read")],
    )  # fmt: skip
    def test_other_files(self, tmp_path: Path, content: bytes, words: str) -> None:
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(BadCalibration, match=words) as caught:
            Calibration.load(path)
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(BadCalibration, match="no such calibration"):
            Calibration.load(tmp_path / "none.json")
        with pytest.raises(BadCalibration, match="cannot read"):
            Calibration.load(tmp_path)


class TestCheck:
    def target(self, name: str = "llava", **changes: Any) -> Target:
        return Target(planted.build(name, **changes), planted.prompt(name))

    def test_the_same_model_passes_in_any_dtype_and_folder(self, found: Calibration) -> None:
        found.check(self.target())
        half = Target(planted.build("llava").to(torch.bfloat16), planted.prompt("llava"))
        found.check(half)
        moved = replace(found, model="owner/LlavaForConditionalGeneration")
        moved.check(self.target())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"hidden_size": 128}, "hidden size 128, here 64"),
            ({"layers": 32}, "layers 32, here 6"),
            ({"heads": 8}, "heads 8, here 4"),
            ({"model": "owner/other"}, "model other, here LlavaForConditionalGeneration"),
            ({"model_class": "Other"}, "class Other"),
        ],
    )
    def test_another_model(self, found: Calibration, change: dict[str, Any], words: str) -> None:
        with pytest.raises(CalibrationMismatch, match=words):
            replace(found, **change).check(self.target())

    def test_another_family(self, found: Calibration) -> None:
        with pytest.raises(CalibrationMismatch, match="another model"):
            found.check(self.target("internvl"))

    def test_other_weights_under_the_same_name(self, found: Calibration) -> None:
        model = planted.build("llava")
        model.get_decoder().layers[3].input_layernorm.weight.data *= 1.05
        with pytest.raises(CalibrationMismatch, match="other weights"):
            found.check(Target(model, planted.prompt("llava")))

    def test_fingerprint_of_norms(self) -> None:
        # two norms of 64 ones in each layer
        assert fingerprint(self.target()) == pytest.approx([math.sqrt(128)] * 6)

    def test_an_unsupported_model_says_what_was_found(self, found: Calibration) -> None:
        assert found.sinks(self.target()) == (found.dims, found.tau)
        with pytest.raises(UnsupportedModel, match="nothing massive"):
            replace(found, supported=False, reasons=("nothing massive",)).sinks(self.target())

    def test_the_demo_model_goes_by_its_name(self, tmp_path: Path) -> None:
        from keepsight.calibration.file import model_name
        from keepsight.demo import model as packaged
        from keepsight.inference.loading import load

        model = planted.build("llava")
        assert model_name(model) == "LlavaForConditionalGeneration"
        model.config._name_or_path = str(tmp_path)
        assert model_name(model) == str(tmp_path)
        assert model_name(packaged.load()[0]) == "demo"
        assert model_name(load("demo")[0]) == "demo"
        assert model_name(load(str(packaged.WEIGHTS))[0]) == "demo"

    def test_the_file_of_a_calibration_knows_nothing_of_the_demo(self) -> None:
        import ast
        import inspect

        from keepsight.calibration import file

        nodes = ast.walk(ast.parse(inspect.getsource(file)))
        assert not [one for one in nodes if isinstance(one, ast.ImportFrom) and "demo" in str(one.module)]
