"""Calls of one decoder layer by several passes, made one call: tokens side by side in one row, caches apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from keepsight.target import CACHE_NAMES


class Unpackable(Exception):
    """Calls that cannot be made one; nothing has been changed yet."""


@dataclass(frozen=True, eq=False)
class PackedPass:
    """How passes lie in one row of tokens, one after the other, and what they share in every layer.

    Args:
        shapes: rows, and tokens of a row, of each pass.
        sizes: tokens of each pass in the packed row.
        masks: each pass's own attention mask.
        arguments: what the layer is called with besides the packed hidden states.
        kept: the arguments of the passes themselves. They are held so that their ids stay theirs.
    """

    shapes: tuple[tuple[int, int], ...]
    sizes: list[int]
    masks: tuple[Tensor | None, ...]
    arguments: dict[str, Any]
    kept: Any = None

    def release(self) -> None:
        """Let go of what the passes handed over. A packed cache and its pass refer to each other, so that both passes' keys
        and values would stay in memory until Python next looks for cycles."""
        self.arguments.clear()

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """``(rows, tokens, width)`` each, to ``(1, all tokens, width)``."""
        return torch.cat([state.reshape(1, -1, state.shape[-1]) for state in states], dim=1)

    def split(self, packed: Tensor) -> list[Tensor]:
        """The reverse of ``join``."""
        parts = list(torch.split(packed, self.sizes, dim=1))
        for i, shape in enumerate(self.shapes):
            parts[i] = parts[i].reshape(*shape, -1)
        return parts

    def split_heads(self, packed: Tensor) -> list[Tensor]:
        """``(1, heads, all tokens, dim)`` to ``(rows, heads, tokens, dim)`` each."""
        # A loop and no comprehension, which would be a call of its own: this runs three times in every layer at every token
        parts = list(torch.split(packed, self.sizes, dim=2))
        for i, (rows, tokens) in enumerate(self.shapes):
            if rows > 1:
                parts[i] = parts[i].view(packed.shape[1], rows, tokens, -1).transpose(0, 1)
        return parts


class PackedCache:
    """Stands for the cache of a packed call: each pass's new keys and values go into its own."""

    def __init__(self, caches: Sequence[Any]) -> None:
        self.caches = tuple(caches)
        self.packed: PackedPass | None = None

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        # Since 5.24 layers hand over all their arguments as ``kwargs``: caches of continuous batching read them
        if args or kwargs.keys() - {"kwargs"}:
            raise Unpackable("a decoder layer hands its cache more than keys and values")
        assert self.packed is not None
        keys, values = self.packed.split_heads(key), self.packed.split_heads(value)
        for i, cache in enumerate(self.caches):
            keys[i], values[i] = cache.update(keys[i], values[i], layer)
        return keys, values


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a pass hands to a layer besides its hidden states."""


def pack_calls(shapes: Sequence[tuple[int, int]], calls: Sequence[Call]) -> PackedPass:
    """One call of a layer instead of several.

    Args:
        shapes: rows and tokens of each pass's hidden states.
        calls: what else each pass hands to the layer, the main pass first.

    Raises:
        Unpackable: an argument of which it is not known how to share it.
    """
    if any(map(itemgetter(0), calls)):
        raise Unpackable("the decoder hands arguments to its layers by position")
    # What a pass shall give back besides is a matter of the main pass alone
    together = {name: value for name, value in calls[0][1].items() if name.startswith("output_")}
    given = [{name: v for name, v in kwargs.items() if not name.startswith("output_")} for _, kwargs in calls]
    if len(set(map(frozenset, given))) > 1:
        raise Unpackable("passes hand different arguments to the layers")
    cache = None
    for name in given[0]:
        values = [kwargs[name] for kwargs in given]
        together[name] = _joined(name, values, shapes)
        if isinstance(together[name], PackedCache):
            cache = together[name]
    masks = tuple([kwargs.get("attention_mask") for kwargs in given])
    packed = PackedPass(
        tuple(shapes), [rows * tokens for rows, tokens in shapes], masks, together, kept=calls
    )
    if cache is not None:
        cache.packed = packed
    return packed


def _joined(name: str, values: list[Any], shapes: Sequence[tuple[int, int]]) -> Any:
    if name == "attention_mask":
        return None
    kinds = set(map(type, values))
    if name in CACHE_NAMES:
        if NoneType in kinds:
            raise Unpackable("a pass without a cache")
        return PackedCache(values)
    if kinds == {NoneType}:
        return None
    if name == "position_embeddings" and kinds == {tuple}:
        return tuple([join_rotary(tables, shapes) for tables in zip(*values, strict=True)])
    if name == "position_ids" and kinds == {Tensor}:
        return join_positions(values, shapes)
    if kinds <= {bool, int, float, str} and len(set(values)) == 1:
        return values[0]
    raise Unpackable(f"it is not known how passes share {name!r}")


def join_positions(values: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Positions ``(…, rows or 1, tokens)`` of each pass, to ``(…, 1, all tokens)``."""
    flat = [
        value.expand(*value.shape[:-2], *shape).flatten(-2)
        for value, shape in zip(values, shapes, strict=True)
    ]
    return torch.cat(flat, dim=-1).unsqueeze(-2)


def join_rotary(values: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Rotary tables ``(…, rows or 1, tokens, dim)`` of each pass, to ``(…, 1, all tokens, dim)``."""
    flat = [
        value.expand(*value.shape[:-3], *shape, value.shape[-1]).flatten(-3, -2)
        for value, shape in zip(values, shapes, strict=True)
    ]
    return torch.cat(flat, dim=-2).unsqueeze(-3)
