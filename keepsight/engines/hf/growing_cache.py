"""A second opinion's keys and values, with room to grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Tokens for which there is room beside those that are there, whenever a layer is laid anew."""


class RoomyLayer(DynamicLayer):
    """transformers' growing layer, in which a new token is written behind the others.

    Its parent copies all keys and values at every token, which for a long prompt is more than attention itself reads.
    ``keys`` and ``values`` are what they are there; they only happen to be the front of something larger.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._rooms: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, there: Tensor | None, new: Tensor) -> Tensor:
        before = 0 if there is None or not there.numel() else there.shape[-2]
        after = before + new.shape[-2]
        room = self._rooms.get(name)
        # Reordered or repeated rows lie elsewhere; cropped ones are still the front of it
        shut = room is not None and room.is_inference() and not torch.is_inference_mode_enabled()
        if room is None or shut or after > room.shape[-2] or there is None or not _fronts(there, room):
            room = self._rooms[name] = new.new_empty((*new.shape[:-2], after + ROOM, new.shape[-1]))
            if there is not None and before:
                room[..., :before, :] = there
        room[..., before:after, :] = new
        return room[..., :after, :]


def _fronts(part: Tensor, whole: Tensor) -> bool:
    return (
        part.data_ptr() == whole.data_ptr()
        and part.stride() == whole.stride()
        and part.shape[:-2] == whole.shape[:-2]
    )


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that ``generate`` would take, with room in each layer that grows without bounds."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
