"""One call of the vision tower for the picture and for a branch's changed copy of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepsight.target import PIXEL_KEYS

PER_PICTURE = frozenset(
    {
        "image_grid_thw", "image_grid_hw", "image_sizes", "image_position_ids", "spatial_shapes", "pixel_attention_mask",
        "pixel_mask", "aspect_ratio_ids", "aspect_ratio_mask", "image_merge_sizes", "num_local_patches", "patches_grid",
        "batch_num_images",
    }
)  # fmt: skip
"""Inputs with one entry for each picture, which stay right when those of several prompts stand one after another. Molmo2's
``image_token_pooling`` does not: it counts the patches of all pictures through."""


def batched(
    encode: Any, args: tuple[Any, ...], kwargs: dict[str, Any], others: Sequence[Mapping[str, Any]]
) -> list[Any] | None:
    """What ``encode(*args, **kwargs)`` gives for its own pictures and for each of ``others``, from one call.

    Args:
        encode: a model's ``get_image_features``.
        others: image tensors by the names of ``encode``'s parameters; what they lack is taken from the call.

    Returns:
        Outputs, the call's own first; None where shapes differ, or the pictures or the output cannot be told apart.
    """
    bound = inspect.signature(encode).bind(*args, **kwargs)
    if not _told_apart(bound.arguments, others):
        return None
    for name, value in bound.arguments.items():
        if not isinstance(value, Tensor):
            continue
        given = [other.get(name) for other in others]
        parts = [value, *(value if one is None else one.to(value.device, value.dtype) for one in given)]
        if any(part.shape != value.shape for part in parts):
            return None
        bound.arguments[name] = torch.cat(parts)
    return _parted(encode(*bound.args, **bound.kwargs), 1 + len(others))


def _told_apart(arguments: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether tensors of several prompts, one after another, are what the encoder takes for several pictures."""
    # Pixels by another name than the encoder's, such as Fuyu's, would be taken from the call, where they are not changed.
    pixels = {key for other in others for key in other.keys() & PIXEL_KEYS}
    if not all(isinstance(arguments.get(key), Tensor) for key in pixels):
        return False
    for name, value in arguments.items():
        if isinstance(value, Tensor) and name not in PIXEL_KEYS | PER_PICTURE:
            return False
        # A list says something of each picture, and is not written twice here; nor is what goes through by keyword.
        if isinstance(value, (list, tuple)) and name != "vision_feature_layer":
            return False
        if isinstance(value, dict) and any(
            isinstance(inner, (Tensor, list, tuple)) for inner in value.values()
        ):
            return False
    return True


def _parted(output: Any, count: int) -> list[Any] | None:
    features = getattr(output, "pooler_output", None)
    if features is None or len(features) % count:
        return None
    outputs = []
    for i in range(count):
        own = copy.copy(output)
        for name, value in list(output.items()):
            pictures = None if name in ("hidden_states", "attentions") else len(features)
            own[name] = _share(value, i, count, pictures)
        outputs.append(own)
    return outputs


def _share(value: Any, index: int, count: int, pictures: int | None) -> Any:
    """The ``index``-th of ``count`` equal parts of the pictures in a field of an output.

    A tensor has the pictures first; a sequence of ``pictures`` tensors has one for each; any other sequence holds fields.
    """
    if isinstance(value, Tensor):
        return value.chunk(count)[index] if value.ndim and not len(value) % count else value
    if not isinstance(value, (tuple, list)):
        return value
    if len(value) == pictures and all(isinstance(one, Tensor) for one in value):
        each = len(value) // count
        return value[index * each : (index + 1) * each]
    return type(value)(_share(one, index, count, pictures) for one in value)
