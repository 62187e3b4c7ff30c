"""Finds out which tokens of the prompt stand for which part of the picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keepsight.errors import InputError, UnsupportedModel

if TYPE_CHECKING:
    from keepsight.target import Target

SQUARE = ("llava", "vipllava", "gemma3", "paligemma", "internvl")
"""Model types that stretch or crop a picture into one square of tokens."""
SIZED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose inputs say how many patches high and wide the picture is."""


class NoTokenGrid(UnsupportedModel):
    """The picture's tokens are not one rectangle in reading order, so they cannot be laid over it."""


def token_grid(target: Target) -> tuple[int, int]:
    """Returns the numbers of rows and columns of the picture's tokens, which stand in the prompt row by row.

    Raises:
        NoTokenGrid: the model cuts pictures into tiles or puts breaks between rows, or its layout is not known here.
        InputError: more than one prompt or one picture.
    """
    if target.batch != 1:
        raise InputError(f"one prompt at a time can be mapped, not {target.batch}")
    kind = str(target.model.config.model_type)
    tokens = int(target.image_mask.sum())
    if kind in SIZED:
        rows, columns = _sized(target)
    # A LLaVA with a Pixtral tower keeps the proportions of a picture and writes a separator after every row of tokens.
    elif kind in SQUARE and _vision_type(target) != "pixtral":
        side = math.isqrt(tokens)
        rows, columns = side, side
        # Tiles of one picture (InternVL) and several pictures look alike
        # here: each has a row of its own in ``pixel_values``.
        pictures = target.pixel_values.shape[0]
        if pictures != 1:
            raise NoTokenGrid(
                f"{target.name} got {pictures} pictures or tiles: give one picture, in a single tile"
            )
    else:
        raise NoTokenGrid(
            f"{target.name} ({kind}) lays a picture out in tiles or rows with breaks, or in a way not known here:"
            " maps can be drawn for " + ", ".join((*SQUARE, *SIZED))
        )
    # The model type alone does not prove the layout. The tokens must fill the grid, and nothing may stand between them.
    where = target.image_mask[0].nonzero().flatten()
    if rows * columns != tokens or int(where[-1] - where[0]) + 1 != tokens:
        raise NoTokenGrid(
            f"{target.name}: the picture's {tokens} tokens are not one grid of {rows} x {columns} without gaps"
        )
    return rows, columns


def _vision_type(target: Target) -> str:
    """Returns the model type of the vision tower; empty where the configuration names none."""
    return str(getattr(getattr(target.model.config, "vision_config", None), "model_type", ""))


def _sized(target: Target) -> tuple[int, int]:
    """Returns rows and columns of tokens for a model whose inputs say how many patches a picture has."""
    sizes = target.inputs.get("image_grid_thw")
    if sizes is None:
        raise InputError("the inputs hold no image_grid_thw: pass everything the model's processor returned")
    if len(sizes) != 1:
        raise InputError(f"one picture at a time can be mapped, not {len(sizes)}")
    _, height, width = (int(side) for side in sizes[0])
    # ``image_grid_thw`` counts the patches that the vision tower sees. The
    # projector then merges squares of them into one token.
    merged = int(target.model.config.vision_config.spatial_merge_size)
    return height // merged, width // merged


def seen_box(image_processor: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """Returns the part of a ``width`` by ``height`` picture that the model saw: left, top, right, bottom, in its pixels.

    A processor that only resizes shows the whole picture, however stretched. One that resizes and then crops, such
    as CLIP's, shows the centre. One that pads to a square shows more than there is: the box then reaches outside.

    Raises:
        NoTokenGrid: the settings do not say what is cropped.
    """
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    # Padding to a square puts the picture into the middle: the square then reaches over its edges on two sides.
    if getattr(image_processor, "do_pad", False) and not hasattr(image_processor, "merge_size"):
        side = max(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        right, bottom = left + side, top + side
    if not getattr(image_processor, "do_center_crop", False):
        return left, top, right, bottom
    # The crop is taken from the resized picture. Its size is therefore converted back into pixels of the picture
    # as it was given, separately for each axis, since the resizing may have stretched the picture.
    across, down = right - left, bottom - top
    resized = _resized(image_processor, across, down)
    crop = image_processor.crop_size
    if resized is None or not getattr(crop, "height", None) or not getattr(crop, "width", None):
        raise NoTokenGrid(
            f"{type(image_processor).__name__} crops pictures in a way that its size and crop_size do not tell"
        )
    kept_across = crop.width * across / resized[0]
    kept_down = crop.height * down / resized[1]
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    return (
        centre_x - kept_across / 2, centre_y - kept_down / 2, centre_x + kept_across / 2, centre_y + kept_down / 2,
    )  # fmt: skip


def _resized(image_processor: Any, width: float, height: float) -> tuple[float, float] | None:
    """Returns width and height after the processor's resizing; None where its settings do not tell them."""
    if not getattr(image_processor, "do_resize", False):
        return width, height
    size = image_processor.size
    if edge := getattr(size, "shortest_edge", None):
        scale = edge / min(width, height)
        return width * scale, height * scale
    if getattr(size, "height", None) and getattr(size, "width", None):
        return float(size.width), float(size.height)
    return None
