"""Which methods requests of vLLM can stand for, and what a request may say. None of this needs vLLM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor
from two_amateurs import OWN, TwoAmateurs

from keepsight import M3ID, PAI, VCD, parse_all
from keepsight.decoding.vcd import NoisedImage
from keepsight.decoding.views import NoImage
from keepsight.engines.vllm.placing import (
    ENGINE,
    LONGEST,
    ModelTarget,
    check_arguments,
    plan,
    read_spec,
    serve,
)
from keepsight.errors import InputError, InvalidParameter, KeepsightError, OperatorOnly, UnsupportedModel
from keepsight.parts import Contrast, View
from keepsight.registry import methods
from keepsight.vllm import PROCESSOR, SCHEDULER, extra_args


@pytest.fixture(autouse=True)
def _nothing_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_VLLM_METHODS", "[]")


PLACEABLE = ("m3id", "vcd", "pai:alpha=0.0,gamma=1.5", "m3id+vcd", "pai:alpha=0.0,gamma=1.5+m3id")


@pytest.mark.parametrize("spec", PLACEABLE)
def test_contrasts_are_placed(spec: str) -> None:
    assert extra_args(spec) == {"keepsight": spec}
    assert plan(parse_all(spec)).rows >= 2


@pytest.mark.parametrize("name", [name for name in methods() if name not in ("m3id", "vcd")])
def test_what_acts_inside_the_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"^{name} cannot be used inside vLLM: .*"):
        extra_args(name)
    with pytest.raises(UnsupportedModel, match=f"^{name} cannot"):
        extra_args(f"m3id+{name}")


def test_every_part_that_is_no_contrast_is_refused_with_what_it_does() -> None:
    from keepsight.parts import Edit, Lens, Prelude

    target: Any = ModelTarget()
    assert "reads the logits" in str(ENGINE.why_not(Lens(layers=[0], combine=lambda *a: a[0]), target))
    assert "before the generation" in str(ENGINE.why_not(Prelude(run=lambda passes: None), target))
    assert "only scores" in str(ENGINE.why_not(Edit(), target))


def test_views_that_are_not_known_or_are_edited_are_refused_by_name() -> None:
    @dataclass(frozen=True)
    class Elsewhere(View):
        def inputs(self, target: Any) -> dict[str, Any]:
            raise AssertionError

    @dataclass(frozen=True)
    class Edited(NoImage):
        @property
        def edited(self) -> bool:
            return True

    def combine(expert: Tensor, amateurs: Sequence[Tensor] | None, step: int) -> Tensor:
        return expert

    target: Any = ModelTarget()
    for view, words in ((Elsewhere(), "view Elsewhere: known are NoImage"), (Edited(), "edited inside")):
        assert words in str(ENGINE.why_not(Contrast(views=[view], combine=combine), target))
    assert ENGINE.why_not(Contrast(views=[NoImage(), NoisedImage(1, 2)], combine=combine), target) is None


def test_nothing_is_opened() -> None:
    for ask in (lambda: ENGINE.open(ModelTarget(), []), lambda: ENGINE.processor(ModelTarget(), M3ID())):
        with pytest.raises(UnsupportedModel, match=r"engine_args\(\)"):
            ask()


def test_methods_with_one_view_share_an_amateur() -> None:
    made = plan((M3ID(), PAI(alpha=0.0, gamma=1.5), VCD(noise_step=999)))
    assert made.views == (NoImage(), NoisedImage(999, 0))
    assert [places for _, places in made.contrasts] == [(0,), (0,), (1,)]
    assert made.rows == 3


def test_methods_that_are_off_need_no_amateur() -> None:
    assert plan((M3ID().off(), VCD().off(), PAI().off())).rows == 1


def test_formulas_are_made_anew() -> None:
    assert plan((VCD(),)).contrasts[0][0] is not plan((VCD(),)).contrasts[0][0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"keepsight": "m3di"}, InputError, "did you mean"),
        ({"keepsight": "m3id:bogus=1"}, InputError, "no parameter"),
        ({"keepsight": 5}, InvalidParameter, "not a int"),
        ({"keepsight": ["m3id"]}, InvalidParameter, "not a list"),
        ({"keepsight": "m3id:decay=0." + "0" * LONGEST}, InvalidParameter, "at most 1000"),
        ({"keepsight": "os.path:join"}, OperatorOnly, "not a registered method"),
        ({"keepsight": "var:calibration=/etc/passwd"}, OperatorOnly, "names a file"),
        ({"keepsight": OWN}, OperatorOnly, "not a registered method"),
        ({"keepsight_row": ["a", 0, "m3id"]}, InputError, "may not set 'keepsight_row'"),
        ({"keepsight": "m3id", "keepsight_rows": 1}, InputError, "may not set 'keepsight_rows'"),
        ({"keepsight_text_only": [1]}, InputError, "stands without"),
        ({"keepsight": "m3id", "keepsight_text_only": []}, InvalidParameter, "list of token ids"),
        ({"keepsight": "m3id", "keepsight_text_only": [1, -2]}, InvalidParameter, "list of token ids"),
        ({"keepsight": "m3id", "keepsight_text_only": [True]}, InvalidParameter, "list of token ids"),
        ({"keepsight": "m3id", "keepsight_text_only": "1"}, InvalidParameter, "list of token ids"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], error: type[KeepsightError], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_arguments(arguments)


def test_requests_without_a_method_and_other_arguments_pass() -> None:
    assert check_arguments({}) is None
    assert check_arguments({"other": 1, "keepsight": ""}) is None
    assert check_arguments({"keepsight": "vcd", "other": 1, "keepsight_text_only": [1, 2]}) == (VCD(),)


def test_the_operator_serves_classes_and_requests_name_them_by_their_exact_text() -> None:
    spec = f"{OWN}:strength=0.5"
    serve([spec])
    assert read_spec(spec) == (TwoAmateurs(strength=0.5),)
    for other in (OWN, f"{OWN}:strength=0.6", f" {spec}", f"m3id+{spec}"):
        with pytest.raises(OperatorOnly):
            read_spec(other)


def test_what_cannot_be_placed_is_not_served() -> None:
    with pytest.raises(UnsupportedModel, match=r"^vhr cannot be used inside vLLM"):
        serve(["m3id", "vhr"])


def test_text_only_prompts_are_passed_on() -> None:
    assert extra_args("m3id", text_only=(5, 6)) == {"keepsight": "m3id", "keepsight_text_only": [5, 6]}


def test_the_names_that_vllm_is_given_resolve_late() -> None:
    code = (
        "import sys, keepsight.vllm, keepsight.engines.vllm; keepsight.vllm.extra_args('m3id+vcd');"
        "print('vllm' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "False\n"
    )
    import keepsight.engines.vllm as package

    assert f"{package.__name__}.PairScheduler" == SCHEDULER
    assert f"{package.__name__}:Contrast" == PROCESSOR
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing
