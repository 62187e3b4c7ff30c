"""Passes that meet: the same tokens as passes apart, the same logits, weights read once, nothing left behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from recomputed import METHODS, MODES, NEW, PROMPTS, contrast_of, run
from strong import STRONG
from torch import Tensor
from transformers import CompileConfig

from keepsight import (
    M3ID,
    PAI,
    VCD,
    GroundingRecorder,
    InputError,
    InvalidParameter,
    Method,
    UnsupportedModel,
    attached,
    mitigate,
)
from keepsight.decoding.vcd import NoisedImage
from keepsight.decoding.views import NoImage
from keepsight.engines.hf import branch
from keepsight.engines.hf.branch import branches_of
from keepsight.parts import Contrast, Edit, HookContext, Part, View
from keepsight.target import Target

FUSED = [name for name in FAMILIES if name != "mllama"]
SOME = ["llava", "qwen2_5_vl", "gemma3"]


@contextmanager
def counted(family: Family, part: str = "q_proj") -> Iterator[list[int]]:
    """How many tokens each pass through the first layer's ``part`` works on."""
    layer = Target(family.model(), family.inputs(PROMPTS)).layers[0]
    module = next(module for name, module in layer.named_modules() if name.endswith(part))
    passes: list[int] = []
    handle = module.register_forward_hook(lambda _m, args, _o: passes.append(args[0].shape[:-1].numel()))
    try:
        yield passes
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class Overheard(M3ID):
    """Changes nothing, and keeps what both branches said."""

    said: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pass

    def view(self) -> View:
        return NoImage()

    def parts(self, target: Target) -> Iterator[Contrast]:
        def combine(expert: Tensor, amateurs: Any, step: int) -> Tensor:
            self.said.append((expert, amateurs[0]))
            return expert

        yield Contrast(views=[self.view()], combine=combine)


@dataclass(frozen=True, kw_only=True)
class OverheardNoise(Overheard):
    def view(self) -> View:
        return NoisedImage(999, 0)


@pytest.mark.parametrize("kind", [Overheard, OverheardNoise])
@pytest.mark.parametrize("name", FUSED)
def test_logits_of_both_branches_are_those_of_passes_apart(name: str, kind: type[Overheard]) -> None:
    family = FAMILIES[name]
    said = []
    for fused in (True, False):
        recipe = kind(said=[])
        with mitigate(family.model(), recipe, fused=fused):
            run(family, PROMPTS)
        said.append(recipe.said)
    assert len(said[0]) == NEW
    for together, apart in zip(*said, strict=True):
        for a, b in zip(together, apart, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FUSED)
def test_weights_are_read_as_often_as_without_a_method(name: str, method: str) -> None:
    family = FAMILIES[name]
    with counted(family) as passes, mitigate(family.model(), METHODS[method], fused=True):
        run(family, PROMPTS)
    # Qwen3-VL feeds the picture in between its layers, so that two prompts with pictures are prefilled apart
    assert len(passes) == NEW + (name == "qwen3_vl" and method == "vcd")
    assert passes[-1] == 2 * len(PROMPTS)
    with counted(family) as passes, mitigate(family.model(), METHODS[method], fused=False):
        run(family, PROMPTS)
    assert len(passes) == 2 * NEW


def test_the_head_too_is_read_once() -> None:
    family = FAMILIES["llava"]
    calls: list[int] = []
    head = family.model().get_output_embeddings()
    original = head.forward

    def counting(hidden: Tensor) -> Any:
        calls.append(len(hidden))
        return original(hidden)

    head.forward = counting
    try:
        with mitigate(family.model(), METHODS["m3id"], fused=True):
            run(family, PROMPTS)
    finally:
        del head.forward
    assert calls == [2 * len(PROMPTS)] * NEW


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_the_tower_looks_at_both_pictures_at_once(name: str, options: dict[str, Any]) -> None:
    family = FAMILIES[name]
    names = ("vision_tower", "visual", "vision_model")
    parts = [module for path, module in family.model().named_modules() if path.rpartition(".")[2] in names]
    calls: list[int] = []
    handle = parts[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        for fused, expected in ((True, 1), (False, 2)):
            with mitigate(family.model(), METHODS["vcd"], METHODS["m3id"], fused=fused):
                run(family, PROMPTS, **options)
            assert len(calls) == expected
            calls.clear()
    finally:
        handle.remove()


@pytest.mark.parametrize("inner", ["pai", "vhr", "vsv", "sla", "var"])
@pytest.mark.parametrize("contrast", ["vcd", "m3id"])
@pytest.mark.parametrize("name", SOME)
def test_edits_act_on_the_main_pass_alone(name: str, contrast: str, inner: str) -> None:
    family, recipes = FAMILIES[name], (STRONG[inner], STRONG[contrast])
    for order in (recipes, recipes[::-1]):
        results = []
        for fused in (True, False):
            with mitigate(family.model(), *order, fused=fused):
                results.append(run(family, PROMPTS, num_beams=2))
        assert torch.equal(*results)
    with mitigate(family.model(), recipes[1]):
        assert not torch.equal(run(family, PROMPTS, num_beams=2), results[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOME)
def test_two_amateurs_in_one_pass(name: str, mode: str) -> None:
    family, recipes = FAMILIES[name], (METHODS["vcd"], METHODS["m3id"])
    with mitigate(family.model(), *recipes, fused=False):
        apart = run(family, PROMPTS, **MODES[mode])
    with counted(family) as passes, mitigate(family.model(), *recipes, fused=True):
        assert torch.equal(run(family, PROMPTS, **MODES[mode]), apart)
    rows = len(PROMPTS) * (3 if "beam" in mode else 1)
    assert len(passes) == NEW
    assert passes[-1] == 3 * rows


def test_methods_with_one_amateur_share_it() -> None:
    family = FAMILIES["llava"]
    recipes = (PAI(alpha=0.0, gamma=3.0), M3ID(decay=0.5))
    inputs = family.inputs(PROMPTS)
    results = []
    for fused in (True, False):
        with counted(family) as passes, mitigate(family.model(), *recipes, fused=fused):
            results.append(run(family, PROMPTS))
        assert len(passes) == (NEW if fused else 2 * NEW)
    assert torch.equal(*results)
    with (
        attached(family.model(), inputs, recipes[0], fused=False) as first,
        attached(family.model(), inputs, recipes[1], fused=False) as second,
    ):
        assert torch.equal(run(family, PROMPTS, *first, *second), results[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fused", [True, False])
def test_a_pass_that_is_listened_to_is_the_prefill_of_who_has_the_same_prompt(fused: bool, mode: str) -> None:
    family = FAMILIES["llava"]
    for order in (("vsv", "m3id"), ("m3id", "vsv"), ("vhr", "m3id")):
        recipes = [STRONG[name] for name in order]
        recipes[order.index("m3id")] = M3ID(decay=0.7, cutoff=0.0)
        with counted(family) as passes, mitigate(family.model(), *recipes, fused=fused):
            together = run(family, PROMPTS, **MODES[mode])
        alone = [recipe for recipe in recipes if not isinstance(recipe, M3ID)]
        with counted(family) as fewer, mitigate(family.model(), *alone):
            run(family, PROMPTS, **MODES[mode])
        # The amateur's prompt costs nothing more: one pass for each later token, or none
        assert len(passes) == len(fewer) + (0 if fused else NEW - 1)
        inputs = family.inputs(PROMPTS)
        with (
            attached(family.model(), inputs, *alone),
            attached(family.model(), inputs, M3ID(decay=0.7, cutoff=0.0)) as own,
        ):
            apart = run(family, PROMPTS, *own, **MODES[mode])
        assert torch.equal(together, apart)


def test_a_cache_with_the_picture_is_not_kept_for_listening() -> None:
    family = FAMILIES["llava"]
    target = Target(family.model(), family.inputs(PROMPTS))
    with STRONG["vsv"].attach(target):
        assert [branch.sees for branch in branches_of(target)] == [False]


@pytest.mark.parametrize("name", SOME)
def test_a_recorder_shares_the_branch_of_a_method_and_the_passes_of_the_model(name: str) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    plain = run(family, PROMPTS)
    heard = []
    for riding in (True, False):
        recorder = GroundingRecorder(family.model(), inputs, fused=True)
        with counted(family) as passes, recorder.sharing_passes() if riding else nullcontext():
            assert torch.equal(run(family, PROMPTS, recorder), plain)
        assert len(passes) == (NEW if riding else 2 * NEW)
        heard.append(recorder.rows(torch.cat([inputs["input_ids"], plain], dim=1)))
    for (_, a), (_, b) in zip(*heard, strict=True):
        torch.testing.assert_close(list(a), list(b), rtol=1e-4, atol=1e-4)
    recorder = GroundingRecorder(family.model(), inputs, fused=True)
    with counted(family) as passes, mitigate(family.model(), METHODS["m3id"], fused=True):
        run(family, PROMPTS, recorder)
    assert len(passes) == NEW


def test_an_amateur_without_a_picture_holds_no_columns_for_it() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)
    with attached(family.model(), inputs, METHODS["m3id"], fused=True) as processors:
        run(family, PROMPTS, *processors)
    cache = processors[0].branches[0]._cache  # type: ignore[attr-defined]
    assert cache.get_seq_length() == max(map(len, PROMPTS)) + NEW - 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "options",
    [
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
        {"num_return_sequences": 3, "do_sample": True},
        {"output_hidden_states": True, "output_attentions": False},
    ],
    ids=str,
)
def test_other_ways_of_generating(name: str, method: str, options: dict[str, Any]) -> None:
    family, results = FAMILIES[name], []
    for fused in (True, False):
        with mitigate(family.model(), METHODS[method], fused=fused):
            try:
                results.append(run(family, PROMPTS, **options))
            except ValueError as error:  # what transformers itself refuses, it refuses either way
                results.append(torch.tensor([len(str(error))]))
    assert torch.equal(*results)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["prompt_lookup", "draft_model"])
def test_assisted_decoding_runs_apart_and_gives_the_same(method: str, how: str) -> None:
    family, prompts = FAMILIES["llava"], [[1, *[10, 11, 12] * 4]]
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if how == "draft_model":
        options = {"assistant_model": family.model()}
    with mitigate(family.model(), METHODS[method], fused=True):
        assert torch.equal(run(family, prompts, **options), run(family, prompts))


def test_what_cannot_share_passes_runs_apart_or_is_refused_by_name() -> None:
    family = FAMILIES["llava"]
    model, method = family.model(), METHODS["vcd"]
    with mitigate(model, method, fused=False):
        apart = run(family, PROMPTS)

    def check(why: str, **options: Any) -> None:
        with pytest.raises(UnsupportedModel, match=why), mitigate(model, method, fused=True):
            run(family, PROMPTS, **options)
        with mitigate(model, method):
            assert torch.equal(run(family, PROMPTS, **options), apart)

    check("without a cache", use_cache=False)
    model.forward = torch.compile(model.forward, backend="eager")
    try:
        check("its forward is compiled")
    finally:
        del model.forward
    decoder = Target(model, family.inputs(PROMPTS)).decoder
    forward = decoder.forward
    decoder.forward = lambda **given: forward(**given)
    try:
        check("takes its cache neither as")
    finally:
        del decoder.forward


def test_states_kept_for_the_caller_are_the_main_pass_s() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)
    kept = []
    for fused in (True, False):
        with mitigate(family.model(), METHODS["vcd"], fused=fused):
            out = family.model().generate(
                **inputs,
                max_new_tokens=3,
                do_sample=False,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
        kept.append([state for step in out.hidden_states for state in step])
    assert [a.shape for a in kept[0]] == [b.shape for b in kept[1]]
    for a, b in zip(*kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Eager(VCD):
    """Never satisfied that a step is decided."""

    def parts(self, target: Target) -> Iterator[Contrast]:
        for part in super().parts(target):
            yield replace(part, decided=None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_steps_that_are_decided_are_skipped_and_made_up_for(name: str, mode: str) -> None:
    family = FAMILIES[name]
    results, counts = [], []
    for kind in (VCD, Eager):
        with counted(family) as passes, mitigate(family.model(), kind(beta=0.5, alpha=4.0), fused=False):
            results.append(run(family, PROMPTS[:1], **MODES[mode]))
        counts.append(len(passes))
    assert torch.equal(*results)
    assert counts[0] < counts[1] == 2 * NEW


def test_a_decided_step_scores_the_same_with_and_without_the_amateur() -> None:
    expert = torch.tensor([[4.0, 0.0, -1.0]])
    amateur = torch.tensor([[-3.0, 9.0, 2.0]])
    recipes: list[tuple[Method, bool]] = [
        (VCD(beta=0.1), True), (VCD(beta=0.01), False), (M3ID(cutoff=0.1), True), (M3ID(gate=0.9), True),
        (M3ID(gate=0.99), False), (M3ID(gate=0.99, cutoff=0.1), True),
    ]  # fmt: skip
    for recipe, decided in recipes:
        contrast = contrast_of(recipe, Target(FAMILIES["llava"].model(), FAMILIES["llava"].inputs(PROMPTS)))
        assert contrast.decided is not None
        assert contrast.decided(expert, 5).tolist() == [decided], recipe
        if decided:
            with_it, without = (contrast.combine(expert, one, 5).log_softmax(-1) for one in ([amateur], None))
            torch.testing.assert_close(with_it, without)


def test_an_error_in_the_middle_of_a_shared_pass_leaves_nothing_behind() -> None:
    family = FAMILIES["llava"]
    plain = run(family, PROMPTS)
    target = Target(family.model(), family.inputs(PROMPTS))
    mlp = target.layers[1].mlp
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError

    handle = mlp.register_forward_hook(fail)
    try:
        with (
            mitigate(family.model(), METHODS["vcd"], METHODS["m3id"], fused=True),
            pytest.raises(ZeroDivisionError),
        ):
            run(family, PROMPTS)
    finally:
        handle.remove()
    for module in (family.model(), target.decoder, target.head, *target.layers):
        assert "forward" not in vars(module)
        assert "prepare_inputs_for_generation" not in vars(module)
    assert family.model().config.get_text_config()._attn_implementation == "sdpa"
    assert torch.equal(run(family, PROMPTS), plain)


def test_what_cannot_be_fused_is_refused_where_it_was_demanded_and_runs_apart_otherwise() -> None:
    mllama = FAMILIES["mllama"]
    with (
        mitigate(mllama.model(), METHODS["m3id"], fused=True),
        pytest.raises(UnsupportedModel, match="MllamaText"),
    ):
        run(mllama, PROMPTS)
    llava = FAMILIES["llava"]
    llava.model().set_attn_implementation({"text_config": "eager"})
    try:
        with (
            mitigate(llava.model(), METHODS["m3id"], fused=True),
            pytest.raises(UnsupportedModel, match="eager"),
        ):
            run(llava, PROMPTS)
        with mitigate(llava.model(), METHODS["m3id"]):
            eager = run(llava, PROMPTS)
    finally:
        llava.model().set_attn_implementation({"text_config": "sdpa"})
    with mitigate(llava.model(), METHODS["m3id"]):
        assert torch.equal(run(llava, PROMPTS), eager)
    with pytest.raises(InvalidParameter, match="fused='yes'"), mitigate(llava.model(), "m3id", fused="yes"):  # type: ignore[arg-type]
        run(llava, PROMPTS)


def test_auto_runs_apart_where_sharing_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["llava"]
    for smallest, passes_each in ((0, 1), (10**9, 2)):
        monkeypatch.setattr("keepsight.engines.hf.fused_pass.SMALL", smallest)
        with counted(family) as passes, mitigate(family.model(), METHODS["vcd"]):
            run(family, PROMPTS)
        assert len(passes) == passes_each * NEW


def test_methods_inside_the_model_refuse_compiled_steps() -> None:
    family = FAMILIES["llava"]
    options = {"cache_implementation": "static", "compile_config": CompileConfig()}
    with (
        mitigate(family.model(), METHODS["m3id"], STRONG["vhr"]),
        pytest.raises(InputError, match=r"m3id\+vhr: a compiled step"),
    ):
        run(family, PROMPTS, **options)
    plain = run(family, PROMPTS, cache_implementation="static")
    with mitigate(family.model(), STRONG["vhr"]):
        inside = run(family, PROMPTS, cache_implementation="static")
        assert torch.equal(inside, run(family, PROMPTS))
    assert not torch.equal(inside, plain)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("since", [1, 3])
@pytest.mark.parametrize("methods", [("m3id",), ("vcd",), ("vcd", "m3id")], ids=str)
def test_a_layer_that_cannot_be_shared_lets_the_amateurs_run_apart(
    monkeypatch: pytest.MonkeyPatch, at: int, since: int, methods: tuple[str, ...]
) -> None:
    """From some pass on, a layer is handed something of which it is not known how passes share it."""
    family = FAMILIES["llava"]
    monkeypatch.setattr("keepsight.engines.hf.fused_pass.SMALL", 0)
    recipes = [METHODS[name] for name in methods]
    with mitigate(family.model(), *recipes, fused=False):
        apart = run(family, PROMPTS)
    decoder = Target(family.model(), family.inputs(PROMPTS)).decoder
    layer, passes = decoder.layers[at], []
    forward = layer.forward

    def odd(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(hidden, *args, **{key: value for key, value in kwargs.items() if key != "odd"})

    call = type(layer).__call__

    def calls(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer and len(passes) >= since:
            kwargs["odd"] = torch.ones(1)
        return call(self, *args, **kwargs)

    handle = decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(type(layer), "__call__", calls)
    layer.forward = odd
    try:
        with mitigate(family.model(), *recipes):
            assert torch.equal(run(family, PROMPTS), apart)
        passes.clear()
        with (
            mitigate(family.model(), *recipes, fused=True),
            pytest.raises(
                UnsupportedModel,
                match=r"fused=True, but (it is not known how passes share 'odd'|passes hand different)",
            ),
        ):
            run(family, PROMPTS, max_new_tokens=20)
    finally:
        del layer.forward
        handle.remove()
    monkeypatch.undo()
    with mitigate(family.model(), *recipes, fused=True):
        assert torch.equal(run(family, PROMPTS), apart)


class Louder(Edit):
    """Scales what every MLP puts out."""

    layers = frozenset({0, 1})

    def __init__(self) -> None:
        self.prompts: set[int] = set()

    def mlp_out(self, hidden: Tensor, context: HookContext) -> Tensor:
        self.prompts.add(context.prompt)
        return hidden * 3


@dataclass(frozen=True)
class EditedView(NoImage):
    """The text alone, in passes that are edited like the main ones."""

    @property
    def edited(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class EditsBoth(M3ID):
    """Edits the model, and contrasts it with a view of itself."""

    view: View = field(default_factory=NoImage)
    louder: list[Louder] = field(default_factory=list)

    def __post_init__(self) -> None:
        pass

    def parts(self, target: Target) -> Iterator[Part]:
        self.louder.append(Louder())
        yield self.louder[-1]
        yield Contrast(views=[self.view], combine=lambda expert, amateurs, _: 3 * expert - 2 * amateurs[0])


def test_an_amateur_that_is_edited_like_the_model_runs_apart() -> None:
    """In a shared pass edits act on the main pass alone: to share it would drop them in silence."""
    family = FAMILIES["llava"]
    recipe = EditsBoth(view=EditedView())
    with mitigate(family.model(), EditsBoth(), fused=True):
        plain_view = run(family, PROMPTS)
    with (
        mitigate(family.model(), recipe, fused=True),
        pytest.raises(UnsupportedModel, match="edited like the main"),
    ):
        run(family, PROMPTS)
    with mitigate(family.model(), recipe, fused=False):
        found = run(family, PROMPTS)
    assert not torch.equal(found, plain_view)
    # Each pass is told of its own prompt
    width = family.inputs(PROMPTS)["input_ids"].shape[1]
    assert recipe.louder[-1].prompts == {width, width - 4}


def test_an_amateur_s_cache_goes_with_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when Python next looks for cycles: it may be as large as the main one."""
    family, caches, make = FAMILIES["llava"], [], branch.growing_cache

    def watched(config: Any) -> Any:
        cache = make(config)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(branch, "growing_cache", watched)
    gc.collect()
    gc.disable()
    try:
        with mitigate(family.model(), STRONG["m3id"], fused=True):
            run(family, PROMPTS)
        assert [cache() for cache in caches] == [None]
    finally:
        gc.enable()
