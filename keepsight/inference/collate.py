"""Joins prompts that were prepared one by one into the batch that the processor would have made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepsight.target import TOKEN_KEYS


def shape_of(inputs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What two prompts must have in common to be joined in one batch; None for a prompt that can only stand alone.

    Entries with one number for each token may differ in length, since shorter ones are padded. All other entries are joined
    along their first dimension, so that their remaining dimensions and their types must agree.

    Args:
        inputs: of one prompt, as the model's processor returned them.
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


def collate(prompts: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """One batch of prompts whose ``shape_of`` is the same, padded on the left. A single prompt comes back as it is.

    Args:
        prompts: the inputs of each, at least one.
        padding: the id that fills the places before a shorter prompt.
    """
    if len(prompts) == 1:
        return dict(prompts[0])
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    joined: dict[str, Any] = {}
    for name in prompts[0]:
        values = [prompt[name] for prompt in prompts]
        if name in TOKEN_KEYS:
            # 0 means "padding" in an attention mask, and "text" among the kinds of tokens
            fill = padding if name == "input_ids" else 0
            values = [
                torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values
            ]
        joined[name] = torch.cat(values)
    return joined
