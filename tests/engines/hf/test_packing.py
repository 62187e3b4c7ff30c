"""Calls of several passes made one: how tokens lie side by side, and what cannot be shared."""

from __future__ import annotations

import pytest
import torch

from keepsight.engines.hf.packing import PackedPass, Unpackable, join_positions, join_rotary, pack_calls


def test_packing_and_unpacking() -> None:
    shapes = ((2, 3), (1, 2))
    plan = PackedPass(shapes, [6, 2], (None, None), {})
    a, b = torch.arange(12.0).reshape(2, 3, 2), torch.arange(4.0).reshape(1, 2, 2)
    packed = plan.join([a, b])
    assert packed.shape == (1, 8, 2)
    assert [torch.equal(x, y) for x, y in zip(plan.split(packed), (a, b), strict=True)] == [True, True]
    heads = packed.reshape(1, 8, 2, 1).transpose(1, 2)
    one, other = plan.split_heads(heads)
    assert one.shape == (2, 2, 3, 1)
    assert one[1, 0, :, 0].tolist() == a[1, :, 0].tolist()
    assert other[0, 1, :, 0].tolist() == b[0, :, 1].tolist()
    positions = join_positions([torch.tensor([[5, 6, 7]]), torch.tensor([[1, 2]])], shapes)
    assert positions.tolist() == [[5, 6, 7, 5, 6, 7, 1, 2]]
    three = join_positions([torch.zeros(3, 2, 3), torch.ones(3, 1, 2)], shapes)
    assert three.shape == (3, 1, 8)
    assert join_rotary([torch.zeros(3, 2, 3, 4), torch.ones(3, 1, 2, 4)], shapes).shape == (3, 1, 8, 4)


def test_arguments_that_cannot_be_shared_are_named() -> None:
    shapes = [(1, 1)] * 2
    with pytest.raises(Unpackable, match="'weights'"):
        pack_calls(shapes, [((), {"weights": torch.ones(1)})] * 2)
    with pytest.raises(Unpackable, match="different"):
        pack_calls(shapes, [((), {"use_cache": True}), ((), {})])
    with pytest.raises(Unpackable, match="'use_cache'"):
        pack_calls(shapes, [((), {"use_cache": True}), ((), {"use_cache": False})])
    with pytest.raises(Unpackable, match="without a cache"):
        pack_calls(shapes, [((), {"past_key_values": None})] * 2)
