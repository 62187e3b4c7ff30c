"""Views of a prompt, in every layout that pictures come in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from keepsight import M3ID, InputError, UnsupportedModel, attached
from keepsight.decoding.views import (
    MainPrompt,
    NoImage,
    TransformedImage,
    transform_pixels,
)
from keepsight.target import Target

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]


def mirrored(picture: Tensor) -> Tensor:
    return picture.flip(-1)


def qwen(**vision: int) -> SimpleNamespace:
    """What a configuration of Qwen2-VL says of patches."""
    return SimpleNamespace(model_type="qwen2_vl", vision_config=SimpleNamespace(**vision))


def patchify(picture: Tensor, size: int, merge: int, frames: int) -> Tensor:
    """One picture ``(channels, height, width)`` as Qwen-VL's processor lays it out, written patch by patch."""
    channels, height, width = picture.shape
    rows, columns = height // size, width // size
    patches = []
    for block_row in range(0, rows, merge):
        for block_column in range(0, columns, merge):
            for row in range(block_row, block_row + merge):
                for column in range(block_column, block_column + merge):
                    patch = picture[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                    patches.append(patch[:, None].expand(channels, frames, size, size).reshape(-1))
    return torch.stack(patches)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("transform", [mirrored, lambda x: x.flip(-2), lambda x: 2 * x - x.mean()])
def test_patch_lists_are_put_together_transformed_and_taken_apart(transform: Any, frames: int) -> None:
    pictures = [torch.randn(3, 8, 12), torch.randn(3, 4, 4)]
    config = qwen(patch_size=2, spatial_merge_size=2)
    grid = torch.tensor([[1, 4, 6], [1, 2, 2]])
    patches = torch.cat([patchify(picture, 2, 2, frames) for picture in pictures])
    expected = torch.cat([patchify(transform(picture), 2, 2, frames) for picture in pictures])
    found = transform_pixels({"pixel_values": patches, "image_grid_thw": grid}, config, transform)
    torch.testing.assert_close(found["pixel_values"], expected)


def test_padding_of_pictures_and_empty_tiles_stay_as_they_are() -> None:
    # Pixtral pads at the right and the bottom to the largest picture of the batch
    pixels = torch.zeros(2, 1, 2, 4)
    pixels[0, 0] = torch.arange(8.0).reshape(2, 4)
    pixels[1, 0, :1, :2] = torch.tensor([[5.0, 6.0]])
    sizes = torch.tensor([[2, 4], [1, 2]])
    found = transform_pixels({"pixel_values": pixels, "image_sizes": sizes}, None, mirrored)["pixel_values"]
    assert found[0, 0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]
    assert found[1, 0].tolist() == [[6, 5, 0, 0], [0, 0, 0, 0]]
    # LLaVA-NeXT pads with empty tiles, which its model knows by their being zero
    tiles = torch.zeros(1, 3, 1, 2, 2)
    tiles[0, 0] = 1
    found = transform_pixels({"pixel_values": tiles}, None, lambda picture: picture + 1)["pixel_values"]
    assert found.flatten(2).tolist() == [[[2.0] * 4, [0.0] * 4, [0.0] * 4]]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_s_pictures_can_be_transformed(name: str) -> None:
    family = FAMILIES[name]
    target = Target(family.model(), family.inputs(PROMPTS))
    inputs = target.model_inputs
    same = TransformedImage(lambda picture: picture).inputs(target)
    assert torch.equal(same["pixel_values"], inputs["pixel_values"])
    changed = TransformedImage(mirrored).inputs(target)
    assert changed["pixel_values"].shape == inputs["pixel_values"].shape
    assert not torch.equal(changed["pixel_values"], inputs["pixel_values"])
    twice = transform_pixels(changed, target.model.config, mirrored)
    assert torch.equal(twice["pixel_values"], inputs["pixel_values"])
    for key, value in inputs.items():
        if key != "pixel_values":
            assert changed[key] is value


def test_layouts_and_transforms_that_cannot_be_followed() -> None:
    listed = {"pixel_values": torch.zeros(4, 12), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    with pytest.raises(UnsupportedModel, match=r"pixel_values of shape \(4, 12\) cannot be found"):
        transform_pixels({"pixel_values": torch.zeros(4, 12)}, None, mirrored)
    with pytest.raises(UnsupportedModel, match="not known how a model without a type lists them"):
        transform_pixels(listed, None, mirrored)
    with pytest.raises(UnsupportedModel, match="no patch_size"):
        transform_pixels(listed, qwen(spatial_merge_size=2), mirrored)
    with pytest.raises(UnsupportedModel, match="no spatial_merge_size"):
        transform_pixels(listed, qwen(patch_size=2), mirrored)
    with pytest.raises(InputError, match="keep the shape"):
        transform_pixels({"pixel_values": torch.ones(1, 3, 4, 4)}, None, lambda picture: picture[..., 1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_without_its_picture_is_the_prompt_that_was_written_without_one(name: str) -> None:
    from families import BREAK, END

    family = FAMILIES[name]
    target = Target(family.model(), family.inputs(PROMPTS[:1]))
    found = NoImage(also_drop=(BREAK, END)).inputs(target)
    written = family.text_only(PROMPTS[0])
    assert found.keys() == written.keys()
    for key, value in written.items():
        assert torch.equal(found[key], value), key


def test_views_of_the_same_prompt_are_equal() -> None:
    assert NoImage() == NoImage()
    assert NoImage((3,)) != NoImage()
    assert TransformedImage(mirrored) == TransformedImage(mirrored)
    assert not NoImage().edited
    family = FAMILIES["llava"]
    target = Target(family.model(), family.inputs(PROMPTS))
    assert MainPrompt().inputs(target) == target.model_inputs


def test_a_source_writes_the_prompt_without_its_picture_by_the_chat_template() -> None:
    """LLaVA's template writes a line break after the picture, which stays where only the placeholders are dropped."""
    from keepsight.demo.model import load
    from keepsight.demo.world import scenes
    from keepsight.source.source import Source

    model, processor = load()
    pictures = [scene.image() for scene in scenes("val", 2)]
    source = Source.of(processor, pictures, ["Describe this image.", "Is there a cup in the image?"])
    inputs = source.inputs()
    dropped = NoImage().inputs(Target(model, inputs))
    written = NoImage().inputs(Target(model, inputs, source=source))
    texts = [
        processor.tokenizer.batch_decode(one["input_ids"], skip_special_tokens=True)
        for one in (dropped, written)
    ]
    assert [text.replace("\n", "") for text in texts[0]] == texts[1]
    assert texts[1][0] == "USER: Describe this image. ASSISTANT:"
    options = {"max_new_tokens": 5, "do_sample": False}
    with attached(model, inputs, M3ID(decay=0.5), source=source) as processors:
        model.generate(**inputs, **options, logits_processor=processors)
    assert torch.equal(processors[0].branches[0].inputs["input_ids"], written["input_ids"])  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="2 prompts and input_ids 1 rows"):
        Target(model, {key: value[:1] for key, value in inputs.items()}, source=source)
