"""A verification of models that are right, and of engines into which one fault was planted."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from keepsight import PAI, VCD, VHR, InputError, Method
from keepsight.attention_mods import vhr
from keepsight.attention_mods.vhr import Reinforce
from keepsight.engines.hf import attention, branch, edit_state, engine, lens, packing
from keepsight.parts import HookContext
from keepsight.verification import Report, Verdict, verify_inputs
from keepsight.verification.explicit import visible_keys
from keepsight.verification.recipes import EditsOf, strengthened, weakened
from keepsight.verification.record import Fingerprint
from keepsight.verification.restated import Restated
from keepsight.verification.verify import Checks

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
EVERY = (
    "m3id",
    "vcd",
    "pai:first_layer=0",
    "vhr",
    "vsv",
    "vsv:site=mlp,rows=all",
    "sla:window=1",
    "var:layers=0/1",
)
"""Every method, at settings that a decoder of two layers has room for."""


def report(name: str, *specs: str | Method, model: Any = None, rows: bool = True) -> Report:
    family = FAMILIES[name]
    model = family.model() if model is None else model
    dtype = model.dtype

    def cast(inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}

    both = (cast(family.inputs(PROMPTS)), [cast(family.row(PROMPTS, i)) for i in range(2)])
    return verify_inputs(model, cast(family.inputs(PROMPTS[:1])), both if rows else None, methods=specs)


def verdicts(found: Report, compared: str) -> list[Verdict]:
    return [one.verdict for one in found.findings if compared in one.compared]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama"])
def test_nothing_is_wrong_with_a_model_that_is_right(name: str) -> None:
    found = report(name, *EVERY, "m3id+vhr")
    assert not found.wrong, found.wrong
    for kind in (
        "off",
        "negligible strength",
        "large strength, from scratch",
        "beams, from scratch",
        "afterwards",
    ):
        assert verdicts(found, kind)
    # Cross-attention has no columns of the picture, and a method that needs them says so
    refused = {
        one.method for one in found.findings if one.verdict is Verdict.REFUSED and "put" in one.compared
    }
    assert refused == ({"pai:first_layer=0", "var:layers=0/1"} if name == "mllama" else set())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_is_wrong_in_half_precision(dtype: torch.dtype) -> None:
    model = copy.deepcopy(FAMILIES["llava"].model()).to(dtype)
    found = report("llava", *EVERY, model=model)
    assert not found.wrong, found.wrong
    assert found.dtype == str(dtype).removeprefix("torch.")


def test_each_place_is_compared() -> None:
    found = report("llava", *EVERY)
    text = " ".join(one.compared for one in found.findings)
    for place in ("attention in 2 layers", "resid_post in 2 layers", "mlp_out in 2 layers"):
        assert place in text
        assert f"padded batch, {place}" in text
    assert "shared passes, from scratch" in text


def test_a_method_that_needs_a_calibration_is_checked_with_what_it_names_as_visible() -> None:
    found = report("llava", "var:layers=0/1", rows=False)
    assert [
        one.verdict for one in found.findings if one.method == "var:layers=0/1" and one.compared == "as given"
    ] == [Verdict.REFUSED]
    assert verdicts(found, "attention in 2 layers") == [Verdict.ROUNDING]


def test_a_method_that_acts_nowhere_is_said_to() -> None:
    [finding] = [
        one for one in report("llava", "pai:gamma=1.0", rows=False).findings if one.method != "plain"
    ]
    assert finding.verdict is Verdict.REFUSED
    assert finding.reason == "it acts in no layer of this model"


def test_a_part_that_is_switched_off_stays_so_at_other_strengths() -> None:
    """Else guidance alone would be refused on a model that sees the picture by cross-attention, where it runs."""
    [strong] = strengthened((PAI(alpha=0.0),))
    assert strong == PAI(alpha=0.0, gamma=4.0)
    assert weakened((PAI(alpha=0.0),)) == (PAI(alpha=0.0, gamma=1.0),)
    assert strengthened((PAI(first_layer=0), PAI(gamma=1.0))) == (
        PAI(alpha=8.0, gamma=4.0, first_layer=0),
        PAI(alpha=8.0, gamma=1.0),
    )
    # Where all is off, as in a recipe that was given by mistake, there would be nothing to check
    assert strengthened((VHR(alpha=1.0), VCD(alpha=0.0, beta=0.0))) == (
        VHR(alpha=6.0),
        VCD(alpha=4.0, beta=0.0, noise_step=999),
    )
    found = report("mllama", "pai:alpha=0", rows=False)
    refused = {one.compared for one in found.findings if one.verdict is Verdict.REFUSED}
    assert refused == {"shared passes"}  # cross-attention is not among the decoders that share passes


def test_a_difference_is_never_measured_from_a_token_that_is_ruled_out() -> None:
    """Both lines would be −inf below it, and any difference 0."""
    expert, nothing = torch.tensor([[5.0, 0.0, 1.0]]), torch.full((1, 3), -torch.inf)
    one, other = torch.tensor([[-torch.inf, 0.0, 1.0]]), torch.tensor([[-torch.inf, 0.0, 3.0]])
    assert Checks._far(one, other, expert) == Checks._far(one, other, one) == 2.0
    assert Checks._far(one, expert, expert) == Checks._far(nothing, nothing, expert) == torch.inf


def test_a_model_that_disagrees_with_itself_proves_nothing() -> None:
    model: Any = copy.deepcopy(FAMILIES["llava"].model())
    right = type(model).forward

    @functools.wraps(right)
    def without_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = right(self, *args, **kwargs)
        if kwargs.get("use_cache") is False:
            out.logits = out.logits.roll(1, dims=-1)
        return out

    with changed(type(model), "forward", lambda _: without_cache):
        found = report("llava", "m3id", model=model, rows=False)
    assert [one.method for one in found.findings] == ["plain", "plain"]
    assert found.findings[-1].verdict is Verdict.REFUSED
    assert "nothing can be proved" in str(found.findings[-1].reason)


def test_bad_input_is_refused() -> None:
    family = FAMILIES["llava"]
    with pytest.raises(InputError, match="one prompt without padding"):
        verify_inputs(family.model(), family.inputs(PROMPTS), methods=["m3id"])
    with pytest.raises(InputError, match="tokens=1 must be 2 or more"):
        verify_inputs(family.model(), family.inputs(PROMPTS[:1]), tokens=1)


# ------------------------------------------------------------------------------------------------------- planted faults


@contextmanager
def changed(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block an attribute of the engine is what ``make`` makes of it."""
    before = getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def skipped_layer() -> AbstractContextManager[None]:
    def make(use: Any) -> Any:
        def broken(self: Any, edits: Any) -> None:
            use(self, edits)
            self.attention_layers -= {1}
            self.unchecked = {one for one in self.unchecked if one[1] != 1}

        return broken

    return changed(edit_state.EditState, "use", make)


def shifted_mask() -> AbstractContextManager[None]:
    def make(allowed: Any) -> Any:
        return lambda *args, **kwargs: allowed(*args, **kwargs).roll(1, dims=-1)

    return changed(attention, "allowed_keys", make)


def dropped_bias() -> AbstractContextManager[None]:
    def make(attend: Any) -> Any:
        return lambda q, k, v, bias, *args, **kwargs: attend(q, k, v, None, *args, **kwargs)

    return changed(attention, "attend", make)


def wrong_head_order() -> AbstractContextManager[None]:
    def make(attend: Any) -> Any:
        return lambda *args, **kwargs: attend(*args, **kwargs).flip(2)

    return changed(attention, "attend", make)


def wrong_scaling() -> AbstractContextManager[None]:
    def make(attend: Any) -> Any:
        return lambda q, k, v, bias, scaling, **kwargs: attend(q, k, v, bias, 1.02 * scaling, **kwargs)

    return changed(attention, "attend", make)


def picture_one_column_off() -> AbstractContextManager[None]:
    def make(context: Any) -> Any:
        def broken(self: Any, layer: int, device: Any) -> HookContext:
            right: HookContext = context(self, layer, device)
            return replace(right, image=right.image.roll(1, dims=-1))

        return broken

    return changed(edit_state.EditState, "context", make)


def pass_one_token_late() -> AbstractContextManager[None]:
    def make(context: Any) -> Any:
        def broken(self: Any, layer: int, device: Any) -> HookContext:
            right: HookContext = context(self, layer, device)
            return replace(right, first=right.first - 1 if right.first else 0)

        return broken

    return changed(edit_state.EditState, "context", make)


def stale_cache() -> AbstractContextManager[None]:
    """The amateur reads its last token anew at every step, and its cache never learns of the tokens before."""

    def make(advance: Any) -> Any:
        def broken(self: Any, generated: Tensor) -> None:
            if self._seen.shape[1] == 0:
                advance(self, generated)
            else:
                self._seen = generated

        return broken

    return changed(branch.Branch, "_advance", make)


def amateur_sees_the_picture() -> AbstractContextManager[None]:
    from keepsight.engines.hf import contrast_processor

    def make(shared: Any) -> Any:
        return lambda target, inputs, **kwargs: shared(target, dict(target.model_inputs), **kwargs)

    return changed(contrast_processor, "shared_branch", make)


def edits_reach_the_amateur() -> AbstractContextManager[None]:
    def make(place: Any) -> Any:
        @contextmanager
        def broken(self: Any) -> Iterator[None]:
            from keepsight.engines.hf.edit_state import branch_forward
            from keepsight.engines.hf.patching import preserving_rope_deltas

            with branch_forward(self.model, self), preserving_rope_deltas(self.model):
                yield

        return broken

    return changed(branch.Branch, "_on_its_own", make)


def beams_are_not_followed() -> AbstractContextManager[None]:
    def make(match: Any) -> Any:
        def broken(seen: Tensor, generated: Tensor, prompts: int) -> tuple[Tensor, int]:
            _, keep = match(seen, generated, prompts)
            return torch.arange(len(generated)), max(keep, generated.shape[1] - 1)

        return broken

    return changed(branch, "match_prefixes", make)


def packed_passes_swapped() -> AbstractContextManager[None]:
    def make(split: Any) -> Any:
        def broken(self: Any, packed: Tensor) -> list[Tensor]:
            parts = split(self, packed)
            return [parts[1], parts[0], *parts[2:]] if parts[0].shape == parts[1].shape else parts

        return broken

    return changed(packing.PackedPass, "split", make)


def prelude_measures_the_wrong_prompt() -> AbstractContextManager[None]:
    def make(prefill: Any) -> Any:
        from keepsight.decoding.views import MainPrompt

        return lambda self, view, *observers: prefill(self, MainPrompt(), *observers)

    return changed(engine.HFPasses, "prefill", make)


def lens_reads_the_row_before() -> AbstractContextManager[None]:
    def make(state: Any) -> Any:
        def broken(self: Any, layer: int, row: int) -> Tensor:
            first, hidden = self._record.states[layer]
            found: Tensor = hidden[:, row - first - 1] if hidden.shape[1] > 1 else hidden[:, 0] * 1.01
            return found

        return broken

    return changed(lens.LensProcessor, "_state", make)


def hook_left_behind() -> AbstractContextManager[None]:
    from keepsight.engines.hf import patching

    def make(hook: Any) -> Any:
        def broken(place: str, index: int, layer: Any, *args: Any, **kwargs: Any) -> Any:
            layer.register_forward_pre_hook(lambda *_: None)
            return hook(place, index, layer, *args, **kwargs)

        return broken

    return changed(patching, "_hook", make)


def padding_is_attended_to() -> AbstractContextManager[None]:
    def make(allowed: Any) -> Any:
        return lambda mask, *args, **kwargs: allowed(None, *args, **kwargs)

    return changed(attention, "allowed_keys", make)


PLANTED: dict[str, tuple[Callable[[], AbstractContextManager[None]], str, str]] = {
    "a skipped layer": (skipped_layer, "pai:gamma=1.0,first_layer=0", "attention in"),
    "a shifted mask": (shifted_mask, "var:layers=0/1", "attention in"),
    "a dropped bias": (dropped_bias, "var:layers=0/1", "attention in"),
    "a wrong order of heads": (wrong_head_order, "pai:gamma=1.0,first_layer=0", "negligible strength"),
    "a wrong scaling": (wrong_scaling, "pai:gamma=1.0,first_layer=0", "attention in"),
    "the picture one column off": (picture_one_column_off, "pai:gamma=1.0,first_layer=0", "attention in"),
    "a pass one token late": (pass_one_token_late, "var:layers=0/1", "attention in"),
    "a stale cache": (stale_cache, "m3id", "large strength, from scratch"),
    "an amateur that sees the picture": (amateur_sees_the_picture, "m3id", "large strength, from scratch"),
    "edits that reach the amateur": (edits_reach_the_amateur, "m3id+vhr", "large strength, from scratch"),
    "beams that are not followed": (beams_are_not_followed, "vcd", "beams, from scratch"),
    "packed passes in another order": (packed_passes_swapped, "vcd", "shared passes"),
    "a prelude on the wrong prompt": (prelude_measures_the_wrong_prompt, "vsv", "resid_post in"),
    "a lens one row off": (lens_reads_the_row_before, "sla:window=1", "large strength, from scratch"),
    "a hook left behind": (hook_left_behind, "vsv", "the model afterwards"),
    "padding that is attended to": (padding_is_attended_to, "var:layers=0/1", "padded batch"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_called_wrong(name: str) -> None:
    plant, spec, where = PLANTED[name]
    model = copy.deepcopy(FAMILIES["llava"].model())
    assert not report("llava", spec, model=model).wrong
    with plant():
        found = report("llava", spec, model=model)
    assert found.wrong
    assert any(where in one.compared for one in found.wrong), found.wrong


def test_a_leftover_is_noticed_whatever_it_is() -> None:
    model: Any = copy.deepcopy(FAMILIES["llava"].model())
    before = Fingerprint.of(model)
    assert before.changed(Fingerprint.of(model)) is None
    with torch.no_grad():
        model.lm_head.weight.mul_(1.0)
    assert before.changed(Fingerprint.of(model)) == "weights are not what they were"
    before = Fingerprint.of(model)
    model.model.forward = model.model.forward
    assert before.changed(Fingerprint.of(model)) == "attributes of modules are not what they were"


# ----------------------------------------------------------------------------------------------------- the restatement


def test_explicit_masks_agree_with_hand_written_ones() -> None:
    lowest = torch.finfo(torch.float32).min
    seen = visible_keys(None, 2, 4, causal=True, window=None, device=torch.device("cpu"))[0, 0] == 0
    assert seen.tolist() == [[True, True, True, False], [True, True, True, True]]
    seen = visible_keys(None, 2, 4, causal=True, window=2, device=torch.device("cpu"))[0, 0] == 0
    assert seen.tolist() == [[False, True, True, False], [False, False, True, True]]
    padded = torch.tensor([[0, 1, 1, 1]])
    seen = visible_keys(padded, 1, 4, causal=True, window=None, device=torch.device("cpu"))
    assert seen.tolist() == [[[[lowest, 0.0, 0.0, 0.0]]]]
    given = torch.tensor([[[[True, False]]]])
    assert visible_keys(given, 1, 2, causal=True, window=None, device=torch.device("cpu")).tolist() == [
        [[[0.0, lowest]]]
    ]


def test_a_model_that_does_not_repeat_its_own_bits_is_not_called_wrong() -> None:
    """A GPU may add in another order on each run; no method at strength 0 can then be like the plain model to the bit."""
    model = copy.deepcopy(FAMILIES["llava"].model())
    calls = iter(range(10**9))

    def waver(_module: Any, _args: Any, output: Tensor) -> Tensor:
        return output * (1 + 1e-7 * (next(calls) % 3))

    with_hook = model.lm_head.register_forward_hook(waver)
    found = report("llava", "vhr", model=model, rows=False)
    with_hook.remove()
    assert not found.wrong, found.wrong
    assert verdicts(found, "off") == [Verdict.ROUNDING]
    assert verdicts(found, "a second run") == [Verdict.ROUNDING]


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_scores_much_smaller_than_log_probabilities_are_rounded_like_these(size: float) -> None:
    """Methods put out log-probabilities, and beams hand them in: their rounding counts, however small the scores are."""
    model = copy.deepcopy(FAMILIES["llava"].model())
    with torch.no_grad():
        model.lm_head.weight.mul_(size)
    found = report("llava", "vcd", "m3id", model=model, rows=False)
    assert not found.wrong, found.wrong
    beams = [one for one in found.findings if one.compared == "beams, from scratch"]
    assert all(one.allowed is not None and one.allowed < 2e-4 for one in beams)


def test_a_token_at_the_very_threshold_may_be_ruled_out_or_not() -> None:
    """M3ID rules out what is less probable than the best token by a factor, here one that a token just has or has not."""
    family = FAMILIES["llava"]
    with torch.no_grad():
        scores = family.model()(**family.inputs(PROMPTS[:1])).logits[0, -1].double()
    best, *others = scores.sort(descending=True).values[:6].tolist()
    specs = [f"m3id:decay=0.7,cutoff={math.exp(other - best)!r}" for other in others]
    found = report("llava", *specs, rows=False)
    assert not found.wrong, found.wrong
    assert len(verdicts(found, "as given, from scratch")) == len(specs)


def test_a_threshold_in_another_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: Any, parts: Any, given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wanted = scores(self, parts, given, *args, **kwargs)
        kept = wanted.isfinite().sum(-1)
        return wanted.masked_fill(wanted == wanted.topk(kept.item()).values[..., -1:], -torch.inf)

    scores = Restated.scores
    monkeypatch.setattr(Restated, "scores", elsewhere)
    found = report("llava", "m3id:decay=0.7,cutoff=0.01", rows=False)
    assert "as given, from scratch" in {one.compared for one in found.wrong}


@pytest.mark.slow
def test_heads_that_a_prelude_ties_may_be_chosen_or_not() -> None:
    """VHR compares heads with a pass without the picture, and in bfloat16 rounding adds up there from layer to layer."""
    from gpu.measure import padded

    from keepsight.experiments.latency.subjects import SHAPES, Source, build

    subject = build(Source(shape=SHAPES["130m"], dtype="bfloat16", image_tokens=16))
    both, alone = padded(subject.inputs(2))
    found = verify_inputs(subject.model, alone[0], (both, alone), methods=["vhr"], tokens=2)
    assert not found.wrong, found.wrong


def test_heads_of_another_choice_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its own prelude is moved by rounding, the witness does not come to choose the other half."""

    class Others(Reinforce):
        def head_out(self, out: Tensor, context: HookContext) -> Tensor:
            first = context.layer not in self.selected
            whole = super().head_out(out, context)
            if not first or self.text_only is not engine[0]:
                return whole
            self.selected[context.layer] = ~self.selected[context.layer]
            return super().head_out(out, context)

    engine: list[Any] = [None]
    parts = EditsOf.parts

    def marked(self: Any, target: Any) -> Iterator[Any]:
        for part in parts(self, target):
            if isinstance(part, Reinforce):
                engine[0] = part.text_only
            yield part

    monkeypatch.setattr(vhr, "Reinforce", Others)
    monkeypatch.setattr(EditsOf, "parts", marked)
    found = report("llava", "vhr", rows=False)
    assert any(one.compared.startswith("attention in") for one in found.wrong)
