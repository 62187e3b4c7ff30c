"""Joins prompts that were prepared one by one into the batch that the processor would have made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepsight.target import TOKEN_KEYS


def shape_of(inputs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Returns what two prompts must have in common to be joined in one batch; None for a prompt that must stand alone.

    Entries with one number for each token may differ in length, since shorter ones are padded. All other entries are joined
    along their first dimension, so that their remaining dimensions and their types must agree.

    Args:
        inputs: the model inputs of one prompt, as the model's processor returned them.
    """
    found: list[tuple[Any, ...]] = []
    # Sorting makes the result independent of the order in which a processor writes its entries.
    for name in sorted(inputs):
        value = inputs[name]
        # Lists and single numbers have no dimension along which prompts could be joined.
        if not isinstance(value, Tensor) or value.ndim == 0:
            return None
        if name in TOKEN_KEYS:
            # ``collate`` pads along the second dimension, so these must be one row of tokens.
            if value.ndim != 2 or value.shape[0] != 1:
                return None
            found.append((name, value.dtype, ()))
        else:
            found.append((name, value.dtype, tuple(value.shape[1:])))
    return tuple(found)


def collate(prompts: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """Returns one batch of prompts whose ``shape_of`` is the same, padded on the left. A single prompt is returned as it is.

    Args:
        prompts: the model inputs of each prompt, at least one.
        padding: the id that fills the places before a shorter prompt.
    """
    if len(prompts) == 1:
        return dict(prompts[0])
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    joined: dict[str, Any] = {}
    for name in prompts[0]:
        values = [prompt[name] for prompt in prompts]
        if name in TOKEN_KEYS:
            # 0 means "padding" in an attention mask, and "text" among the kinds of tokens.
            fill = padding if name == "input_ids" else 0
            values = [
                torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values
            ]
        joined[name] = torch.cat(values)
    return joined
