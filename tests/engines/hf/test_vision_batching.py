"""One call of the vision tower for several pictures, and the calls that must stay apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from keepsight.engines.hf.vision_batching import batched

CLEAN, NOISY = torch.ones(2, 3), torch.full((2, 3), 5.0)


class Tower:
    """Adds up the values of each picture, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def look(self, pixel_values: Tensor, **rest: Any) -> BaseModelOutputWithPooling:
        self.calls += 1
        return BaseModelOutputWithPooling(pooler_output=pixel_values.sum(-1))

    def encode(
        self,
        pixel_values: Tensor,
        image_sizes: Any = None,
        image_token_pooling: Tensor | None = None,
        vision_feature_layer: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        return self.look(pixel_values)


def test_pictures_of_several_prompts_go_together() -> None:
    tower = Tower()
    sizes = torch.tensor([[1, 3]] * 2)
    other = {"pixel_values": NOISY, "input_ids": torch.ones(1, 4)}
    outputs = batched(tower.encode, (CLEAN,), {"image_sizes": sizes, "vision_feature_layer": [-2]}, [other])
    assert outputs is not None
    assert [output.pooler_output.tolist() for output in outputs] == [[3, 3], [15, 15]]
    assert tower.calls == 1


@pytest.mark.parametrize(
    ("kwargs", "other"),
    [
        # By another name than the tower's, the amateur's pixels would be taken from the call, which are clean
        ({}, {"image_patches": NOISY}),
        ({}, {"pixel_values_images": NOISY}),
        # What the tower gets by keyword alone is not written twice
        ({"high_res_pixel_values": CLEAN}, {"pixel_values": NOISY, "high_res_pixel_values": NOISY}),
        ({"num_local_patches": [1, 1]}, {"pixel_values": NOISY}),
        # Molmo2 counts the patches of all pictures through
        ({"image_token_pooling": torch.arange(2)}, {"pixel_values": NOISY}),
        ({"image_sizes": [[1, 3]] * 2}, {"pixel_values": NOISY}),
    ],
)
def test_pictures_that_cannot_be_told_apart_are_left_to_calls_of_their_own(
    kwargs: dict[str, Any], other: dict[str, Any]
) -> None:
    tower = Tower()
    assert batched(tower.encode, (CLEAN,), kwargs, [other]) is None
    assert tower.calls == 0
