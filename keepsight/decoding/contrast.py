"""The arithmetic that contrastive decoders share: pure functions over ``(batch, vocab)`` scores.

What decides, such as a cutoff, is computed in float32 whatever the scores are in, or in float64 where they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST = 0.9 * torch.finfo(torch.float16).min
"""A score at or below this is that of a token that was ruled out. Processors write −inf; some models (Chameleon) write the
lowest number of their data type, of which multiples are −inf and differences of those not a number."""


def ruled_out(scores: Tensor) -> Tensor:
    """Returns where a model or an earlier processor has ruled tokens out, in the shape of ``scores``, bool."""
    return scores <= LOWEST


def precise(scores: Tensor) -> Tensor:
    """Returns scores in float32, or as they came in float64.

    A cutoff between bfloat16 logits would otherwise be rounded to a multiple of 1/16 where logits lie between 8 and 16.
    """
    return scores if scores.dtype == torch.float64 else scores.float()


def plausible(expert: Tensor, cutoff: float) -> Tensor:
    """Returns the tokens whose expert probability is at least ``cutoff`` times the largest one, ``(batch, vocab)`` bool.

    Args:
        expert: ``(batch, vocab)`` raw logits or log-probabilities.
        cutoff: in [0, 1]; 0 keeps all tokens, 1 the most likely one and its ties. The most likely token is always kept.
    """
    # The logarithm of 0 does not exist.
    if cutoff == 0:
        return torch.ones_like(expert, dtype=torch.bool)
    # A ratio of probabilities is a difference of logits, whatever constant they hold, so no softmax is needed.
    expert = precise(expert)
    return expert >= expert.amax(-1, keepdim=True) + math.log(cutoff)


def one_left(expert: Tensor, cutoff: float) -> Tensor:
    """Returns the rows in which one plausible token is left, ``(batch,)`` bool: no contrast can change their outcome."""
    return plausible(expert, cutoff).sum(-1) == 1


def contrast(expert: Tensor, amateur: Tensor, *, strength: float) -> Tensor:
    """Returns ``(1 + strength) · expert − strength · amateur``: the expert's scores, moved away from the amateur's.

    A token that the model or an earlier processor ruled out (see ``ruled_out``) stays as it is, whatever the amateur says.

    Args:
        expert: ``(batch, vocab)`` scores.
        amateur: scores of the same shape.
        strength: 0 or more; 0 returns the expert's scores as they are.

    >>> contrast(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[1.0, 2.0, -1.0]]), strength=1.0)
    tensor([[ 3.,  1., -1.]])
    """
    # Strength 0 has to change nothing, bit for bit. The formula would do otherwise where the amateur has −inf, since
    # 0 · −inf is not a number.
    if strength == 0:
        return expert
    moved = (1 + strength) * expert - strength * amateur
    # If the amateur has −inf as well, the difference is not a number.
    return torch.where(ruled_out(expert), expert, moved)


def keep_only(scores: Tensor, kept: Tensor) -> Tensor:
    """Returns ``scores`` with −inf wherever ``kept`` is false."""
    return scores.masked_fill(~kept, -math.inf)
