"""Calls of one decoder layer by several passes, made one call: tokens side by side in one row, caches apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keepsight.engines.hf.beginnings import Shared
from keepsight.target import CACHE_NAMES


class Unpackable(Exception):
    """Calls that cannot be made one; nothing has been changed yet."""


@dataclass(frozen=True)
class Pack:
    """How passes of ``shapes`` (rows, tokens of a row) lie in one row of tokens, one after the other.

    Args:
        shared: for each pass what it leaves out, which ``shapes`` does not count; empty where none does.
    """

    shapes: tuple[tuple[int, int], ...]
    shared: tuple[Shared | None, ...] = ()

    def skipped(self, index: int) -> int:
        """Tokens that a pass leaves out of each row."""
        shared = self.shared[index] if self.shared else None
        return 0 if shared is None else shared.tokens

    def complete(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """``(rows, heads, tokens, dim)`` of each pass with what it left out in front, taken from the first."""
        if not self.shared:
            return list(parts)
        return [
            part if shared is None else torch.cat([shared.of(parts[0]), part], dim=2)
            for part, shared in zip(parts, self.shared, strict=True)
        ]

    @property
    def sizes(self) -> list[int]:
        return [rows * tokens for rows, tokens in self.shapes]

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """``(rows, tokens, width)`` each, to ``(1, all tokens, width)``."""
        return torch.cat([state.reshape(1, -1, state.shape[-1]) for state in states], dim=1)

    def split(self, packed: Tensor) -> list[Tensor]:
        """The reverse."""
        parts = torch.split(packed, self.sizes, dim=1)
        return [part.reshape(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def split_heads(self, packed: Tensor) -> list[Tensor]:
        """``(1, heads, all tokens, dim)`` to ``(rows, heads, tokens, dim)`` each."""
        parts = torch.split(packed, self.sizes, dim=2)
        return [
            part if rows == 1 else part.view(part.shape[1], rows, tokens, -1).transpose(0, 1)
            for part, (rows, tokens) in zip(parts, self.shapes, strict=True)
        ]

    def join_positions(self, values: Sequence[Tensor]) -> Tensor:
        """Positions ``(…, rows or 1, tokens)`` each, to ``(…, 1, all tokens)``."""
        flat = [
            value[..., self.skipped(i) :].expand(*value.shape[:-2], rows, tokens).flatten(-2)
            for i, (value, (rows, tokens)) in enumerate(zip(values, self.shapes, strict=True))
        ]
        return torch.cat(flat, dim=-1).unsqueeze(-2)

    def join_rotary(self, values: Sequence[Tensor]) -> Tensor:
        """Rotary tables ``(…, rows or 1, tokens, dim)`` each, to ``(…, 1, all tokens, dim)``."""
        flat = [
            value[..., self.skipped(i) :, :]
            .expand(*value.shape[:-3], rows, tokens, value.shape[-1])
            .flatten(-3, -2)
            for i, (value, (rows, tokens)) in enumerate(zip(values, self.shapes, strict=True))
        ]
        return torch.cat(flat, dim=-2).unsqueeze(-3)


@dataclass(frozen=True, eq=False)
class Caches:
    """Stands for the cache of a packed call: each pass's new keys and values go into its own."""

    pack: Pack
    caches: tuple[Any, ...]

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        # Since 5.24 layers hand over all their arguments as ``kwargs``: caches of continuous batching read them
        if args or kwargs.keys() - {"kwargs"}:
            raise RuntimeError("a decoder layer hands its cache more than keys and values: pass fused=False")
        keys = self.pack.complete(self.pack.split_heads(key))
        values = self.pack.complete(self.pack.split_heads(value))
        pairs = [cache.update(k, v, layer) for cache, k, v in zip(self.caches, keys, values, strict=True)]
        return tuple(k for k, _ in pairs), tuple(v for _, v in pairs)


@dataclass(frozen=True, eq=False)
class Packed:
    """One packed call of a layer: how the passes lie in it, and each pass's own attention mask."""

    pack: Pack
    masks: tuple[Tensor | None, ...]


Call = tuple[tuple[Any, ...], dict[str, Any]]


def pack_calls(
    states: Sequence[Tensor],
    calls: Sequence[Call],
    known: dict[Any, Any],
    shared: tuple[Shared | None, ...] = (),
) -> tuple[dict[str, Any], Packed]:
    """The keyword arguments of one call of a layer instead of several.

    Args:
        states: hidden states ``(rows, tokens, width)`` of each pass.
        calls: what else each pass hands to the layer.
        known: what is the same in every layer of a pass is worked out once and kept here.
        shared: see ``Pack``; the states are without it already, the calls are not.

    Raises:
        Unpackable: an argument of which it is not known how to share it.
    """
    if any(args for args, _ in calls):
        raise Unpackable("the decoder hands arguments to its layers by position")
    # What a pass shall give back besides is a matter of the main pass alone
    main = {name: value for name, value in calls[0][1].items() if name.startswith("output_")}
    given = [{name: v for name, v in kwargs.items() if not name.startswith("output_")} for _, kwargs in calls]
    if any(set(kwargs) != set(given[0]) for kwargs in given):
        raise Unpackable("passes hand different arguments to the layers")
    shapes = tuple((state.shape[0], state.shape[1]) for state in states)
    pack = Pack(shapes, shared)
    together: dict[str, Any] = dict(main)
    for name in given[0]:
        together[name] = _together(name, [kwargs[name] for kwargs in given], pack, known)
    return together, Packed(pack, tuple(kwargs.get("attention_mask") for kwargs in given))


def _together(name: str, values: list[Any], pack: Pack, known: dict[Any, Any]) -> Any:
    if name == "attention_mask":
        return None
    if name in CACHE_NAMES:
        if any(value is None for value in values):
            raise Unpackable("a pass without a cache")
        return Caches(pack, tuple(values))
    if all(value is None for value in values):
        return None
    key = (name, *map(id, values))
    if key not in known:
        known[key] = (
            _joined(name, values, pack),
            values,
        )  # the values are kept, so that their ids stay theirs
    return known[key][0]


def _joined(name: str, values: list[Any], pack: Pack) -> Any:
    if name == "position_embeddings" and all(isinstance(value, tuple) for value in values):
        return tuple(pack.join_rotary(tables) for tables in zip(*values, strict=True))
    if name == "position_ids" and all(isinstance(value, Tensor) for value in values):
        return pack.join_positions(values)
    if all(isinstance(value, (bool, int, float, str)) for value in values) and len(set(values)) == 1:
        return values[0]
    raise Unpackable(f"it is not known how passes share {name!r}")
