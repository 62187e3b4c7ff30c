"""The arithmetic that contrastive decoders share: pure functions over ``(batch, vocab)`` scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plausible(expert: Tensor, cutoff: float) -> Tensor:
    """Tokens whose expert probability is at least ``cutoff`` times the largest one, ``(batch, vocab)`` bool.

    ``expert`` may be raw logits or log-probabilities. ``cutoff`` 0 keeps all, 1 keeps the most likely token
    (and its ties); the most likely token is kept at every cutoff.
    """
    if cutoff == 0:
        return torch.ones_like(expert, dtype=torch.bool)
    return expert >= expert.amax(-1, keepdim=True) + math.log(cutoff)


def one_left(expert: Tensor, cutoff: float) -> Tensor:
    """``(batch,)`` bool: rows in which one plausible token is left, so that no contrast can change the outcome."""
    return plausible(expert, cutoff).sum(-1) == 1


def contrast(expert: Tensor, amateur: Tensor, *, strength: float) -> Tensor:
    """``(1 + strength) · expert − strength · amateur``: the expert, moved away from the amateur.

    A token that an earlier processor ruled out (expert −inf) stays ruled out, whatever the amateur says.

    >>> contrast(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[1.0, 2.0, -1.0]]), strength=1.0)
    tensor([[ 3.,  1., -1.]])
    """
    if strength == 0:
        return expert
    moved = (1 + strength) * expert - strength * amateur
    return torch.where(expert == -math.inf, expert, moved)


def keep_only(scores: Tensor, kept: Tensor) -> Tensor:
    """``scores`` with −inf wherever ``kept`` is false."""
    return scores.masked_fill(~kept, -math.inf)
