"""A cache with room is transformers' own in every respect but one: new tokens do not copy the old ones."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from keepsight.engines.hf.growing_cache import ROOM, GrowingLayer, growing_cache


def pair(tokens: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 3, tokens, 4), torch.randn(rows, 3, tokens, 5)


def same(roomy: Any, plain: Any) -> bool:
    return torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_to_it_it_holds_what_its_parent_holds(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    roomy, plain = GrowingLayer(), DynamicLayer()
    start = pair(draw.randint(1, 90))
    given = roomy.update(*start)
    assert all(torch.equal(a, b) for a, b in zip(given, plain.update(*start), strict=True))
    rows = 2
    for _ in range(60):
        step = draw.choice(["one", "one", "one", "some", "reorder", "crop", "repeat"])
        if step in ("one", "some"):
            new = pair(1 if step == "one" else draw.randint(2, 40), rows)
            ours, theirs = roomy.update(*new), plain.update(*new)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        elif step == "reorder":
            index = torch.tensor([draw.randrange(rows) for _ in range(rows)])
            roomy.reorder_cache(index)
            plain.reorder_cache(index)
        elif step == "crop":
            gone = draw.randint(1, min(5, plain.get_seq_length() - 1))
            roomy.crop(-gone)
            plain.crop(-gone)
        elif rows < 8:
            rows *= 2
            roomy.batch_repeat_interleave(2)
            plain.batch_repeat_interleave(2)
        assert same(roomy, plain)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_old_tokens_stay_where_they_are() -> None:
    layer = GrowingLayer()
    layer.update(*pair(100))
    places = set()
    for _ in range(2 * ROOM):
        layer.update(*pair(1))
        places.add(layer.keys.data_ptr())
    assert len(places) <= 3
    before = layer.keys.data_ptr()
    layer.crop(-3)
    layer.update(*pair(2))
    assert layer.keys.data_ptr() == before, "rejected tokens are written over"


def test_a_cache_made_in_inference_mode_goes_on_outside_of_it() -> None:
    roomy, plain = GrowingLayer(), DynamicLayer()
    with torch.inference_mode():
        start = pair(5)
        for layer in (roomy, plain):
            layer.update(*start)
    new = pair(1)
    with torch.no_grad():
        for layer in (roomy, plain):
            layer.update(*new)
    assert same(roomy, plain)


def test_windows_keep_their_own_layers() -> None:
    config = FAMILIES["gemma3"].model().config
    kinds = [type(layer) for layer in growing_cache(config).layers]
    assert set(kinds) <= {GrowingLayer, DynamicSlidingWindowLayer}
    assert DynamicSlidingWindowLayer in kinds
    plain = DynamicCache(config=config.get_text_config(decoder=True)).layers
    assert [kind is GrowingLayer for kind in kinds] == [type(layer) is DynamicLayer for layer in plain]
    assert {type(layer) for layer in growing_cache(FAMILIES["llava"].model().config).layers} == {GrowingLayer}
