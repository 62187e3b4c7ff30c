"""Views of a prompt, which say what an amateur sees; several methods share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepsight.errors import InputError, UnsupportedModel
from keepsight.parts import View

if TYPE_CHECKING:
    from keepsight.target import Target


@dataclass(frozen=True)
class MainPrompt(View):
    """The main prompt itself, with its picture. Preludes measure it before the generation."""

    def inputs(self, target: Target) -> dict[str, Any]:
        return dict(target.model_inputs)


@dataclass(frozen=True)
class NoImage(View):
    """The prompt as if it had been written without its picture.

    Where the generation was given a ``Source``, the chat template is rendered anew without the picture. Otherwise its
    placeholders and the begin/end markers that the configuration names are dropped and positions close up. For some chat
    templates both ways give the same tokens (Qwen-VL). For others they do not: LLaVA-1.5's template writes a line break
    after the picture, which is left in the second way only.

    Args:
        also_drop: ids of further tokens to drop where there is no ``Source``.
    """

    also_drop: tuple[int, ...] = ()

    def inputs(self, target: Target) -> dict[str, Any]:
        return target.without_image(also_drop=self.also_drop)


@dataclass(frozen=True)
class TransformedImage(View):
    """The same prompt with every picture changed, after the processor's resizing and normalising.

    Args:
        transform: a function of one picture, or one tile of a picture, ``(channels, height, width)`` as the processor
            normalised it, to another of the same shape. Two views are the same only if it is the same function.
    """

    transform: Callable[[Tensor], Tensor]

    def inputs(self, target: Target) -> dict[str, Any]:
        pixels = target.pixel_values
        changed = transform_pixels(pixels, target.model_inputs, vision_config(target), self.transform)
        return {**target.model_inputs, "pixel_values": changed}


def vision_config(target: Target) -> Any:
    """Returns the vision tower's part of the model's configuration; None where there is none."""
    return getattr(target.model.config, "vision_config", None)


def transform_pixels(
    pixels: Tensor, inputs: Mapping[str, Any], config: Any, transform: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns ``pixel_values`` with ``transform`` applied to every picture or tile, in the layout in which they came.

    Two layouts are known: ``(…, channels, height, width)``, with or without tiles; and the patch lists of Qwen-VL and its
    relatives, ``(patches, channels · frames · patch · patch)`` with ``image_grid_thw``, in which each picture is put
    together from its patches, transformed, and taken apart again. Pictures that ``image_sizes`` says are padded (Pixtral)
    are transformed without their padding. All-zero tiles, which some processors add as padding, stay as they are.

    Args:
        pixels: the ``pixel_values``.
        inputs: the model inputs that ``pixels`` came with.
        config: the vision tower's configuration, which is needed for patch lists.
        transform: a function of one picture or tile ``(channels, height, width)`` to another of the same shape.

    Raises:
        UnsupportedModel: the pixels are in another layout.
        InputError: the transform changes the shape of a picture.
    """
    grid, sizes = inputs.get("image_grid_thw"), inputs.get("image_sizes")
    if pixels.ndim == 2 and isinstance(grid, Tensor):
        return _transform_patches(pixels, grid, config, transform)
    if pixels.ndim < 3:
        raise UnsupportedModel(
            f"pixel_values of shape {tuple(pixels.shape)} are in no layout that can be transformed: neither"
            " (…, channels, height, width) nor patches with image_grid_thw"
        )
    out = pixels.clone()
    pictures = out.reshape(-1, *pixels.shape[-3:])
    padded = isinstance(sizes, Tensor) and pixels.ndim == 4 and len(sizes) == len(pictures)
    for i, picture in enumerate(pictures):
        if not bool(picture.any()):
            continue
        height, width = sizes[i].tolist() if padded and sizes is not None else picture.shape[-2:]
        # LLaVA-NeXT's image_sizes are those of the file, and may be larger than what the model is shown.
        height, width = min(height, picture.shape[-2]), min(width, picture.shape[-1])
        pictures[i, :, :height, :width] = _transformed(picture[:, :height, :width], transform)
    return pictures.reshape(pixels.shape)


def _transformed(picture: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns one picture after ``transform``, or raises ``InputError`` where its shape has changed."""
    changed = transform(picture)
    if changed.shape != picture.shape:
        raise InputError(
            f"a transform must keep the shape of a picture: it made {tuple(changed.shape)} of {tuple(picture.shape)}"
        )
    return changed


def _transform_patches(
    patches: Tensor, grid: Tensor, config: Any, transform: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns a patch list with ``transform`` applied to every picture.

    Patches stand in the order of Qwen-VL: by frame, then by block of ``merge`` × ``merge`` patches, then by patch within the
    block.
    """
    size, frames = getattr(config, "patch_size", None), getattr(config, "temporal_patch_size", 1)
    merge = getattr(config, "spatial_merge_size", 1)
    if not isinstance(size, int) or patches.shape[-1] % (frames * size * size):
        raise UnsupportedModel(
            f"a list of patches of {patches.shape[-1]} values cannot be put together: the vision configuration names no"
            " patch_size that divides it"
        )
    channels = patches.shape[-1] // (frames * size * size)
    out = []
    for part, (t, h, w) in zip(torch.split(patches, grid.prod(-1).tolist()), grid.tolist(), strict=True):
        blocks = part.reshape(t, h // merge, w // merge, merge, merge, channels, frames, size, size)
        # The permutation puts the dimensions of a picture side by side: frame and time within it, channel, rows of pixels
        # (block, patch, pixel), columns of pixels. The second one below is its inverse.
        whole = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, channels, h * size, w * size)
        # A still picture is repeated over the frames of a patch, and a transform knows single pictures only.
        changed = torch.stack([_transformed(picture, transform) for picture in whole])
        blocks = changed.reshape(t, frames, channels, h // merge, merge, size, w // merge, merge, size)
        out.append(blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(part.shape))
    return torch.cat(out)
