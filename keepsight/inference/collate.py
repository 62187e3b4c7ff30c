"""Prompts that were prepared one by one, as one batch: what the processor would have made of all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepsight.target import TOKEN_KEYS


def shape_of(inputs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What two prompts must share to stand in one batch; None for a prompt that stands alone.

    All entries but those of one number per token must agree in everything but their first size, along which they are joined.
    """
    found: list[tuple[Any, ...]] = []
    for name in sorted(inputs):
        value = inputs[name]
        if not isinstance(value, Tensor) or value.ndim == 0:
            return None
        if name in TOKEN_KEYS:
            if value.ndim != 2 or value.shape[0] != 1:
                return None
            found.append((name, value.dtype, ()))
        else:
            found.append((name, value.dtype, tuple(value.shape[1:])))
    return tuple(found)


def join(prompts: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """One batch of prompts whose ``shape_of`` is the same, padded on the left. A single one comes back as it is.

    Args:
        padding: the id that fills the places before a shorter prompt.
    """
    if len(prompts) == 1:
        return dict(prompts[0])
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    joined: dict[str, Any] = {}
    for name in prompts[0]:
        values = [prompt[name] for prompt in prompts]
        if name in TOKEN_KEYS:
            fill = padding if name == "input_ids" else 0
            values = [
                torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values
            ]
        joined[name] = torch.cat(values)
    return joined
