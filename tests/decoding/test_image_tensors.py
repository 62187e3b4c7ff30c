"""Pictures are found in every layout: laws of the noise and of transforms, and what is refused."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_layouts import LAYOUTS, PLACEHOLDER, Layout
from torch import Tensor

from keepsight.decoding.image_tensors import PATCHES, image_tensors
from keepsight.decoding.vcd import draw_noise, noised
from keepsight.decoding.views import transform_pixels
from keepsight.errors import UnsupportedModel

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def noise_by_picture(layout: Layout, pictures: list[Tensor], seed: int = 0) -> list[dict[str, Tensor]]:
    """For each picture the noise of its values, in each tensor that it stands in."""
    noise = draw_noise(layout.inputs(pictures), seed, layout.config)
    places = layout.places(pictures)
    return [
        {key: values[places[key] == i + 1] for key, values in noise.items()} for i in range(len(pictures))
    ]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@every_layout
def test_the_noise_of_a_picture_depends_on_nothing_but_its_shape_and_the_seed(layout: Layout) -> None:
    pictures = layout.pictures()
    alone = [noise_by_picture(layout, [picture])[0] for picture in pictures]
    for order in permutations(range(3)):
        together = noise_by_picture(layout, [pictures[i] for i in order])
        for place, i in enumerate(order):
            assert same(together[place], alone[i]), (order, i)
    for number, other in zip(alone, noise_by_picture(layout, pictures, seed=1), strict=True):
        assert not same(number, other)


@every_layout
def test_every_value_of_a_picture_is_covered_and_padding_stays_bit_for_bit(layout: Layout) -> None:
    pictures = layout.pictures()
    inputs, places = layout.inputs(pictures), layout.places(pictures)
    noise, covered = draw_noise(inputs, 3, layout.config), noised(inputs, 3, 999, layout.config)
    assert noise.keys() == covered.keys()
    for key, values in noise.items():
        assert torch.equal(values != 0, places[key] != 0)
        assert torch.equal(covered[key] != inputs[key], places[key] != 0)
        assert covered[key].shape == inputs[key].shape


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.patches])
def test_every_patch_of_a_picture_gets_noise_of_its_own(name: str) -> None:
    layout = LAYOUTS[name]
    for noise in noise_by_picture(layout, layout.pictures()):
        for values in noise.values():
            assert len(values.unique()) == len(values)


@every_layout
def test_the_noise_is_unit_gaussian(layout: Layout) -> None:
    pictures = layout.pictures()
    drawn = [
        torch.cat([torch.cat(list(noise.values())) for noise in noise_by_picture(layout, pictures, seed)])
        for seed in range(60)
    ]
    values = torch.cat(drawn)
    assert len(values) > 10_000
    # Pictures of one shape share a sample, so that no more than a third of the values are independent.
    assert values.mean().abs() < 0.05
    assert values.std().item() == pytest.approx(1, abs=0.05)
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 0.5


@every_layout
@pytest.mark.parametrize("name", ["mirrored", "upside down", "in other colours", "brighter than its mean"])
def test_a_transformed_picture_is_the_picture_that_was_transformed_before(layout: Layout, name: str) -> None:
    change = {
        "mirrored": lambda picture: picture.flip(-1),
        "upside down": lambda picture: picture.flip(-2),
        "in other colours": lambda picture: picture.flip(0),
        "brighter than its mean": lambda picture: 2 * picture - picture.mean(),
    }[name]
    pictures = layout.pictures()
    inputs = layout.inputs(pictures)
    if not layout.transformable:
        with pytest.raises(UnsupportedModel, match="cannot be put together"):
            transform_pixels(inputs, layout.config, change)
        return
    if layout.model_type == "molmo2":
        # Its crops are pictures of their own here, 4 pixels high.
        expected = layout.inputs(
            [torch.cat([change(crop) for crop in one.split(4, dim=1)], dim=1) for one in pictures]
        )
    else:
        expected = layout.inputs([change(picture) for picture in pictures])
    found = transform_pixels(inputs, layout.config, change)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key])
    unchanged = transform_pixels(inputs, layout.config, lambda picture: picture)
    assert all(torch.equal(value, inputs[key]) for key, value in unchanged.items())


def test_pictures_in_two_tensors_get_independent_noise() -> None:
    pixels = torch.rand(1, 3, 64, 64)
    for key in ("high_res_pixel_values", "pixel_values_local"):
        noise = draw_noise({"pixel_values": pixels, key: pixels}, seed=0)
        first, second = noise["pixel_values"].flatten(), noise[key].flatten()
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.05
    # A name of its own is no second tensor.
    (renamed,) = draw_noise({"pixel_values_images": pixels}, seed=0).values()
    assert torch.equal(renamed, draw_noise({"pixel_values": pixels}, seed=0)["pixel_values"])


def test_patches_are_listed_in_any_order() -> None:
    """Gemma 4 says for each patch where it stands."""
    layout = LAYOUTS["gemma4"]
    inputs = layout.inputs(layout.pictures())
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    mixed = {key: value[:, shuffled] for key, value in inputs.items()}
    before = noised(inputs, 0, 500, layout.config)["pixel_values"]
    assert torch.equal(noised(mixed, 0, 500, layout.config)["pixel_values"], before[:, shuffled])


def test_several_pictures_in_one_prompt_of_fuyu_are_told_apart() -> None:
    layout = LAYOUTS["fuyu"]
    found = image_tensors(layout.inputs(layout.pictures()), layout.config)["image_patches"]
    assert [piece.where for piece in found] == [(slice(0, 24),), (slice(24, 28),), (slice(28, 52),)]
    assert found[0].arrange().picture == (1, 3, 8, 12)


@pytest.mark.parametrize(
    ("inputs", "model_type", "message"),
    [
        ({"pixel_values": torch.rand(3, 8, 8)}, "", r"pixel_values of shape \(3, 8, 8\)"),
        ({"pixel_values": torch.rand(16, 48)}, "", r"pixel_values of shape \(16, 48\)"),
        ({"pixel_values": torch.rand(1, 8, 8, 3)}, "", r"pixel_values of shape \(1, 8, 8, 3\)"),
        ({"pixel_values": torch.rand(1, 16, 48)}, "", r"pixel_values of shape \(1, 16, 48\)"),
        ({"pixel_values": torch.rand(16, 3, 4, 4)}, "kimi_k25", "needs image_grid_thw"),
        ({"pixel_values": torch.rand(1, 3, 4, 64)}, "minicpmv4_6", "needs target_sizes"),
        ({"pixel_values": torch.rand(1, 16, 48)}, "gemma4", "needs image_position_ids"),
        ({"pixel_values": torch.rand(1, 16, 48)}, "lfm2_vl", "needs spatial_shapes"),
        ({"pixel_values": torch.rand(2, 16, 48)}, "molmo2", "needs image_num_crops"),
        ({"pixel_values": torch.rand(16, 48)}, "fuyu", "where the placeholders are"),
        (
            {"pixel_values": torch.rand(16, 48), "image_grid_thw": torch.tensor([[1, 4, 5]])},
            "qwen2_vl", "image_grid_thw tells of 20 patches",
        ),
        (
            {"pixel_values": torch.rand(1, 16, 48), "image_grid_thw": torch.tensor([[1, 4, 4]])},
            "qwen2_vl", "one patch in each row",
        ),
        (
            {"pixel_values": torch.rand(2, 3, 8, 8), "image_sizes": torch.tensor([[480, 640]] * 2)},
            "llava", "do not fit into it",
        ),
        (
            {"pixel_values": torch.rand(1, 16, 48), "spatial_shapes": torch.tensor([[5, 5]])},
            "lfm2_vl", "more patches than there are",
        ),
        (
            {
                "pixel_values": torch.rand(1, 16, 48), "spatial_shapes": torch.tensor([[4, 4]]),
                "pixel_attention_mask": torch.tensor([[1] * 12 + [0] * 4]),
            },
            "lfm2_vl", "different numbers of patches",
        ),
        (
            {"pixel_values": torch.rand(1, 3, 4, 60), "target_sizes": torch.tensor([[4, 4]])},
            "minicpmv4_6", "a strip 64 wide",
        ),
        (
            {"pixel_values": torch.rand(3, 16, 48), "image_num_crops": torch.tensor([2])},
            "molmo2", "tells of 2 crops",
        ),
        (
            {"pixel_values": torch.rand(1, 16, 48), "image_position_ids": torch.zeros(1, 12, 2)},
            "gemma4", "do not name the place of each",
        ),
        (
            {"pixel_values": torch.rand(1, 3, 4, 4), "pixel_mask": torch.eye(4)[None]},
            "aria", "no rectangle",
        ),
        (
            {"pixel_values": torch.rand(9, 48), "input_ids": torch.tensor([[1] + [PLACEHOLDER] * 8])},
            "fuyu", "the prompts hold 8 placeholders",
        ),
        ({"pixel_values": [torch.rand(3, 8, 8)]}, "llava", "pixel_values is list"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "llava", "pixel_values is torch.uint8"),
        (
            {"pixel_values": torch.rand(1, 3, 8, 8), "depth_values": torch.rand(1, 8, 8)},
            "llava", r"'depth_values' of shape \(1, 8, 8\)",
        ),
        (
            {"pixel_values": torch.rand(1, 3, 8, 8), "thumbnails": [torch.rand(3, 4, 4)]},
            "llava", r"'thumbnails' of shape \(3, 4, 4\)",
        ),
        ({"flattened_patches": torch.rand(1, 8, 50)}, "kosmos-2.5", "'flattened_patches'"),
        ({"mm_encoder_outputs": {"image": torch.rand(1, 8)}}, "llava", "'mm_encoder_outputs' holds what a vision tower"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(inputs: dict[str, Any], model_type: str, message: str) -> None:
    config = SimpleNamespace(
        model_type=model_type, vision_config=SimpleNamespace(num_channels=3), image_token_id=PLACEHOLDER
    )
    for change in (
        lambda: draw_noise(inputs, 0, config),
        lambda: transform_pixels(inputs, config, lambda picture: picture),
    ):
        with pytest.raises(UnsupportedModel, match=message):
            change()


def test_masks_sizes_and_sound_are_no_pictures() -> None:
    inputs = {
        "input_ids": torch.ones(1, 4).long(), "attention_mask": torch.ones(1, 4), "input_features": torch.rand(1, 8, 8),
        "pixel_values": torch.rand(1, 3, 8, 8), "num_crops": torch.tensor([1]), "vision_feature_layer": -2,
        "image_sizes": None, "rows": [[1]],
    }  # fmt: skip
    assert list(image_tensors(inputs)) == ["pixel_values"]


def test_every_model_type_that_cuts_pictures_into_patches_is_one_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert PATCHES.keys() <= MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()


def test_the_docs_name_every_model_type_that_cuts_pictures_into_patches() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    for kind, patches in PATCHES.items():
        (row,) = [line for line in rows if f"`{kind}`" in line]
        assert f"`{patches.companion or 'input_ids'}`" in row
