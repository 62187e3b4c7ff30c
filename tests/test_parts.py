"""The vocabulary that methods are written in, each word by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from keepsight.parts import PLACES, Contrast, Edit, HookContext, Lens, Prelude, describe

IMAGE = torch.tensor([[False, False, True, True, False], [False, True, True, False, False]])
MASK = torch.tensor([[False, True, True, True, True], [True, True, True, True, True]])


def context(**changed: Any) -> HookContext:
    given: dict[str, Any] = {
        "layer": 1, "first": 0, "rows": 5, "prompt": 5, "image": IMAGE, "attention_mask": MASK, **changed,
    }  # fmt: skip
    return HookContext(**given)


def test_a_context_says_where_a_pass_stands() -> None:
    whole = context()
    assert (whole.step, whole.last_prompt_row) == (0, 4)
    assert whole.row_numbers().tolist() == [0, 1, 2, 3, 4]
    third = context(first=7, rows=1)
    assert (third.step, third.last_prompt_row) == (3, None)
    assert third.row_numbers().tolist() == [7]
    chunk = context(first=2, rows=2)
    assert chunk.last_prompt_row is None
    assert context(first=3, rows=2).last_prompt_row == 1


def test_spans_part_the_prompt_and_the_answer() -> None:
    """Every column that counts lies in one span; padding lies in none."""
    now = context(first=5, rows=2)
    spans = {name: now.span(name, 7) for name in ("system", "picture", "question", "answer")}
    assert spans["system"].tolist() == [[0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    assert spans["picture"].tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]]
    assert spans["question"].tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0]]
    assert spans["answer"].tolist() == [[0, 0, 0, 0, 0, 1, 1]] * 2
    counted = sum(span.int() for span in spans.values())
    assert counted.tolist() == [[0, 1, 1, 1, 1, 1, 1], [1] * 7]
    # A sliding window that has dropped the first columns
    assert now.span("picture", 4, first_key=3).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(now.span("picture", 7), now.image_columns(7, 0))
    with pytest.raises(KeyError):
        now.span("nothing", 7)


def test_an_edit_changes_nothing_where_it_overrides_nothing() -> None:
    edit, x = Edit(), torch.randn(2, 3, 4, 5)
    now = context()
    assert torch.equal(edit.attn_scores(x, IMAGE, now), x)
    assert torch.equal(edit.attn_pattern(x, IMAGE, now), x)
    for place in ("head_out", "attn_out", "mlp_out", "resid_post"):
        assert torch.equal(getattr(edit, place)(x, now), x)
    assert bool(edit.rows(now).all())
    assert edit.rows(now).shape == (2, 5)
    assert not any(edit.overrides(place) for place in PLACES)


def test_parts_describe_themselves_for_messages() -> None:
    from keepsight.decoding.views import NoImage

    class Both(Edit):
        def attn_out(self, hidden: Tensor, context: HookContext) -> Tensor:
            return hidden

        def mlp_out(self, hidden: Tensor, context: HookContext) -> Tensor:
            return hidden

    contrast = Contrast(views=[NoImage()], combine=lambda expert, amateurs, step: expert)
    assert describe(Both()) == "changes attn_out and mlp_out"
    assert describe(contrast) == "contrasts the model with NoImage"
    assert "earlier layers" in describe(Lens(layers=[0], combine=lambda scores, logits, step: scores))
    assert "before the generation" in describe(Prelude(run=lambda passes: None))
