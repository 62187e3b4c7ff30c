"""Template of a method's test: copy it to the folder of tests/ that has the name of the method's own folder.

What every method promises is tested by the conformance suite (tests/engines/hf/test_conformance.py), which finds the new
method by itself. This file holds what is this method's alone: worked numbers from the paper or by hand, and its laws.
"""

from __future__ import annotations

import pytest
import torch
from evenhanded import Evenhanded, mix  # in its place: from keepsight.decoding.evenhanded import …

from keepsight import InvalidParameter


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
