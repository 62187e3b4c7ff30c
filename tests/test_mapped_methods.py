"""Every method works on every type that transformers maps to image-text-to-text generation, or is refused by name.

Each comparison is one of ``keepsight.verification``, which computes a second time what methods do.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import mapped
import pytest
import torch
from mapped_methods import CHECKED, SPECS, TIED, UNMOVED, Outcome, Result, outcome, outcomes
from test_mapped import NOT_BUILT, OTHERWISE

from keepsight.verification import Finding, Verdict

FAST = ("qwen2_5_vl", "qwen3_5", "gemma4:kv_shared", "minimax_m3_vl:sparse", "mllama", "fuyu")
"""Decoders that differ most: plain, hybrid, with shared keys and values, with sparse attention, with cross-attention, and
one that is no ``…ForConditionalGeneration``. Three tokens are enough for them in the suite."""

ATTENTION = ("pai:first_layer=0", "vhr", "var")
VISTA = ("vsv:rows=all", "vsv:site=mlp")
ONE_STATE = "and not one of width 32 for each"
EAGER = dict.fromkeys(ATTENTION, "attention edits stand on top of 'sdpa' or a flash kernel, not 'eager'")
BY_CROSS_ATTENTION = dict.fromkeys(("pai:first_layer=0", "var"), "it sees the picture by cross-attention")
STREAMS = dict.fromkeys((*VISTA, "sla:window=2", "var"), ONE_STATE)
SCALED = {"sla:window=2": "it scales its logits"}
OTHER_LOGITS = {"sla:window=2": "its logits are not what its final norm and its output projection make"}
NO_NORM = {"sla:window=2": "no final norm beside the decoder's layers"}
NO_MLP = {"vsv:site=mlp": "has no MLP to steer"}

REFUSED: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        (
            "aya_vision", "cohere2_vision", "granite4_vision", "granite_docling", "hyperclovax_vision_v2",
            "muse_glimmer", "muse_spark",
        ),
        SCALED,
    ),
    "glm5_next": STREAMS,
    "hy_v4_vl": STREAMS | EAGER,
    "hy_v4_vl:sparse": STREAMS | EAGER,
    "inkling2": EAGER | OTHER_LOGITS,
    "inkling2_loop": EAGER | OTHER_LOGITS,
    "llava:opt": NO_MLP,
    "mllama": BY_CROSS_ATTENTION,
    "nemotron_h_omni": NO_MLP,
    "qwen4_exp": STREAMS | NO_NORM,
    "qwen4_exp:sparse": STREAMS | NO_NORM,
}  # fmt: skip
"""Which methods are refused on which type, and a piece of the reason. On all others every method works."""
NO_EFFECT: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("got_ocr2", "lfm3_vl", "pp_chart2table", "qwen3_5_moe", "step3p7"), ("var",)
)
"""Methods that have nothing to do on the inputs of a type, as a second computation agrees."""


def _told(found: dict[str, Outcome], result: Result) -> str:
    return "\n".join(
        f"{spec}: {reason}" for spec, one in found.items() if one.result is result for reason in one.reasons
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in (*mapped.names(), *mapped.variants())
        if name not in NOT_BUILT
    ],
)
def test_every_method_works_or_is_refused_by_name(name: str) -> None:
    try:
        found = outcomes(name, tokens=3 if name in FAST else 4)
    except mapped.NotBuilt as error:
        if OTHERWISE.get(name, "\n") not in str(error):
            raise
        pytest.skip(f"{name} cannot be built here: {error}")
    wrong = _told(found, Result.WRONG)
    assert not wrong, f"wrong on {name}:\n{wrong}"
    expected = REFUSED.get(name, {})
    refused = {spec: one.reasons[0] for spec, one in found.items() if one.result is Result.REFUSED}
    assert sorted(refused) == sorted(expected), f"refused on {name}:\n{_told(found, Result.REFUSED)}"
    for spec, piece in expected.items():
        assert piece in refused[spec]
    unmoved = [spec for spec, one in found.items() if one.result is Result.NO_EFFECT]
    assert unmoved == list(NO_EFFECT.get(name, ())), f"nothing changes on {name} under {unmoved}"


def test_the_tables_name_types_and_settings_that_exist() -> None:
    there = {*mapped.names(), *mapped.variants()}
    assert {*REFUSED, *NO_EFFECT, *FAST} <= there
    assert {spec for row in (*REFUSED.values(), *NO_EFFECT.values()) for spec in row} <= set(SPECS)


@pytest.mark.parametrize("name", list(TIED))
def test_rows_of_a_plain_batch_differ_where_ties_are_broken_by_place(name: str) -> None:
    """With the states of every layer moved by one vector for all tokens, and by nothing of this library."""
    built = mapped.build(name)
    both, alone = built.batch() or pytest.fail("there is no batch")
    generator, far = torch.Generator().manual_seed(3), []
    with ExitStack() as stack:
        for layer in built.model.get_decoder().layers:
            vector = 3 * torch.randn(built.model.config.get_text_config().hidden_size, generator=generator)
            hook = layer.mlp.register_forward_hook(lambda _, __, out, vector=vector: out + vector)
            stack.callback(hook.remove)
        for row, inputs in enumerate(alone):
            far.append(float((built._logits(both)[0, row] - built._logits(inputs)[0, 0]).abs().max()))
    assert far[0] < 1e-4
    assert far[1] > 1e-3, "padding no longer moves what is chosen: take the type out of TIED"


def finding(
    compared: str, verdict: Verdict, reason: str | None = None, allowed: float | None = None
) -> Finding:
    return Finding(
        method="m3id", compared=compared, verdict=verdict, difference=0.5, allowed=allowed, reason=reason
    )


RIGHT = [finding(compared, Verdict.EXACT) for compared in sorted(CHECKED - {UNMOVED})]
MOVED, STILL = (finding(UNMOVED, verdict) for verdict in (Verdict.EXACT, Verdict.REFUSED))


def test_one_wrong_finding_makes_an_outcome_wrong() -> None:
    wrong = finding("beams, from scratch", Verdict.WRONG, "at most 0.1 is rounding")
    refused = finding("put in place", Verdict.REFUSED, "no")
    near = finding("padded batch, rows alone", Verdict.ROUNDING, allowed=0.8)
    assert outcome([*RIGHT, MOVED]) == Outcome(Result.WORKS)
    assert outcome([*RIGHT, MOVED, near]) == Outcome(Result.WORKS, nearest=0.62)
    told = ("beams, from scratch differs by 0.5: at most 0.1 is rounding",)
    assert outcome([*RIGHT, MOVED, refused, wrong]) == Outcome(Result.WRONG, told)
    assert outcome([refused, RIGHT[0]]) == Outcome(Result.REFUSED, ("no",))


def test_a_check_that_cannot_be_run_is_named_and_a_method_without_effect_does_not_count_as_working() -> None:
    needs = finding("as given", Verdict.REFUSED, "no sink dimensions are known")
    shared = finding("shared passes", Verdict.REFUSED, "unknown decoder")
    left_out = ("shared passes: unknown decoder",)
    assert outcome([*RIGHT, MOVED, needs, shared]) == Outcome(Result.WORKS, left_out=left_out)
    assert outcome([*RIGHT, STILL, needs]) == Outcome(Result.NO_EFFECT)


def test_a_method_that_was_not_compared_with_anything_does_not_count_as_working() -> None:
    plain = replace(
        finding("with a cache and without", Verdict.REFUSED, "nothing can be proved"), method="plain"
    )
    found = outcome([plain])
    assert found.result is Result.WRONG
    assert "nothing can be proved" in found.reasons[0]
    assert outcome(RIGHT).result is Result.WRONG


def test_a_model_that_cannot_be_verified_is_wrong_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = mapped.build("fuyu")
    monkeypatch.setattr(built.model.config, "_attn_implementation", "nonsense", raising=False)
    found = outcomes("fuyu", specs=["m3id"])["m3id"]
    assert found.result is Result.WRONG
