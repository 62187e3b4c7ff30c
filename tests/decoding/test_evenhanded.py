"""Worked numbers of a throw-away method that shows how one is added."""

from __future__ import annotations

import pytest
import torch

from keepsight import InvalidParameter
from keepsight.decoding.evenhanded import Evenhanded, mix


def test_worked_numbers() -> None:
    """By hand: log-softmax of (1, 0) is (−0.3133, −1.3133); of (0, 1) it is (−1.3133, −0.3133)."""
    found = mix(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), share=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.6867, -2.3133]]), rtol=0, atol=1e-4)


def test_an_amateur_that_agrees_changes_nothing() -> None:
    expert = torch.randn(2, 7)
    torch.testing.assert_close(mix(expert, expert, share=3.0), expert.log_softmax(-1))


def test_a_strength_out_of_its_range_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="0 or more"):
        Evenhanded(share=-1.0)
