"""An edit acts in every layer that it names, or an error tells which one it did not reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    FuyuConfig,
    FuyuForCausalLM,
    GPTNeoXConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from keepsight import PAI, VAR, VHR, VSV, Method, UnsupportedModel, mitigate
from keepsight.engines.hf.patching import editing
from keepsight.parts import Edit, HookContext
from keepsight.target import Target

IMAGE = 3
TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE], "pad_token_id": 0,
    "output_logits": True, "return_dict_in_generate": True,
}  # fmt: skip


def llava(text: Any) -> tuple[Any, dict[str, Any]]:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config), {"pixel_values": torch.randn(1, 3, 8, 8)}


def fuyu() -> tuple[Any, dict[str, Any]]:
    config = FuyuConfig(
        text_config={"model_type": "persimmon", "intermediate_size": 32, **TEXT},
        patch_size=2, num_channels=3, image_token_id=IMAGE, intermediate_size=32, **TEXT,
    )  # fmt: skip
    return FuyuForCausalLM(config), {"image_patches": torch.randn(1, 4, 12)}


BUILT = {
    "llava over OPT": lambda: llava(
        OPTConfig(ffn_dim=32, word_embed_proj_dim=32, activation_function="gelu", **TEXT)
    ),
    "llava over GPT-NeoX": lambda: llava(GPTNeoXConfig(intermediate_size=32, **TEXT)),
    "fuyu": fuyu,
}
"""Decoders whose attention modules do not look like Llama's."""


@pytest.fixture(params=BUILT)
def built(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, picture = BUILT[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    ids = torch.tensor([[1, *[IMAGE] * 4, 10, 11, 12]])
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture}


def logits(model: Any, inputs: dict[str, Any], *methods: Method) -> list[Tensor]:
    with mitigate(model, *methods):
        return list(model.generate(**inputs, **OPTIONS).logits)


@pytest.mark.parametrize(
    "recipe",
    [
        PAI(alpha=8.0, gamma=1.0, first_layer=0),
        VHR(alpha=6.0, layers=(0, 1)),
        VAR(fraction=1.0, ratio=0.0, mass=0.0, tau=0.01, dims=(3,), layers=(0, 1)),
        VSV(strength=3.0),
    ],
    ids=lambda recipe: recipe.name(),
)
def test_edits_act_on_decoders_unlike_llama(built: tuple[Any, dict[str, Any]], recipe: Method) -> None:
    model, inputs = built
    plain, changed, off = (logits(model, inputs, *recipes) for recipes in ((), (recipe,), (recipe.off(),)))
    # VAR with every token a sink has nowhere to move attention to: it is enough that it was reached
    if not isinstance(recipe, VAR):
        assert all(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))


class Boosts(Edit):
    """Adds a number to every attention score of the picture, in one layer."""

    def __init__(self, layer: int, by: float) -> None:
        self.layers, self.by = frozenset({layer}), by

    def attn_scores(self, scores: Tensor, image: Tensor, context: HookContext) -> Tensor:
        return scores + self.by * image[:, None, None]


def test_explicit_weights_are_the_model_s_own_where_nothing_is_changed(
    built: tuple[Any, dict[str, Any]],
) -> None:
    model, inputs = built
    plain = model.generate(**inputs, **OPTIONS).logits
    with editing(Target(model, inputs), Boosts(0, 0.0), Boosts(1, 0.0)):
        same = model.generate(**inputs, **OPTIONS).logits
    for a, b in zip(plain, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", [PAI(gamma=1.0, first_layer=0), VHR(layers=(0, 1))], ids=str)
def test_a_layer_that_is_not_reached_is_named(recipe: Method) -> None:
    """The attention of one layer computes by itself and does not ask transformers' interface."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, 10, 11]])
    attention = Target(model, inputs).layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    try:
        with (
            mitigate(model, recipe),
            pytest.raises(UnsupportedModel, match=r"layer 1 did not call (attn|head)"),
        ):
            model.generate(**inputs, max_new_tokens=2)
    finally:
        del attention.forward
    with mitigate(model, recipe):
        model.generate(**inputs, max_new_tokens=2)


@contextmanager
def handing(model: Any, layer: int, make: Callable[[Tensor], dict[str, Any]]) -> Iterator[None]:
    """Inside the block the attention of one layer hands further arguments to its kernel: ``make(hidden_states)``."""
    attention = Target(model, FAMILIES["llava"].inputs([[1, 10, 11]])).layers[layer].self_attn
    forward = attention.forward
    attention.forward = lambda hidden_states, **kwargs: forward(
        hidden_states, **{**kwargs, **make(hidden_states)}
    )
    try:
        yield
    finally:
        del attention.forward


@pytest.mark.parametrize("name", ["s_aux", "indices", "position_bias_of_its_own"])
def test_a_kernel_argument_that_edits_do_not_follow_is_refused(name: str) -> None:
    """Another kernel than transformers' own for sdpa may read whatever it is handed."""

    def kernel(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    model, inputs = FAMILIES["llava"].model(), FAMILIES["llava"].inputs([[1, 10, 11]])
    AttentionInterface.register("a_kernel", kernel)
    AttentionMaskInterface.register("a_kernel", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation({"text_config": "a_kernel"})
    try:
        with (
            handing(model, 0, lambda _: {name: torch.zeros(1)}),
            mitigate(model, PAI(gamma=1.0, first_layer=0)),
            pytest.raises(UnsupportedModel, match=rf"LlamaAttention hands its attention {name}"),
        ):
            model.generate(**inputs, max_new_tokens=2)
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
        AttentionInterface._global_mapping.pop("a_kernel")
        AttentionMaskInterface._global_mapping.pop("a_kernel")


def test_what_sdpa_ignores_edits_ignore_as_well() -> None:
    model, inputs = FAMILIES["llava"].model(), FAMILIES["llava"].inputs([[1, 10, 11]])
    recipe = PAI(alpha=8.0, gamma=1.0, first_layer=0)
    with mitigate(model, recipe):
        wanted = model.generate(**inputs, **OPTIONS)
        with handing(model, 0, lambda _: {"block_indices": torch.zeros(1)}):
            found = model.generate(**inputs, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(wanted.logits, found.logits, strict=True))


def test_a_bias_by_position_is_followed() -> None:
    """Inkling adds a learned bias to its scores; scores that are computed anew must have it as well."""
    model, inputs = FAMILIES["llava"].model(), FAMILIES["llava"].inputs([[1, 10, 11], [1, 12]])
    table = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 3

    def bias(hidden: Tensor) -> dict[str, Any]:
        rows, keys = hidden.shape[1], max(hidden.shape[1], last[0] + 1)
        last[0] = keys
        return {"position_bias": table[:, :, keys - rows : keys, :keys]}

    def logits(*edits: Edit) -> list[Tensor]:
        last[0] = 0
        with handing(model, 0, bias), ExitStack() as stack:
            if edits:
                stack.enter_context(editing(Target(model, inputs), *edits))
            return list(model.generate(**inputs, **OPTIONS).logits)

    last = [0]
    plain = list(model.generate(**inputs, **OPTIONS).logits)
    biased, same, boosted = logits(), logits(Boosts(0, 0.0)), logits(Boosts(0, 4.0))
    torch.testing.assert_close(biased, same, rtol=1e-4, atol=1e-4)
    assert (biased[0] - plain[0]).abs().max() > 0.1
    assert (biased[0] - boosted[0]).abs().max() > 0.1


def test_dropout_is_refused() -> None:
    """Rows that are computed anew have none, so that a model in training mode would be edited by the dropout as well."""
    model, inputs = FAMILIES["llava"].model(), FAMILIES["llava"].inputs([[1, 10, 11]])
    attention = Target(model, inputs).layers[0].self_attn
    attention.train().attention_dropout = 0.5
    try:
        with (
            mitigate(model, PAI(gamma=1.0, first_layer=0)),
            pytest.raises(UnsupportedModel, match=r"a dropout above 0 \(call model.eval"),
        ):
            model.generate(**inputs, max_new_tokens=2)
    finally:
        attention.eval().attention_dropout = 0.0


def test_layers_that_a_method_does_not_have_are_refused_before_anything_is_changed() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, 10, 11]])
    with mitigate(model, VHR(layers=(7,))), pytest.raises(ValueError, match="has layers 0 to 1, not 7"):
        model.generate(**inputs, max_new_tokens=2)
    assert not {"_keepsight_in_place", "generate"} & vars(model).keys()
