"""Pictures in the layouts of many families, written patch by patch with plain loops, as their processors lay them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Pictures = list[Tensor]
PLACEHOLDER, OTHER = 90, 5


@dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        build: from pictures ``(channels, height, width)`` and the value of padding to a model's inputs.
        sizes: heights and widths of the pictures that tests put into it.
        model_type: the type of the model, where it matters.
        vision: what the vision tower's configuration says.
        patches: whether pictures come as patches, whose noise must all be different.
        transformable: whether the inputs say enough to put pictures together.
        padding: the value of padding, where the processor normalises it.
    """

    build: Callable[[Pictures, float], dict[str, Any]]
    sizes: tuple[tuple[int, int], ...] = ((8, 12), (4, 4), (12, 8))
    model_type: str = ""
    vision: dict[str, Any] = field(default_factory=dict)
    patches: bool = True
    transformable: bool = True
    padding: float = 0.0

    @property
    def config(self) -> Any:
        vision = SimpleNamespace(num_channels=3, **self.vision)
        return SimpleNamespace(model_type=self.model_type, vision_config=vision, image_token_id=PLACEHOLDER)

    def pictures(self, seed: int = 0) -> Pictures:
        generator = torch.Generator().manual_seed(100 + seed)
        return [torch.randn(3, *size, generator=generator) for size in self.sizes]

    def inputs(self, pictures: Pictures) -> dict[str, Any]:
        return self.build(pictures, self.padding)

    def places(self, pictures: Pictures) -> dict[str, Tensor]:
        """For every tensor of pixels, which picture each value belongs to: 1 for the first, and so on; 0 for padding."""
        numbered = [torch.full_like(picture, i + 1) for i, picture in enumerate(pictures)]
        return {
            key: value
            for key, value in self.build(numbered, 0.0).items()
            if torch.is_tensor(value) and value.is_floating_point()
        }


def squares(picture: Tensor, size: int) -> list[list[Tensor]]:
    """Rows of patches ``(channels, size, size)`` of a picture."""
    _, height, width = picture.shape
    return [
        [picture[:, y : y + size, x : x + size] for x in range(0, width, size)]
        for y in range(0, height, size)
    ]


def grid_of(picture: Tensor, size: int) -> list[int]:
    return [picture.shape[-2] // size, picture.shape[-1] // size]


def by_row(picture: Tensor, size: int) -> Pictures:
    return [patch for row in squares(picture, size) for patch in row]


def by_block(picture: Tensor, size: int, merge: int = 2) -> Pictures:
    rows = squares(picture, size)
    return [
        rows[top + y][left + x]
        for top in range(0, len(rows), merge)
        for left in range(0, len(rows[0]), merge)
        for y in range(merge)
        for x in range(merge)
    ]


def listed(
    order: Callable[[Tensor, int], Pictures],
    lay: Callable[[Tensor], Tensor],
    name: str = "image_grid_thw",
    size: int = 2,
    merges: bool = False,
) -> Callable[[Pictures, float], dict[str, Any]]:
    """All patches of all pictures in one list."""

    def build(pictures: Pictures, padding: float) -> dict[str, Any]:
        patches = [lay(patch) for picture in pictures for patch in order(picture, size)]
        grids = [grid_of(picture, size) for picture in pictures]
        if name == "image_grid_thw":
            grids = [[1, *grid] for grid in grids]
        more = {"image_merge_sizes": torch.full((len(pictures),), 2)} if merges else {}
        return {"pixel_values": torch.stack(patches), name: torch.tensor(grids), **more}

    return build


def channels_last(patch: Tensor) -> Tensor:
    return patch.permute(1, 2, 0).reshape(-1)


def padded_rows(pictures: Pictures, padding: float, longest: int = 30) -> Tensor:
    out = torch.full((len(pictures), longest, 12), padding)
    for row, picture in zip(out, pictures, strict=True):
        for place, patch in zip(row, by_row(picture, 2), strict=False):
            place.copy_(channels_last(patch))
    return out


def lfm2(pictures: Pictures, padding: float) -> dict[str, Any]:
    shapes = torch.tensor([grid_of(picture, 2) for picture in pictures])
    mask = (torch.arange(30) < shapes.prod(-1)[:, None]).long()
    return {
        "pixel_values": padded_rows(pictures, padding),
        "spatial_shapes": shapes,
        "pixel_attention_mask": mask,
    }


def gemma4(pictures: Pictures, padding: float) -> dict[str, Any]:
    positions = torch.full((len(pictures), 30, 2), -1)
    for row, picture in zip(positions, pictures, strict=True):
        height, width = grid_of(picture, 2)
        for n in range(height * width):
            row[n] = torch.tensor([n % width, n // width])
    return {"pixel_values": padded_rows(pictures, padding), "image_position_ids": positions}


def molmo2(pictures: Pictures, padding: float) -> dict[str, Any]:
    """Crops of 4 x 4 pixels, four patches of 2 x 2 in each; every picture is a column of crops, 4 wide."""
    crops = [
        torch.stack([channels_last(patch) for patch in by_row(crop, 2)])
        for picture in pictures
        for crop in picture.split(4, dim=1)
    ]
    counts = torch.tensor([picture.shape[1] // 4 for picture in pictures])
    return {
        "pixel_values": torch.stack(crops),
        "image_num_crops": counts,
        "image_grids": torch.ones(1, 4).long(),
    }


def minicpm(pictures: Pictures, padding: float) -> dict[str, Any]:
    strip = torch.cat([patch for picture in pictures for patch in by_row(picture, 2)], dim=-1)
    return {
        "pixel_values": strip[None],
        "target_sizes": torch.tensor([grid_of(picture, 2) for picture in pictures]),
    }


def fuyu_prompt(picture: Tensor) -> list[int]:
    height, width = grid_of(picture, 2)
    return [*([PLACEHOLDER] * width + [OTHER]) * height, OTHER, OTHER]


def fuyu(pictures: Pictures, padding: float) -> dict[str, Any]:
    """All pictures in one prompt."""
    patches = [channels_last(patch) for picture in pictures for patch in by_row(picture, 2)]
    ids = [token for picture in pictures for token in fuyu_prompt(picture)]
    return {"image_patches": torch.stack(patches), "input_ids": torch.tensor([ids])}


def fuyu_batch(pictures: Pictures, padding: float) -> dict[str, Any]:
    """One picture in each prompt, with a dimension for the batch."""
    patches = [torch.stack([channels_last(patch) for patch in by_row(picture, 2)]) for picture in pictures]
    ids = torch.tensor([fuyu_prompt(picture) for picture in pictures])
    return {"pixel_values": torch.stack(patches), "input_ids": ids}


def inkling(pictures: Pictures, padding: float) -> dict[str, Any]:
    """One placeholder for each patch, twice in time, channels last; a picture in each prompt."""
    patches = [
        torch.stack([patch.permute(1, 2, 0)] * 2) for picture in pictures for patch in by_row(picture, 2)
    ]
    width = max(len(by_row(picture, 2)) for picture in pictures) + 2
    ids = torch.full((len(pictures), width), OTHER)
    for row, picture in zip(ids, pictures, strict=True):
        row[1 : 1 + len(by_row(picture, 2))] = PLACEHOLDER
    return {"pixel_values": torch.stack(patches), "input_ids": ids}


def canvas(pictures: Pictures, padding: float) -> tuple[Tensor, Tensor]:
    """Pictures padded at the right and the bottom to the largest, and a mask of what is no padding."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (-2, -1))
    out = torch.full((len(pictures), 3, height, width), padding)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.bool)
    for i, picture in enumerate(pictures):
        out[i, :, : picture.shape[-2], : picture.shape[-1]] = picture
        mask[i, : picture.shape[-2], : picture.shape[-1]] = True
    return out, mask


def pixtral(pictures: Pictures, padding: float) -> dict[str, Any]:
    sizes = torch.tensor([list(picture.shape[-2:]) for picture in pictures])
    return {"pixel_values": canvas(pictures, padding)[0], "image_sizes": sizes}


def aria(pictures: Pictures, padding: float) -> dict[str, Any]:
    pixels, mask = canvas(pictures, padding)
    return {"pixel_values": pixels, "pixel_mask": mask}


def nested(values: Tensor) -> Tensor:
    """The first picture in one prompt and all others in the second, padded with zeros."""
    if len(values) == 1:
        return values[None]
    out = values.new_zeros(2, len(values) - 1, *values.shape[1:])
    out[0, 0], out[1] = values[0], values[1:]
    return out


def idefics(pictures: Pictures, padding: float) -> dict[str, Any]:
    pixels, mask = canvas(pictures, padding)
    return {"pixel_values": nested(pixels), "pixel_attention_mask": nested(mask)}


def granite_docling(pictures: Pictures, padding: float) -> dict[str, Any]:
    mask = nested(torch.ones(len(pictures), dtype=torch.bool))
    return {"pixel_values": nested(torch.stack(pictures)), "pixel_attention_mask": mask}


def llava_next(pictures: Pictures, padding: float) -> dict[str, Any]:
    """``image_sizes`` are those of the files, and larger than the tiles."""
    tiles = nested(torch.stack(pictures))
    return {"pixel_values": tiles, "image_sizes": torch.tensor([[480, 640]] * len(tiles))}


def mllama(pictures: Pictures, padding: float) -> dict[str, Any]:
    tiles = nested(torch.stack(pictures))[:, None]
    return {
        "pixel_values": tiles,
        "aspect_ratio_ids": torch.ones(len(tiles), 1).long(),
        "aspect_ratio_mask": torch.ones(tiles.shape[:3]).long(),
    }


def hybrid(pictures: Pictures, padding: float) -> dict[str, Any]:
    small = torch.stack(pictures)
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return {"pixel_values": small, "high_res_pixel_values": large}


def with_crops(pictures: Pictures, padding: float) -> dict[str, Any]:
    return {
        "pixel_values": torch.stack(pictures),
        "pixel_values_local": torch.cat([torch.stack([picture, picture]) for picture in pictures]),
        "num_local_patches": torch.full((len(pictures),), 2),
    }


_SAME = ((8, 8),) * 3
_QWEN = {"patch_size": 2, "spatial_merge_size": 2}


def _twice(patch: Tensor) -> Tensor:
    return torch.stack([patch, patch], dim=1).reshape(-1)


LAYOUTS: dict[str, Layout] = {
    "llava": Layout(lambda pictures, _: {"pixel_values": torch.stack(pictures)}, _SAME, patches=False),
    "video_llava": Layout(
        lambda pictures, _: {"pixel_values_images": torch.stack(pictures)}, _SAME, patches=False
    ),
    "llava_next": Layout(llava_next, _SAME, patches=False),
    "mllama": Layout(mllama, _SAME, patches=False),
    "granite_docling": Layout(granite_docling, _SAME, patches=False),
    "idefics3": Layout(idefics, patches=False),
    "aria": Layout(aria, patches=False, padding=-1.5),
    "pixtral": Layout(pixtral, patches=False),
    "deepseek_vl_hybrid": Layout(hybrid, _SAME, patches=False),
    "step3p7": Layout(with_crops, _SAME, patches=False),
    "qwen2_vl": Layout(listed(by_block, _twice), model_type="qwen2_vl", vision=_QWEN),
    "ernie4_5_vl_moe": Layout(
        listed(by_block, torch.flatten), model_type="ernie4_5_vl_moe", vision=_QWEN
    ),
    "video_llama_3": Layout(
        listed(by_block, torch.flatten, merges=True), model_type="video_llama_3", vision={"patch_size": 2}
    ),
    "cosmos3_edge": Layout(listed(by_block, channels_last), model_type="cosmos3_edge", vision=_QWEN),
    "hunyuan_vl": Layout(listed(by_row, torch.flatten), model_type="hunyuan_vl", vision=_QWEN),
    "muse_glimmer": Layout(
        listed(by_row, lambda patch: torch.stack([patch, patch]).reshape(-1)),
        model_type="muse_glimmer", vision=_QWEN,
    ),
    "paddleocr_vl": Layout(listed(by_row, lambda patch: patch), model_type="paddleocr_vl", vision=_QWEN),
    "kimi_k25": Layout(listed(by_row, lambda patch: patch), model_type="kimi_k25", vision=_QWEN),
    "inkling2": Layout(
        listed(by_row, lambda patch: patch.permute(1, 2, 0), size=4), model_type="inkling2", vision=_QWEN
    ),
    "nemotron_h_omni": Layout(
        listed(by_row, torch.flatten, name="image_grid_hw"), model_type="nemotron_h_omni", vision=_QWEN
    ),
    "lfm2_vl": Layout(lfm2, model_type="lfm2_vl"),
    "gemma4": Layout(gemma4, model_type="gemma4"),
    "molmo2": Layout(molmo2, ((8, 4), (4, 4), (12, 4)), model_type="molmo2"),
    "minicpmv4_6": Layout(minicpm, model_type="minicpmv4_6"),
    "fuyu": Layout(fuyu, model_type="fuyu"),
    "fuyu_batch": Layout(fuyu_batch, _SAME, model_type="fuyu"),
    "inkling_mm_model": Layout(inkling, model_type="inkling_mm_model", transformable=False),
}  # fmt: skip
