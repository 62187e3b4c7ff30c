"""An amateur's keys and values, with room to grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Tokens for which there is room beside those that are there, whenever a layer is laid out anew."""


class GrowingLayer(DynamicLayer):
    """transformers' growing layer, in which a new token is written behind the others.

    Its parent copies all keys and values at every token, which for a long prompt is more than attention itself reads.
    ``keys`` and ``values`` are what they are there; they only happen to be the front of something larger.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._rooms: list[Tensor | None] = [None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        grown = []
        # One loop for both, written out: it runs in every layer at every token
        for i, (there, new) in enumerate(((self.keys, key_states), (self.values, value_states))):
            before = 0 if there is None or not there.numel() else there.shape[-2]
            after = before + new.shape[-2]
            room = self._rooms[i]
            if (
                room is None
                or there is None
                or after > room.shape[-2]
                # Reordered or repeated rows lie elsewhere; cropped ones are still the front of the room
                or there.data_ptr() != room.data_ptr()
                or there.stride() != room.stride()
                or there.shape[:-2] != room.shape[:-2]
                # What inference mode has made may not be written to outside of it
                or (room.is_inference() and not torch.is_inference_mode_enabled())
            ):
                room = self._rooms[i] = new.new_empty((*new.shape[:-2], after + ROOM, new.shape[-1]))
                if there is not None and before:
                    room[..., :before, :] = there
            room[..., before:after, :] = new
            grown.append(room[..., :after, :])
        self.keys, self.values = grown
        return self.keys, self.values


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that ``generate`` would take, with room in each layer that grows without bounds."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
