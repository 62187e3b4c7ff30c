"""One call of the vision tower for the picture and for a branch's changed copy of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def batched(
    encode: Any, args: tuple[Any, ...], kwargs: dict[str, Any], others: Sequence[Mapping[str, Any]]
) -> list[Any] | None:
    """What ``encode(*args, **kwargs)`` gives for its own pictures and for each of ``others``, from one call.

    Args:
        encode: a model's ``get_image_features``.
        others: image tensors by the names of ``encode``'s parameters; what they lack is taken from the call.

    Returns:
        Outputs, the call's own first; None where shapes differ or the output cannot be told apart.
    """
    bound = inspect.signature(encode).bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        if not isinstance(value, Tensor):
            continue
        given = [other.get(name) for other in others]
        parts = [value, *(value if one is None else one.to(value.device, value.dtype) for one in given)]
        if any(part.shape != value.shape for part in parts):
            return None
        bound.arguments[name] = torch.cat(parts)
    return _parted(encode(*bound.args, **bound.kwargs), 1 + len(others))


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
