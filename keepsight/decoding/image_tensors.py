"""Finds the pictures among a model's inputs: which tensors hold pixels, and where in them each picture or tile lies.

Families lay pictures out in different ways, and the number of dimensions does not tell them apart: ``(n, 3, 14, 14)`` may
hold n small pictures, or the n patches of a single large one. So the layout is read from what comes with the pixels
(``image_grid_thw``, ``spatial_shapes``, ``image_position_ids``, ``target_sizes``, ``image_num_crops``, masks and sizes), and
only where nothing comes with them from the model's type. What is not recognised raises ``UnsupportedModel``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any, NoReturn

import torch
from torch import Tensor

from keepsight.errors import UnsupportedModel
from keepsight.target import PIXEL_KEYS, TOKEN_KEYS

SECOND_VIEWS = frozenset({"high_res_pixel_values", "pixel_values_local"})
"""Tensors that show the pictures of the main tensor a second time, larger or in crops."""

ENCODED = frozenset(
    {
        "image_embeds", "image_features", "mm_encoder_outputs", "cross_attention_states", "image_encoder_embeddings",
        "perceiver_embeddings", "encoder_outputs",
    }
)  # fmt: skip
"""Inputs that hold what a vision tower made of pictures: nothing can be done to the pixels any more."""

NO_PIXELS = TOKEN_KEYS | frozenset(
    {
        "position_ids", "cross_attention_mask", "image_attention_mask", "pixel_attention_mask", "pixel_mask",
        "aspect_ratio_ids", "aspect_ratio_mask", "image_sizes", "image_grid_thw", "image_grid_hw", "image_position_ids",
        "spatial_shapes", "target_sizes", "image_scale_factors", "image_unpadded_heights", "image_unpadded_widths",
        "image_token_pooling", "image_grids", "image_num_crops", "num_local_patches", "patches_grid", "tile_fine_mask",
        "second_per_grid_ts", "video_second_per_grid", "input_features", "input_features_mask", "input_values",
        "input_values_mask", "padding_mask", "feature_attention_mask", "audio_feature_lengths", "per_layer_inputs",
    }
)  # fmt: skip
"""Inputs that may hold fractions and hold no pictures: masks, sizes, positions, sound."""


@dataclass(frozen=True)
class Patches:
    """How a family cuts pictures into patches.

    Args:
        companion: the input that says where the patches of a picture lie; empty where only the placeholders say it.
        outer: the dimensions over which patches are listed, slowest first: ``t`` time, ``H`` and ``W`` rows and columns of
            patches, or of blocks of patches where ``h`` and ``w``, rows and columns within a block, are listed as well.
            Empty where it follows from ``companion`` alone, or is not known.
        inner: the dimensions of the values of one patch: ``f`` frame, ``c`` channel, ``y`` row, ``x`` column.
    """

    companion: str
    outer: str
    inner: str


_BLOCKS, _ROWS = "tHWhw", "tHW"

PATCHES: dict[str, Patches] = {
    **dict.fromkeys(
        (
            "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp",
            "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "glm4v", "glm4v_moe", "glm46v", "glm5_next", "glm_ocr",
            "glmga", "cohere_compass", "cosmos3_omni", "dots3_note", "ernie4_5_vl_moe", "exaone4_5",
            "hyperclovax_vision_v2", "lfm3_vl", "minimax_m3_vl", "video_llama_3",
        ),
        Patches("image_grid_thw", _BLOCKS, "cfyx"),
    ),
    "cosmos3_edge": Patches("image_grid_thw", _BLOCKS, "yxcf"),
    "hunyuan_vl": Patches("image_grid_thw", _ROWS, "cyx"),
    "hy_v4_vl": Patches("image_grid_thw", _ROWS, "cyx"),
    "kimi_k25": Patches("image_grid_thw", _ROWS, "cyx"),
    "paddleocr_vl": Patches("image_grid_thw", _ROWS, "cyx"),
    "muse_glimmer": Patches("image_grid_thw", _ROWS, "fcyx"),
    "muse_spark": Patches("image_grid_thw", _ROWS, "fcyx"),
    "inkling2": Patches("image_grid_thw", _ROWS, "yxc"),
    "inkling2_loop": Patches("image_grid_thw", _ROWS, "yxc"),
    "nemotron_h_omni": Patches("image_grid_hw", _ROWS, "cyx"),
    "lfm2_vl": Patches("spatial_shapes", _ROWS, "yxc"),
    "gemma4": Patches("image_position_ids", _ROWS, "yxc"),
    "gemma4_unified": Patches("image_position_ids", _ROWS, "yxc"),
    "molmo2": Patches("image_num_crops", _ROWS, "yxc"),
    "minicpm_ocr": Patches("target_sizes", "", ""),
    "minicpmv4_6": Patches("target_sizes", "", ""),
    "minicpmv4_7": Patches("target_sizes", "", ""),
    "fuyu": Patches("", _ROWS, "yxc"),
    "inkling_mm_model": Patches("", "", ""),
}  # fmt: skip
"""Model types of transformers whose pictures come as patches. All others come as whole pictures or tiles."""


@dataclass(frozen=True)
class Arrangement:
    """How the values of one picture are put together: ``(frames, channels, height, width)``.

    Args:
        blocks: the shape in which the values lie.
        order: the permutation that puts the dimensions of ``blocks`` side by side as they are in the picture.
        picture: the shape of the picture.
    """

    blocks: tuple[int, ...]
    order: tuple[int, ...]
    picture: tuple[int, ...]

    def assemble(self, values: Tensor) -> Tensor:
        """Returns the picture that ``values`` hold."""
        return values.reshape(self.blocks).permute(self.order).reshape(self.picture)

    def take_apart(self, picture: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns the values of ``picture`` in ``shape``: the inverse of ``assemble``."""
        inverse = [self.order.index(i) for i in range(len(self.order))]
        return picture.reshape([self.blocks[i] for i in self.order]).permute(inverse).reshape(shape)


def arranged(letters: str, **sizes: int) -> Arrangement:
    """Returns the arrangement of values that lie in the dimensions ``letters`` (see ``Patches``), slowest first.

    >>> arranged("yxc", y=2, x=4, c=3)
    Arrangement(blocks=(2, 4, 3), order=(2, 0, 1), picture=(1, 3, 2, 4))
    """
    sides = [math.prod(sizes.get(letter, 1) for letter in part) for part in ("tf", "c", "Hhy", "Wwx")]
    order = tuple(letters.index(letter) for letter in "tfcHhyWwx" if letter in letters)
    return Arrangement(tuple(sizes[letter] for letter in letters), order, tuple(sides))


@dataclass(frozen=True)
class Piece:
    """One picture, or one tile of a picture, without its padding.

    Args:
        where: the index of its values in the tensor.
        arrange: makes the arrangement of its values; raises ``UnsupportedModel`` where it is not known.
    """

    where: tuple[Any, ...]
    arrange: Callable[[], Arrangement]


def image_tensors(inputs: Mapping[str, Any], config: Any = None) -> dict[str, list[Piece]]:
    """Returns every tensor of a model's inputs that holds pixels, by name, with the pictures or tiles in it.

    Args:
        inputs: the model inputs, as its processor returned them.
        config: the model's configuration. Without it, layouts that only the model's type tells are not known.

    Raises:
        UnsupportedModel: an input that may hold pictures is not known; pixels are in a layout that is not known, or that
            does not fit what comes with them; the inputs hold what a vision tower made of the pictures.
    """
    found = {}
    for key, value in inputs.items():
        if value is None or key in NO_PIXELS:
            continue
        if key in ENCODED:
            raise UnsupportedModel(
                f"the input {key!r} holds what a vision tower made of the pictures, and not their pixels: pass"
                " pixel_values, as the model's processor returned them"
            )
        if key in PIXEL_KEYS:
            found[key] = _pieces(key, value, inputs, config)
        elif (shape := _fractions(value)) is not None:
            raise UnsupportedModel(
                f"cannot tell whether the input {key!r} of shape {shape} holds pictures: remove it from the inputs"
            )
    return found


def _fractions(value: Any) -> tuple[int, ...] | None:
    """Returns the shape of the first tensor of fractions in an input; None where there is none."""
    if isinstance(value, Tensor):
        return tuple(value.shape) if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((shape for one in value if (shape := _fractions(one)) is not None), None)
    return None


def _pieces(key: str, pixels: Any, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """Returns the pictures in one tensor, in whatever layout it has."""
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        kind = str(pixels.dtype) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise UnsupportedModel(
            f"{key} is {kind}, and not a tensor of normalised pixels: pass what the model's processor returned with"
            " return_tensors='pt'"
        )
    if key in SECOND_VIEWS:
        return _pictures(key, pixels, {}, config)
    for companion, layout in _BY_COMPANION.items():
        if inputs.get(companion) is not None:
            return layout(key, pixels, inputs, config)
    kind = _model_type(config)
    known = PATCHES.get(kind)
    if known is None:
        return _pictures(key, pixels, inputs, config)
    if known.companion:
        _refuse(key, pixels, f"a {kind} needs {known.companion} to tell its pictures apart")
    return _by_placeholders(key, pixels, inputs, config)


def _refuse(key: str, pixels: Tensor, why: str) -> NoReturn:
    raise UnsupportedModel(
        f"the pictures in {key} of shape {tuple(pixels.shape)} cannot be found: {why}; pass everything that the model's"
        " processor returned"
    )


def _model_type(config: Any) -> str:
    return str(getattr(config, "model_type", ""))


def _vision(config: Any) -> Any:
    """Returns the vision tower's part of a configuration, or the whole where it has none."""
    return getattr(config, "vision_config", None) or config


def _channels(config: Any) -> int | None:
    """Returns the number of channels of a picture that the configuration names; None where it names none."""
    found = (getattr(_vision(config), name, None) for name in ("num_channels", "in_channels", "in_chans"))
    return next((count for count in found if isinstance(count, int)), None)


def _table(key: str, pixels: Tensor, inputs: Mapping[str, Any], name: str, width: int) -> list[list[int]]:
    """Returns an input with ``width`` whole numbers for each picture, as lists."""
    table = torch.as_tensor(inputs[name])
    if table.ndim != 2 or table.shape[-1] != width:
        _refuse(key, pixels, f"{name} of shape {tuple(table.shape)} has not {width} numbers for each picture")
    return [[int(number) for number in row] for row in table.tolist()]


# Lists of patches


def _inner(shape: tuple[int, ...], letters: str, config: Any) -> dict[str, int]:
    """Returns the sizes of the dimensions of one patch, whose values have ``shape``.

    Raises:
        UnsupportedModel: the values of a patch do not make a square of pixels.
    """
    if len(shape) == len(letters):
        return dict(zip(letters, shape, strict=True))
    values, channels = math.prod(shape), _channels(config) or 3
    side = getattr(_vision(config), "patch_size", None) if "f" in letters else math.isqrt(values // channels)
    if not isinstance(side, int) or side < 1 or values % (channels * side**2):
        raise UnsupportedModel(
            f"a patch of {values} values cannot be put together: the vision configuration names no patch_size and number of"
            " channels that divide it"
        )
    frames = values // (channels * side**2)
    if frames > 1 and "f" not in letters:
        raise UnsupportedModel(f"a patch of {values} values is not a square with {channels} channels")
    return {"f": frames, "c": channels, "y": side, "x": side}


def _arrange_patches(
    shape: tuple[int, ...], grid: tuple[int, int, int], merge: Any, config: Any
) -> Arrangement:
    """Returns how the patches of one picture are put together, as its family lists them.

    Args:
        shape: that of one patch.
        grid: how many patches the picture has in time, height and width.
        merge: the side of a block of patches, for families that list them block by block.
        config: the model's configuration.
    """
    kind = _model_type(config)
    known = PATCHES.get(kind)
    if known is None or not known.outer:
        raise UnsupportedModel(
            f"the patches of a picture cannot be put together: it is not known how a {kind or 'model without a type'} lists"
            " them"
        )
    time, rows, columns = grid
    sizes = {"t": time, "H": rows, "W": columns}
    if known.outer == _BLOCKS:
        if not isinstance(merge, int) or merge < 1 or rows % merge or columns % merge:
            raise UnsupportedModel(
                f"a grid of {rows} x {columns} patches cannot be put together: the vision configuration names no"
                " spatial_merge_size that divides it"
            )
        sizes = {"t": time, "H": rows // merge, "W": columns // merge, "h": merge, "w": merge}
    return arranged(known.outer + known.inner, **sizes, **_inner(shape, known.inner, config))


def _by_grid(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any, *, name: str) -> list[Piece]:
    """``(patches, …)``: the patches of all pictures in one list; a grid says how many each has in height and width."""
    if pixels.ndim not in (2, 4):
        _refuse(key, pixels, f"with {name} it must hold one patch in each row, flat or with channels")
    table = _table(key, pixels, inputs, name, 3 if name == "image_grid_thw" else 2)
    # A grid without time is that of one frame.
    grids = [(time, rows, columns) for time, rows, columns in ([1, *grid][-3:] for grid in table)]
    ends = [0]
    for grid in grids:
        ends.append(ends[-1] + math.prod(grid))
    if ends[-1] != len(pixels):
        _refuse(key, pixels, f"{name} tells of {ends[-1]} patches")
    merges = inputs.get("image_merge_sizes")
    merge = getattr(_vision(config), "spatial_merge_size", None)
    shape = tuple(pixels.shape[1:])
    return [
        Piece(
            (slice(start, end),),
            partial(_arrange_patches, shape, grid, merge if merges is None else int(merges[i]), config),
        )
        for i, (grid, (start, end)) in enumerate(zip(grids, pairwise(ends), strict=True))
    ]


def _by_shapes(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """``(pictures, patches, values)`` with ``spatial_shapes``: each picture's patches first, and then padding."""
    shapes = _table(key, pixels, inputs, "spatial_shapes", 2)
    if pixels.ndim != 3 or len(shapes) != len(pixels):
        _refuse(key, pixels, f"spatial_shapes tell of {len(shapes)} pictures")
    if any(rows * columns > pixels.shape[1] for rows, columns in shapes):
        _refuse(key, pixels, "spatial_shapes tell of more patches than there are")
    mask = inputs.get("pixel_attention_mask")
    if mask is not None and mask.sum(-1).tolist() != [rows * columns for rows, columns in shapes]:
        _refuse(key, pixels, "spatial_shapes and pixel_attention_mask tell of different numbers of patches")
    shape = tuple(pixels.shape[2:])
    return [
        Piece((i, slice(rows * columns)), partial(_arrange_patches, shape, (1, rows, columns), None, config))
        for i, (rows, columns) in enumerate(shapes)
        if rows * columns
    ]


def _by_positions(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """``(pictures, patches, values)`` with ``image_position_ids``, column and row of each patch; -1 for padding."""
    positions = torch.as_tensor(inputs["image_position_ids"]).cpu()
    if pixels.ndim != 3 or positions.shape != (*pixels.shape[:2], 2):
        _refuse(
            key, pixels, f"image_position_ids of shape {tuple(positions.shape)} do not name the place of each"
        )
    shape, pieces = tuple(pixels.shape[2:]), []
    for i, places in enumerate(positions):
        real = (places >= 0).all(-1).nonzero().flatten()
        if not len(real):
            continue
        columns, rows = (int(side) + 1 for side in places[real].amax(0))
        # In reading order, so that noise and picture do not depend on how the patches are listed.
        real = real[(places[real, 1] * columns + places[real, 0]).argsort(stable=True)]
        pieces.append(
            Piece((i, real), partial(_arrange_rectangle, shape, len(real), (1, rows, columns), config))
        )
    return pieces


def _arrange_rectangle(
    shape: tuple[int, ...], count: int, grid: tuple[int, int, int], config: Any
) -> Arrangement:
    if count != math.prod(grid):
        raise UnsupportedModel(
            f"{count} patches cannot be put together: they do not fill {grid[1]} x {grid[2]}"
        )
    return _arrange_patches(shape, grid, None, config)


def _by_crops(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """``(crops, patches, values)`` with ``image_num_crops``: how many square crops each picture has."""
    counts = [int(count) for count in torch.as_tensor(inputs["image_num_crops"]).flatten().tolist()]
    if pixels.ndim != 3 or sum(counts) != len(pixels):
        _refuse(key, pixels, f"image_num_crops tells of {sum(counts)} crops")
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    side = math.isqrt(pixels.shape[1])
    return [
        Piece(
            (slice(start, end),),
            partial(
                _arrange_rectangle,
                tuple(pixels.shape[2:]),
                (end - start) * pixels.shape[1],
                (end - start, side, side),
                config,
            ),
        )
        for start, end in pairwise(ends)
        if end > start
    ]


def _by_target_sizes(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """``(1, channels, patch, patches · patch)`` with ``target_sizes``: the patches of all slices in one strip."""
    sizes = _table(key, pixels, inputs, "target_sizes", 2)
    if pixels.ndim != 4 or len(pixels) != 1:
        _refuse(key, pixels, "with target_sizes it must be (1, channels, patch, patches · patch)")
    _, channels, side, width = pixels.shape
    ends = [0]
    for rows, columns in sizes:
        ends.append(ends[-1] + rows * columns * side)
    if ends[-1] != width:
        _refuse(key, pixels, f"target_sizes tell of a strip {ends[-1]} wide")
    everything = slice(None)
    return [
        Piece(
            (0, everything, everything, slice(start, end)),
            partial(arranged, "cyHWx", c=channels, y=side, H=rows, W=columns, x=side),
        )
        for (rows, columns), (start, end) in zip(sizes, pairwise(ends), strict=True)
    ]


def _by_placeholders(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """``(patches, …)`` or ``(batch, patches, values)``, one for each placeholder of the prompts (Fuyu, Inkling).

    Nothing else says where a picture ends. Placeholders with no more than one token between them, which is Fuyu's end of a
    row, are taken for one picture.
    """
    token, ids = getattr(config, "image_token_id", None), inputs.get("input_ids")
    if not isinstance(token, int) or not isinstance(ids, Tensor):
        _refuse(key, pixels, "neither input_ids nor the configuration say where the placeholders are")
    prompts = [list(_runs((row == token).nonzero().flatten().tolist())) for row in ids]
    by_prompt = pixels.ndim == 3 and _model_type(config) == "fuyu"
    shape = tuple(pixels.shape[2:] if by_prompt else pixels.shape[1:])
    counts = [sum(sum(rows) for rows in pictures) for pictures in prompts]
    fits = by_prompt and len(pixels) == len(ids) and all(count == pixels.shape[1] for count in counts)
    if not fits and (by_prompt or sum(counts) != len(pixels)):
        _refuse(key, pixels, f"the prompts hold {sum(counts)} placeholders")
    pieces, start = [], 0
    for i, pictures in enumerate(prompts):
        if by_prompt:
            start = 0
        for rows in pictures:
            where: tuple[Any, ...] = (slice(start, start + sum(rows)),)
            start += sum(rows)
            grid = (1, len(rows), max(rows))
            arrange = partial(_arrange_rectangle, shape, sum(rows), grid, config)
            pieces.append(Piece((i, *where) if by_prompt else where, arrange))
    return pieces


def _runs(places: list[int]) -> Iterator[list[int]]:
    """Yields, for each picture, the lengths of its runs of placeholders.

    >>> list(_runs([1, 2, 4, 5, 9]))
    [[2, 2], [1]]
    """
    rows: list[int] = []
    last = -9
    for place in places:
        if place - last == 1:
            rows[-1] += 1
        elif place - last == 2 and rows:
            rows.append(1)
        else:
            if rows:
                yield rows
            rows = [1]
        last = place
    if rows:
        yield rows


# Whole pictures and tiles


def _pictures(key: str, pixels: Tensor, inputs: Mapping[str, Any], config: Any) -> list[Piece]:
    """``(…, channels, height, width)``: whole pictures or tiles; a mask or ``image_sizes`` may say what is padding."""
    channels = _channels(config)
    known = (channels,) if channels is not None else (1, 3, 4)
    if pixels.ndim not in (4, 5, 6) or pixels.shape[-3] not in known:
        _refuse(
            key,
            pixels,
            "it is not (…, channels, height, width), and nothing comes with it that says what it is",
        )
    # Processors pad with tiles of zeros, and models recognise them by being zero.
    filled = (pixels != 0).flatten(-3).any(-1).cpu()
    sides = _sides(key, pixels, inputs)
    pieces, everything = [], slice(None)
    for index in product(*(range(size) for size in pixels.shape[:-3])):
        height, width = sides(index)
        if not bool(filled[index]) or not height:
            continue
        where = (*index, everything, slice(height), slice(width))
        pieces.append(Piece(where, partial(arranged, "cyx", c=pixels.shape[-3], y=height, x=width)))
    return pieces


def _sides(
    key: str, pixels: Tensor, inputs: Mapping[str, Any]
) -> Callable[[tuple[int, ...]], tuple[int, int]]:
    """Returns a function from the index of a tile to its height and width without padding."""
    whole = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    mask = next(
        (inputs[name] for name in ("pixel_attention_mask", "pixel_mask") if inputs.get(name) is not None),
        None,
    )
    if mask is not None:
        return _masked(key, pixels, torch.as_tensor(mask).cpu() != 0)
    if pixels.ndim != 4 or inputs.get("image_sizes") is None:
        # Beside tiles, ``image_sizes`` are those of the files, and say nothing of padding.
        return lambda index: whole
    sizes = _table(key, pixels, inputs, "image_sizes", 2)
    if len(sizes) != len(pixels) or any(height > whole[0] or width > whole[1] for height, width in sizes):
        _refuse(key, pixels, f"image_sizes {sizes} do not fit into it")
    return lambda index: (sizes[index[0]][0], sizes[index[0]][1])


def _masked(key: str, pixels: Tensor, mask: Tensor) -> Callable[[tuple[int, ...]], tuple[int, int]]:
    """As ``_sides``, by a mask that is 1 on tiles, or on the pixels of tiles, that are no padding."""
    whole = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    if mask.shape == pixels.shape[:-3]:
        return lambda index: whole if bool(mask[index]) else (0, 0)
    if mask.shape != (*pixels.shape[:-3], *whole):
        _refuse(key, pixels, f"its mask has the shape {tuple(mask.shape)}")
    heights, widths = mask.any(-1).sum(-1), mask.any(-2).sum(-1)
    rectangle = (torch.arange(whole[0])[:, None] < heights[..., None, None]) & (
        torch.arange(whole[1]) < widths[..., None, None]
    )
    if not torch.equal(rectangle, mask):
        _refuse(key, pixels, "its mask leaves no rectangle that begins at the top left")
    return lambda index: (int(heights[index]), int(widths[index]))


_BY_COMPANION: dict[str, Callable[[str, Tensor, Mapping[str, Any], Any], list[Piece]]] = {
    "image_grid_thw": partial(_by_grid, name="image_grid_thw"),
    "image_grid_hw": partial(_by_grid, name="image_grid_hw"),
    "spatial_shapes": _by_shapes,
    "image_position_ids": _by_positions,
    "target_sizes": _by_target_sizes,
    "image_num_crops": _by_crops,
}
"""The inputs that say how pictures are cut into patches, and what reads them."""
