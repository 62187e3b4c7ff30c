"""What ``Target`` sees in each family, and that it raises instead of guessing."""

from __future__ import annotations

import pytest
import torch
from families import BREAK, END, FAMILIES, IMAGE, START
from transformers import GenerationConfig

from keepsight import VHR, InputError, NoImageTokens, Target, UnsupportedModel, attached
from keepsight.target import CACHE_NAMES, PIXEL_KEYS, cache_among, cache_name

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]


@pytest.mark.parametrize("name", FAMILIES)
def test_finds_the_parts(name: str) -> None:
    family = FAMILIES[name]
    target = Target(family.model(), family.inputs(PROMPTS))
    assert len(target.layers) == family.model().config.get_text_config().num_hidden_layers
    hidden = torch.randn(2, 32)
    assert target.head(target.final_norm(hidden)).shape == (2, 99)
    assert target.image_token_id == IMAGE
    pictures = family.picture(2)[0]
    assert target.image_mask.sum(-1).tolist() == [row.count(IMAGE) for row in pictures]
    assert (target.batch, target.prompt) == tuple(target.input_ids.shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_image_is_the_prompt_written_without_one(name: str) -> None:
    family = FAMILIES[name]
    target = Target(family.model(), family.inputs(PROMPTS))
    short = target.without_image(also_drop=(BREAK, END))
    assert short["input_ids"].tolist() == [[1, 10, 11, 12, 13], [0, 0, 1, 20, 21]]
    assert short["attention_mask"].tolist() == [[1] * 5, [0, 0, 1, 1, 1]]
    assert "pixel_values" not in short
    for key in set(short) - {"input_ids", "attention_mask"}:
        assert short[key].tolist() == [[0] * 5] * 2, key


def test_markers_named_by_the_configuration_go_with_the_picture() -> None:
    family = FAMILIES["qwen2_vl"]
    target = Target(family.model(), family.inputs(PROMPTS))
    assert target.marker_ids >= {START, END}
    assert target.without_image()["input_ids"].tolist() == [[1, 10, 11, 12, 13], [0, 0, 1, 20, 21]]
    assert Target(FAMILIES["mistral3"].model(), {"input_ids": torch.ones(1, 2)}).marker_ids == frozenset()


def test_a_missing_mask_is_inferred_as_generate_infers_it() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)
    mask = inputs.pop("attention_mask")
    assert torch.equal(Target(family.model(), inputs).attention_mask, mask)


def test_an_option_of_the_call_decides_what_is_padding() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)
    mask = inputs.pop("attention_mask")
    inputs["input_ids"] = inputs["input_ids"].masked_fill(mask == 0, 7)
    model = family.model()
    assert Target(model, inputs).attention_mask.all()
    given = Target(model, {**inputs, "pad_token_id": 7})
    assert torch.equal(given.attention_mask, mask)
    assert given.without_image()["input_ids"].tolist() == [[1, 10, 11, 12, 13], [7, 7, 1, 20, 21]]
    config = GenerationConfig(pad_token_id=7, eos_token_id=2)
    assert torch.equal(Target(model, {**inputs, "generation_config": config}).attention_mask, mask)
    # Padding that ends answers as well tells nothing, to generate() either
    assert Target(model, {**inputs, "pad_token_id": 7, "eos_token_id": 7}).attention_mask.all()


def test_generation_options_are_not_model_inputs() -> None:
    family = FAMILIES["qwen2_vl"]
    inputs = family.inputs(PROMPTS)
    target = Target(
        family.model(),
        {**inputs, "max_new_tokens": 5, "num_beams": 2, "streamer": object(), "use_cache": True},
    )
    assert set(target.model_inputs) == set(inputs)


def test_refusals() -> None:
    family = FAMILIES["llava"]
    model = family.model()
    with pytest.raises(NoImageTokens):
        _ = Target(model, {"input_ids": torch.tensor([[1, 2, 3]])}).image_mask
    with pytest.raises(NoImageTokens):
        _ = Target(model, {"input_ids": torch.tensor([[1, IMAGE]])}).pixel_values
    with pytest.raises(InputError, match="text to contrast"):
        Target(model, {"input_ids": torch.tensor([[IMAGE, IMAGE]])}).without_image()
    with pytest.raises(InputError, match="video"):
        Target(model, {"input_ids": torch.tensor([[1, IMAGE]]), "pixel_values_videos": torch.zeros(1)})
    for name in CACHE_NAMES:
        with pytest.raises(InputError, match=name):
            Target(model, {"input_ids": torch.tensor([[1, IMAGE]]), name: object()})
    token = model.config.image_token_id
    model.config.image_token_id = None
    try:
        with pytest.raises(UnsupportedModel, match="image_token_id"):
            _ = Target(model, {"input_ids": torch.tensor([[1, IMAGE]])}).image_token_id
    finally:
        model.config.image_token_id = token


def test_a_cache_is_found_by_its_old_name_and_its_new_one() -> None:
    def old(input_ids: object, past_key_values: object = None) -> None: ...

    def new(input_ids: object, cache: object = None) -> None: ...

    def neither(input_ids: object, **kwargs: object) -> None: ...

    assert cache_name(old) == "past_key_values"
    assert cache_name(neither, new) == "cache"
    with pytest.raises(
        UnsupportedModel, match="neither takes its cache neither as cache nor as past_key_values"
    ):
        cache_name(neither)
    kept = object()
    assert cache_among({"past_key_values": kept}) is cache_among({"cache": kept, "use_cache": True}) is kept
    assert cache_among({"cache": None, "past_key_values": None}) is None


def test_edits_are_refused_where_a_cache_has_a_name_unknown() -> None:
    """Taken for none, a cache would put every token of the answer at the place of the prompt's first."""
    family = FAMILIES["llava"]
    decoder = Target(family.model(), family.inputs([[1, 10]])).decoder
    forward = decoder.forward
    decoder.forward = lambda input_ids=None, memory=None, **kwargs: forward(input_ids, **kwargs)
    try:
        with (
            pytest.raises(UnsupportedModel, match="its cache"),
            attached(family.model(), family.inputs([[1, 10]]), VHR(layers=(0,))),
        ):
            pass
    finally:
        del decoder.forward


def test_pixels_are_found_by_each_of_their_names() -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs([[1, 5, 6]])
    pixels = inputs.pop("pixel_values")
    with pytest.raises(NoImageTokens, match="no pixel_values"):
        _ = Target(family.model(), inputs).pixels
    for key in PIXEL_KEYS:
        assert Target(family.model(), {**inputs, key: pixels}).pixels == {key: pixels}
    with pytest.raises(NoImageTokens, match="holds no picture"):
        _ = Target(family.model(), {"input_ids": torch.tensor([[1, 5, 6]]), "pixel_values": pixels}).pixels
