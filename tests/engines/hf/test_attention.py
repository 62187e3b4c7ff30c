"""The shared ground of attention edits: what a row may see, explicit attention, and where rows and columns are."""

from __future__ import annotations

import pytest
import torch

from keepsight.attention_mods.layers import last_layers
from keepsight.engines.hf.attention import allowed_keys, attend
from keepsight.parts import PLACES, Edit, HookContext

LOWEST = torch.finfo(torch.float32).min


def seen(bias: torch.Tensor) -> list[list[bool]]:
    return (bias[0, 0] == 0).tolist()


def test_causal_rows_of_a_later_pass() -> None:
    bias = allowed_keys(None, torch.tensor([0, 2]), first=3, keys=6, first_key=0, window=None)
    assert seen(bias) == [[True] * 4 + [False] * 2, [True] * 6]


def test_a_sliding_window_sees_the_last_keys_only() -> None:
    # rows 5 and 6; the cache has kept keys 3 to 6; a window of three
    bias = allowed_keys(None, torch.tensor([0, 1]), first=5, keys=4, first_key=3, window=3)
    assert seen(bias) == [[True, True, True, False], [False, True, True, True]]


def test_masks_as_kernels_get_them() -> None:
    padding = torch.tensor([[0, 1, 1]])
    assert seen(allowed_keys(padding, torch.tensor([2]), first=0, keys=3, first_key=0, window=None)) == [
        [False, True, True]
    ]
    given = torch.tensor([[[[True, False, True], [True, True, False]]]])
    assert seen(allowed_keys(given, torch.tensor([1]), first=0, keys=3, first_key=0, window=None)) == [
        [True, True, False]
    ]
    added = torch.where(given, 0.0, -torch.inf)
    assert seen(allowed_keys(added, torch.tensor([1]), first=0, keys=3, first_key=0, window=None)) == [
        [True, True, False]
    ]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_of_some_rows_is_the_kernels(groups: int) -> None:
    query, key, value = torch.randn(2, 4, 7, 8), torch.randn(2, groups, 7, 8), torch.randn(2, groups, 7, 8)
    full = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(4 // groups, 1), value.repeat_interleave(4 // groups, 1), is_causal=True
    )
    rows = torch.tensor([1, 4, 6])
    bias = allowed_keys(None, rows, first=0, keys=7, first_key=0, window=None)
    weights = []

    def keep(probs: torch.Tensor) -> torch.Tensor:
        weights.append(probs)
        return probs

    ours = attend(query[:, :, rows], key, value, bias, 8**-0.5, scores=lambda x: x, pattern=keep)
    torch.testing.assert_close(ours, full.transpose(1, 2)[:, rows], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 4, 3))
    assert weights[0][:, :, 0, 2:].abs().max() == 0, "masked keys stay at 0"


def test_softcap_is_applied_before_edits_see_the_scores() -> None:
    query, key, value = 30 * torch.ones(1, 1, 1, 4), torch.ones(1, 1, 2, 4), torch.randn(1, 1, 2, 4)
    heard = []

    def listen(scores: torch.Tensor) -> torch.Tensor:
        heard.append(scores)
        return scores

    attend(query, key, value, None, 1.0, scores=listen, pattern=lambda x: x, softcap=5.0)
    assert heard[0].max() <= 5.0


def test_contexts_count_from_the_start_of_the_padded_prompt() -> None:
    image = torch.tensor([[False, True, True, False]])
    whole = HookContext(layer=0, first=0, rows=4, prompt=4, image=image, attention_mask=~image)
    assert whole.last_prompt_row == 3
    assert whole.image_columns(4, 0).tolist() == image.tolist()
    decode = HookContext(layer=0, first=4, rows=1, prompt=4, image=image, attention_mask=~image)
    assert decode.last_prompt_row is None
    assert decode.row_numbers().tolist() == [4]
    assert decode.image_columns(5, 0).tolist() == [[False, True, True, False, False]]
    assert decode.image_columns(3, 2).tolist() == [[True, False, False]]


def test_an_edit_acts_where_it_overrides_a_place() -> None:
    class Weighs(Edit):
        def attn_scores(
            self, scores: torch.Tensor, image: torch.Tensor, context: HookContext
        ) -> torch.Tensor:
            return scores

    assert [place for place in PLACES if Weighs().overrides(place)] == ["attn_scores"]
    assert not any(Edit().overrides(place) for place in PLACES)


def test_last_layers() -> None:
    assert list(last_layers(32, 0.44)) == list(range(18, 32))
    assert list(last_layers(2, 0.44)) == [1]
