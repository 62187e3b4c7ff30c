"""What ``Target`` sees in each family, and that it raises instead of guessing."""

from __future__ import annotations

from typing import Any

import mapped
import pytest
import tiny_configs
import torch
from families import BREAK, END, FAMILIES, IMAGE, START
from transformers import CONFIG_MAPPING, GenerationConfig, Phi4MultimodalForCausalLM

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


def _ids(*ids: int) -> dict[str, Any]:
    return {"input_ids": torch.tensor([ids])}


@pytest.mark.parametrize("name", ["chameleon", "emu3"])
def test_a_vocabulary_in_the_configuration_names_the_placeholder(name: str) -> None:
    model = mapped.build(name).model
    token = model.config.image_token_id
    model.config.image_token_id = None
    try:
        target = Target(model, _ids(1, token, token, 9))
        assert target.image_token_id == token == model.config.vocabulary_map["<image>"]
        assert target.image_mask.tolist() == [[False, True, True, False]]
        model.config.vocabulary_map.pop("<image>")
        with pytest.raises(UnsupportedModel, match="names no image token"):
            _ = Target(model, _ids(1, token)).image_token_id
    finally:
        model.config.image_token_id = model.config.vocabulary_map["<image>"] = token


def test_all_between_the_markers_that_a_vocabulary_names_goes_with_the_picture() -> None:
    """Emu3's processor writes the size of the picture in digits after the token that opens it."""
    model = mapped.build("emu3").model
    map_ = model.config.vocabulary_map
    names = {"<|image start|>": 150, "<|image token|>": 151, "<|image end|>": 152}
    map_ |= names
    try:
        image = model.config.image_token_id
        ids = [1, 5, 150, 60, 61, 62, 151, image, image, 152, 60, 6, 150, 61, 151, image, 152, 7]
        target = Target(model, {**_ids(*ids), "pixel_values": torch.zeros(1)})
        assert target.marker_ids == {150, 152}
        assert target.without_image()["input_ids"].tolist() == [[1, 5, 60, 6, 7]]
    finally:
        for text in names:
            del map_[text]


def test_the_vision_part_may_name_the_placeholder() -> None:
    config = tiny_configs.shrink(CONFIG_MAPPING["phi4_multimodal"]().to_dict())
    tiny_configs.renumber(config, iter(tiny_configs.SPECIAL), {})
    config["vision_config"] |= {"image_token_id": 141, "crop_size": 16}
    with torch.device("meta"):
        model = Phi4MultimodalForCausalLM(CONFIG_MAPPING["phi4_multimodal"].from_dict(config))
    pictures = {
        "image_pixel_values": torch.zeros(1, 1, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
        "image_attention_mask": torch.ones(1, 1, 4, 4),
    }
    target = Target(model, {**_ids(1, 141, 141, 9), **pictures})
    target.check_prompt()
    assert target.image_mask.sum() == 2
    short = target.without_image()
    assert short.keys() == {"input_ids", "attention_mask"}
    assert short["input_ids"].tolist() == [[1, 9]]


def test_a_sound_stays_when_the_picture_goes() -> None:
    model = mapped.build("qwen2_5_omni_thinker").model
    image, audio = model.config.image_token_id, model.config.audio_token_id
    sound = {
        "input_features": torch.randn(1, 8, 16),
        "feature_attention_mask": torch.ones(1, 16).long(),
    }
    prompt = _ids(1, image, audio, audio, 9)
    target = Target(model, {**prompt, **sound, "pixel_values": torch.zeros(1)})
    target.check_prompt()
    short = target.without_image()
    assert short["input_ids"].tolist() == [[1, audio, audio, 9]]
    assert all(short[key] is value for key, value in sound.items())
    with pytest.raises(NoImageTokens, match="no pixel_values"):
        Target(model, {**prompt, **sound}).check_prompt()


def test_a_list_of_markers_goes_with_the_picture() -> None:
    model = mapped.build("ovis2").model
    image = model.config.image_token_id
    opening, closing = model.config.visual_indicator_token_ids[0], model.config.visual_indicator_token_ids[-1]
    target = Target(model, {**_ids(1, opening, image, closing, 9), "pixel_values": torch.zeros(1)})
    assert target.without_image()["input_ids"].tolist() == [[1, 9]]


@pytest.mark.parametrize("name", ["step3p7", "molmo2", "video_llama_3", "unlimited_ocr", "granite_docling"])
def test_everything_that_describes_a_picture_goes_with_it(name: str) -> None:
    built = mapped.build(name)
    inputs = dict(built.inputs)
    if name == "granite_docling":
        inputs["tile_fine_mask"] = torch.ones(1).bool()
    short = Target(built.model, inputs).without_image()
    assert short.keys() <= {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert short["input_ids"].tolist() == [mapped.TEXTS[0]]


def test_an_input_unknown_is_not_taken_for_a_picture() -> None:
    built = mapped.build("llava")
    with pytest.raises(UnsupportedModel, match="'per_layer_inputs' belongs to the picture"):
        Target(built.model, {**built.inputs, "per_layer_inputs": torch.zeros(1)}).without_image()


@pytest.mark.parametrize("name", ["llava:gpt2", "llava:gpt_neox", "llava:opt", "lfm2_vl", "nemotron_h_omni"])
def test_decoders_that_name_their_parts_otherwise(name: str) -> None:
    """The last block's output, through the norm and the head, gives the logits of the model."""
    built = mapped.build(name)
    target = Target(built.model, built.inputs)
    assert len(target.layers) == tiny_configs.LAYERS
    last: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    with torch.no_grad(), target.layers[-1].register_forward_hook(keep):
        logits = built.model(**built.inputs).logits
        assert torch.allclose(target.head(target.final_norm(last[0])), logits, atol=1e-5)


def test_a_block_whose_parts_add_the_residual_is_refused() -> None:
    tiny_configs.VARIANTS["llava:bloom"] = tiny_configs.text_decoder("bloom")
    try:
        built = mapped.build("llava:bloom")
    finally:
        del tiny_configs.VARIANTS["llava:bloom"]
    with pytest.raises(UnsupportedModel, match="BloomAttention adds the residual itself"):
        _ = Target(built.model, built.inputs).layers


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
