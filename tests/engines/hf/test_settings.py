"""Inputs, precisions, kernels and ways to run a model under which a method either works or is refused by name.

What stands here is listed, with what other files test, in the table of ``docs/precision.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, SPECIAL, TEXT
from recomputed import contrast_of
from strong import STRONG
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from keepsight import InputError, UnsupportedModel, attached, methods, mitigate
from keepsight.parts import Contrast
from keepsight.target import Target

FAMILY = FAMILIES["llava"]
PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
INPUTS = FAMILY.inputs(PROMPTS)
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": SPECIAL, "do_sample": False,
}  # fmt: skip
NEW = 6
KEPT = [i for i in range(99) if i not in SPECIAL and i != 2]
"""Tokens that may be written."""
INSIDE = ("pai", "var", "vhr")
"""Methods that act in attention itself."""
every_method = pytest.mark.parametrize("method", methods())


def fresh() -> Any:
    return copy.deepcopy(FAMILY.model())


def generate(model: Any, method: str | None, inputs: dict[str, Any] = INPUTS, **options: Any) -> Any:
    inputs = {
        key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()
    }
    recipes = () if method is None else (STRONG[method],)
    with mitigate(model, *recipes):
        out = model.generate(**inputs, **OPTIONS, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def scored(model: Any, method: str | None, inputs: dict[str, Any] = INPUTS) -> Any:
    """What ``generate`` returns, with its scores."""
    inputs = {
        key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()
    }
    with mitigate(model, *(() if method is None else (at_once(method),))):
        return model.generate(**inputs, **OPTIONS, output_scores=True, return_dict_in_generate=True)


def at_once(method: str) -> Any:
    """The method at settings under which it acts on the first token already: M3ID's weight is 0 there by default."""
    return replace(STRONG[method], first=1) if method == "m3id" else STRONG[method]


def likely(scores: Tensor) -> Tensor:
    """Log-probabilities of the tokens that may be written; those that a method rules out are left out."""
    found = scores[:, KEPT].float().log_softmax(-1)
    return found.masked_fill(found == -torch.inf, 0.0)


def only_contrasts(method: str) -> bool:
    return all(isinstance(part, Contrast) for part in STRONG[method].parts(Target(FAMILY.model(), INPUTS)))


# Inputs


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@every_method
def test_rows_with_one_picture_and_with_two(name: str, method: str) -> None:
    family = FAMILIES[name]
    places = [(1, 3), (1,)]
    together = family.album(PROMPTS, places)
    batch, start = scored(family.model(), method, together), 0
    for i, row in enumerate(places):
        alone = family.album([PROMPTS[i]], [row])
        for key in ("pixel_values", "image_grid_thw"):
            if key in together:
                each = len(together[key]) // 3
                alone[key] = together[key][start * each : (start + len(row)) * each]
        start += len(row)
        single = scored(family.model(), method, alone)
        assert single.sequences[0, -NEW:].tolist() == batch.sequences[i, -NEW:].tolist()
        for ours, theirs in zip(single.scores, batch.scores, strict=True):
            torch.testing.assert_close(ours[0, KEPT], theirs[i, KEPT], atol=1e-3, rtol=1e-4)
        plain = scored(family.model(), None, alone).scores[0]
        assert (likely(single.scores[0]) - likely(plain)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("method", ["vcd", "m3id"])
def test_contrasts_of_two_pictures_recomputed(name: str, method: str) -> None:
    family, recipe = FAMILIES[name], at_once(method)
    inputs = family.album(PROMPTS[:1], [(1, 3)])
    target = Target(family.model(), inputs)
    contrast = contrast_of(recipe, target)
    without = family.text_only(PROMPTS[0])
    amateur = without if method == "m3id" else contrast.views[0].inputs(target)
    out = scored(family.model(), method, inputs)
    for step, scores in enumerate(out.scores):
        generated = out.sequences[0, inputs["input_ids"].shape[1] :][:step]
        expert, other = (family.uncached_logits(given, generated)[None] for given in (inputs, amateur))
        barred = expert.clone()
        barred[:, [i for i in range(99) if i not in KEPT]] = -torch.inf
        expected = contrast.combine(barred, [other], step)[0, KEPT].log_softmax(-1)
        torch.testing.assert_close(scores[0, KEPT].log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


@every_method
@pytest.mark.parametrize("name", ["pixel_values_videos", "video_grid_thw", "padding_mask_videos"])
def test_video_is_refused_also_beside_pictures(name: str, method: str) -> None:
    with (
        pytest.raises(InputError, match=f"video are not supported, also beside pictures .got {name}"),
        mitigate(FAMILY.model(), STRONG[method]),
    ):
        FAMILY.model().generate(**INPUTS, **{name: torch.zeros(1)}, **OPTIONS)


# Precision


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_what_float32_does(dtype: torch.dtype, method: str) -> None:
    """At the first token, whose scores depend on no earlier choice: rounding moves scores by much less than the method."""
    plain, exact = scored(fresh(), None).scores[0], scored(fresh(), method).scores[0]
    model = fresh().to(dtype)
    half = scored(model, method).scores[0]
    assert not half.isnan().any()
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    both = ((exact != -torch.inf) & (half != -torch.inf))[:, KEPT]
    assert both.any(-1).all()
    # Compared by differences to the best token of all three, since what is ruled out shifts log-probabilities
    gaps = [
        scores[:, KEPT].float() - scores[:, KEPT].float().gather(1, best(both, exact))
        for scores in (plain, exact, half)
    ]
    moved, rounded = (gaps[1] - gaps[0])[both].abs(), (gaps[1] - gaps[2])[both].abs()
    assert rounded.mean() < 0.3 * moved.mean()


def best(allowed: Tensor, scores: Tensor) -> Tensor:
    return scores[:, KEPT].masked_fill(~allowed, -torch.inf).argmax(-1, keepdim=True)


# Attention


@every_method
@pytest.mark.parametrize("kernel", ["eager", "flex_attention"])
def test_other_kernels_give_the_same_or_are_refused(
    kernel: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "flex_attention":
        flex_attention_uncompiled(monkeypatch)
    model = fresh()
    model.set_attn_implementation({"text_config": kernel})
    assert generate(model, None) == generate(fresh(), None)
    if method not in INSIDE:
        assert generate(model, method) == generate(fresh(), method) != generate(fresh(), None)
        return
    with pytest.raises(UnsupportedModel, match=f"on top of 'sdpa' or a flash kernel, not '{kernel}'"):
        generate(model, method)


def flex_attention_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers' flex attention run without a compiler for C++, which a machine need not have."""
    from torch.nn.attention import flex_attention
    from transformers import masking_utils
    from transformers.integrations import flex_attention as integration

    def block_mask(*args: Any, **more: Any) -> Any:
        return flex_attention.create_block_mask(*args, **{**more, "_compile": False})

    monkeypatch.setattr(masking_utils, "create_block_mask", block_mask)
    monkeypatch.setattr(
        integration,
        "compile_friendly_flex_attention",
        lambda *args, training=False, **more: call(*args, **more),
    )

    def call(*args: Any, **more: Any) -> Any:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises to compile
            return flex_attention.flex_attention(*args, **more)


def as_flash(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a flash kernel computes, called as transformers calls one: its mask is ``(batch, keys)``, or None."""
    assert attention_mask is None or attention_mask.ndim == 2
    rows, keys = query.shape[2], key.shape[2]
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    seen = (torch.arange(keys)[None] <= torch.arange(keys - rows, keys)[:, None])[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, -keys:].bool()
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    # A flash kernel leaves out padding, and fills in zeros
    return out.nan_to_num(0).transpose(1, 2).contiguous(), None


@contextmanager
def with_flash(model: Any) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionMaskInterface.register("as_flash", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    AttentionInterface.register("as_flash", as_flash)
    model.set_attn_implementation({"text_config": "as_flash"})
    try:
        yield
    finally:
        AttentionInterface._global_mapping.pop("as_flash")
        AttentionMaskInterface._global_mapping.pop("as_flash")


@every_method
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "one row"])
def test_a_kernel_with_the_interface_of_flash_attention(prompts: list[list[int]], method: str) -> None:
    model, inputs = fresh(), FAMILY.inputs(prompts)
    with with_flash(model):
        assert generate(model, None, inputs) == generate(fresh(), None, inputs)
        assert generate(model, method, inputs) == generate(fresh(), method, inputs)


# Ways to run


def compiled(place: str) -> Any:
    """A model of which a part is compiled in place."""
    torch._dynamo.reset()
    model = fresh()
    if place == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        model.get_submodule(place).compile(backend="eager")
    return model


@pytest.mark.parametrize("place", ["", "forward", "model.language_model"])
def test_edits_of_a_model_that_was_compiled_in_place_are_refused(place: str) -> None:
    """A compiled pass leaves out hooks that were not there when it was compiled."""
    model = compiled(place)
    named = {"": "LlavaForConditionalGeneration", "forward": "LlavaForConditionalGeneration"}.get(
        place, place
    )
    for method in methods():
        if only_contrasts(method):
            with pytest.raises(UnsupportedModel, match="its forward is compiled"):
                attached(model, INPUTS, STRONG[method], fused=True).__enter__()
        else:
            with pytest.raises(UnsupportedModel, match=f"{method}: {named} is compiled"):
                generate(model, method)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile, about its own inside
@pytest.mark.parametrize("method", [name for name in methods() if only_contrasts(name)])
@pytest.mark.parametrize("place", ["", "forward", "model.language_model"])
def test_contrasts_of_a_model_that_was_compiled_in_place(place: str, method: str) -> None:
    model = compiled(place)
    plain = generate(model, None)
    assert generate(model, method) == generate(fresh(), method) != plain


@every_method
def test_attached_lets_no_step_be_compiled_that_would_leave_out_a_method(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers compiles the steps of a static cache by itself on a GPU, and elsewhere where it is told to."""
    model, before = fresh(), FAMILY.model().generation_config.to_dict()
    asked, may = [], type(model)._valid_auto_compile_criteria

    def criteria(self: Any, kwargs: Any, config: Any) -> bool:
        config.compile_config = compile_config
        asked.append(may(self, kwargs, config))
        return False

    compile_config = CompileConfig(backend="eager")
    vars(compile_config)["_compile_all_devices"] = True
    monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", criteria)
    given = (None, GenerationConfig(eos_token_id=2, pad_token_id=0))
    for fused, config in product((True, False), given):
        asked.clear()
        with attached(model, INPUTS, STRONG[method], fused=fused) as processors:
            model.generate(
                **INPUTS,
                **OPTIONS,
                cache_implementation="static",
                generation_config=config,
                logits_processor=processors,
            )
        assert asked == [fused is False and only_contrasts(method)]
    assert model.generation_config.to_dict() == before
    with attached(model, INPUTS, STRONG[method].off()):
        assert model.generation_config.to_dict() == before, "what is off changes nothing"


def test_which_compiled_module_matters() -> None:
    for place, named in (
        ("model.language_model.layers.1.mlp", "model.language_model.layers.1.mlp"),
        ("model", "model"),
        ("model.vision_tower", None),
        ("lm_head", None),
    ):
        model = fresh()
        assert Target(model, INPUTS).compiled_module is None
        model.get_submodule(place).compile(backend="eager")
        assert Target(model, INPUTS).compiled_module == named
    model = fresh()
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    assert Target(model, INPUTS).compiled_module == "model.language_model"


def test_contrasts_of_a_decoder_without_a_list_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    expected = generate(model, "m3id")
    monkeypatch.setattr(model, "get_decoder", lambda: torch.nn.Identity())
    assert Target(model, INPUTS).compiled_module is None
    assert generate(model, "m3id") == expected
    model.lm_head.compile(backend="eager")
    assert Target(model, INPUTS).compiled_module == "lm_head"


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@every_method
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_in_training_mode(checkpointing: bool, method: str) -> None:
    """Its dropout is 0, as in published decoders; with any other, plain generation is random as well."""
    model = fresh()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    assert generate(model, method) == generate(fresh(), method)
    assert model.training


@every_method
def test_inference_mode(method: str) -> None:
    with torch.inference_mode():
        inside = generate(fresh(), method)
    assert inside == generate(fresh(), method)


@every_method
def test_a_draft_model(method: str) -> None:
    inputs, options = FAMILY.inputs([[1, 10, 11, 12]]), {"num_assistant_tokens": 3}
    draft = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    asked: list[int] = []
    draft.register_forward_hook(lambda *_: asked.append(1))
    drafted = generate(FAMILY.model(), method, inputs, assistant_model=draft, **options)
    assert asked, "the draft model was asked"
    assert drafted == generate(FAMILY.model(), method, inputs)


@every_method
@pytest.mark.parametrize("places", ["auto", {"": "cpu"}], ids=str)
def test_a_device_map_of_one_place(places: Any, method: str, tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    FAMILY.model().save_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map=places).eval()
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert generate(model, method) == generate(fresh(), method)


def test_albums_are_laid_out_as_processors_do() -> None:
    ids = FAMILY.album(PROMPTS, [(1, 3), (1,)])["input_ids"]
    assert ids[0].tolist() == [1, *[IMAGE] * 4, 10, 11, *[IMAGE] * 4, 12, 13]
    assert ids[1].tolist() == [0] * 6 + [1, *[IMAGE] * 4, 20, 21]
