"""How pictures reach the models of transformers' image-text-to-text types: one picture of a few patches in each layout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """What layouts of pictures hang on."""

    config: Any
    accepted: frozenset[str]
    """Names of the arguments that the model's forward takes."""

    def vision(self, *names: str, default: Any) -> Any:
        """The first of ``names`` that the vision part of the configuration, or else the configuration, has."""
        for part in (getattr(self.config, "vision_config", None), self.config):
            for name in names:
                value = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
                if value is not None:
                    return value[0] if isinstance(value, (list, tuple)) else value
        return default

    @property
    def size(self) -> int:
        return int(self.vision("image_size", "img_size", default=16))

    @property
    def patch(self) -> int:
        return int(self.vision("patch_size", default=4))

    @property
    def channels(self) -> int:
        return int(self.vision("in_channels", "num_channels", default=3))


@dataclass(frozen=True)
class Layout:
    """How one picture reaches the model."""

    pixels: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors that hold pixels."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """What else describes one picture."""
    join: Mapping[str, int] = field(default_factory=dict)
    """Along which dimension pictures of a batch are put together, where it is not the first."""
    count: Mapping[str, int] = field(default_factory=dict)
    """What holds numbers of patches, and by how much they grow with each picture of a batch."""
    unit: bool = False
    """Pixels lie between 0 and 1."""

    def picture(self, seed: int) -> dict[str, Any]:
        """One picture's inputs, with pixels drawn from ``seed``: others than VCD's noise, which begins at seed 0."""
        drawn: dict[str, Any] = {}
        for index, (key, shape) in enumerate(self.pixels.items()):
            pixels = torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + 100 * seed + index))
            drawn[key] = pixels.sigmoid() if self.unit else pixels
        return {**drawn, **copy.deepcopy(dict(self.rest))}

    def joined(self, pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The inputs of several pictures put together."""
        together: dict[str, Any] = {}
        for key, first in pictures[0].items():
            parts = [picture[key] for picture in pictures]
            if step := self.count.get(key):
                parts = [part + index * step for index, part in enumerate(parts)]
            if isinstance(first, list):
                together[key] = [item for part in parts for item in part]
            else:
                together[key] = torch.cat(parts, dim=self.join.get(key, 0))
        return together


def layouts(facts: Facts) -> Iterator[Layout]:
    """Layouts that the model's arguments suggest, likelier ones first."""
    takes = facts.accepted
    if facts.config.model_type in LAYOUTS:
        yield LAYOUTS[facts.config.model_type](facts)
        return
    if "image_grid_thw" in takes:
        yield from _patches_in_a_grid(facts)
    if "spatial_shapes" in takes:
        shapes = {"spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": torch.ones(1, 16).long()}
        yield Layout({"pixel_values": (1, 16, facts.channels * facts.patch**2)}, shapes)
    if "target_sizes" in takes:
        shape = (1, facts.channels, facts.patch, 64 * facts.patch)
        yield Layout({"pixel_values": shape}, {"target_sizes": torch.tensor([[8, 8]])}, {"pixel_values": 3})
    if "image_position_ids" in takes:
        yield Layout(
            {"pixel_values": (1, 16, facts.channels * facts.patch**2)},
            {"image_position_ids": _positions(4)},
            unit=True,
        )
    if "image_patches" in takes:
        yield Layout({"image_patches": (1, 4, facts.patch**2 * facts.channels)})
        return
    for size in dict.fromkeys((facts.size, 16, 32)):
        yield from _whole_pictures(facts, size)


LAYOUTS: dict[str, Callable[[Facts], Layout]] = {
    "deepseek_ocr2": lambda facts: Layout({"pixel_values": (1, 3, 64, 64)}, {"num_local_patches": [0]}),
    "deepseek_vl_hybrid": lambda facts: Layout(
        {"pixel_values": (1, 3, 16, 16), "high_res_pixel_values": (1, 3, 64, 64)}
    ),
    "unlimited_ocr": lambda facts: Layout(
        {"pixel_values": (1, 3, 64, 64), "pixel_values_local": (2, 3, 64, 64)},
        {"num_local_patches": [2], "patches_grid": [[1, 2]]},
    ),
    "gemma4_unified": lambda facts: Layout(
        {"pixel_values": (1, 16, 48)}, {"image_position_ids": _positions(4)}, unit=True
    ),
    "granite_docling": lambda facts: Layout(
        {"pixel_values": (1, 1, 3, 16, 16)}, {"pixel_attention_mask": torch.ones(1, 1).bool()}
    ),
    "inkling2": lambda facts: Layout(
        {"pixel_values": (4, 8, 8, 3)}, {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    ),
    "inkling2_loop": lambda facts: Layout(
        {"pixel_values": (4, 8, 8, 3)}, {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    ),
    "inkling_mm_model": lambda facts: Layout({"pixel_values": (4, 2, 4, 4, 3)}),
    "molmo2": lambda facts: Layout(
        {"pixel_values": (1, 16, 48)},
        {
            "image_token_pooling": torch.tensor(
                [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
            ),
            "image_grids": torch.tensor([[0, 0, 2, 2]]),
            "image_num_crops": torch.tensor([1]),
        },
        count={"image_token_pooling": 16},
    ),
    "nemotron_h_omni": lambda facts: Layout(
        {"pixel_values": (16, 3 * facts.patch**2)}, {"image_grid_hw": torch.tensor([[4, 4]])}
    ),
}
"""Layouts of single types that no general rule suggests."""


def _positions(side: int) -> Tensor:
    """Columns and rows of a square's patches, ``(1, patches, 2)``."""
    axis = torch.arange(side)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, side * side, 2)


def _patches_in_a_grid(facts: Facts) -> Iterator[Layout]:
    """4 by 4 patches, flattened, with the grid beside them."""
    area, channels = facts.patch**2, facts.channels
    rest = {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    if "image_merge_sizes" in facts.accepted:
        rest["image_merge_sizes"] = torch.tensor([facts.vision("spatial_merge_size", default=2)])
    for frames in dict.fromkeys((facts.vision("temporal_patch_size", "patch_temporal", default=2), 1, 2)):
        yield Layout({"pixel_values": (16, channels * frames * area)}, rest)
    yield Layout({"pixel_values": (16, channels, facts.patch, facts.patch)}, rest)


def _whole_pictures(facts: Facts, size: int) -> Iterator[Layout]:
    """Square pictures, with what describes them where the model takes it."""
    takes, whole = facts.accepted, (1, 3, size, size)
    if "high_res_pixel_values" in takes:
        yield Layout({"pixel_values": whole, "high_res_pixel_values": (1, 3, 64, 64)})
    if "aspect_ratio_ids" in takes:
        ratios = {
            "aspect_ratio_ids": torch.ones(1, 1).long(),
            "aspect_ratio_mask": torch.ones(1, 1, 1).long(),
        }
        yield Layout({"pixel_values": (1, 1, 1, 3, size, size)}, ratios)
    if "num_local_patches" in takes:
        yield Layout(
            {"pixel_values": whole, "pixel_values_local": whole}, {"num_local_patches": torch.tensor([1])}
        )
    if "image_sizes" in takes:
        yield Layout({"pixel_values": whole}, {"image_sizes": torch.tensor([[size, size]])})
        sizes = {"image_sizes": torch.tensor([[size, 2 * size]])}
        yield Layout({"pixel_values": (1, 3, 3, size, size)}, sizes)
    if "pixel_attention_mask" in takes:
        mask = {"pixel_attention_mask": torch.ones(1, 1, size, size).bool()}
        yield Layout({"pixel_values": (1, 1, 3, size, size)}, mask)
    yield Layout({"pixel_values": whole})
    yield Layout({"pixel_values": (1, 1, 3, size, size)})
