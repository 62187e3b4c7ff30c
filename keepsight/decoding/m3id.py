"""M3ID: mutual-information decoding, which contrasts the model with the same prompt without its picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from keepsight.decoding.contrast import contrast, keep_only, one_left, plausible, precise
from keepsight.decoding.views import NoImage
from keepsight.errors import InvalidParameter
from keepsight.method import Method, parameter
from keepsight.parts import Contrast

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target

CUTOFF = 0.1
"""The plausibility cutoff of the published re-implementations."""


def weight(step: int, decay: float, cap: float) -> float:
    """Returns ``exp(decay · step) − 1``, at most ``cap``: how far a text has drifted from its picture after ``step`` tokens.

    With decay 0.02 it is 0 at step 0, 0.22 at 10, 1.72 at 50, and 6.4 at 100.
    """
    # Exponents are compared instead of weights, since the exponential function overflows for large ones.
    return cap if decay * step >= math.log1p(cap) else math.expm1(decay * step)


def m3id(
    expert: Tensor, amateur: Tensor, *, weight: float, cutoff: float | None = None, gate: float | None = None
) -> Tensor:
    """Returns ``log p(y | picture) + weight · (log p(y | picture) − log p(y))`` for ``(batch, vocab)`` scores.

    Args:
        expert: logits or log-probabilities given the picture; they are normalised here.
        amateur: the same, given no picture.
        weight: the weight of the contrast, 0 or more; see the function ``weight``.
        cutoff: a number in [0, 1]; tokens less likely than ``cutoff`` times the most likely one get −inf. None keeps all.
        gate: a number in [0, 1]; a row whose most likely token has at least this probability is returned as it came. None
            contrasts every row.

    Returns:
        Scores up to a constant per row; rows behind a closed gate are returned as given.

    >>> m3id(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[1.0, 2.0, -1.0]]), weight=0.221403)
    tensor([[-0.3176, -1.1497, -3.5390]])
    """
    certain = expert.log_softmax(-1)
    scores = contrast(certain, amateur.log_softmax(-1), strength=weight)
    if cutoff is not None:
        scores = keep_only(scores, plausible(expert, cutoff))
    return scores if gate is None else torch.where(closed(expert, gate), expert, scores)


def closed(expert: Tensor, gate: float) -> Tensor:
    """Returns the rows whose most likely token has at least probability ``gate``, ``(batch, 1)`` bool; none at gate 1."""
    if gate == 0:
        return torch.ones_like(expert[:, :1], dtype=torch.bool)
    if gate == 1:
        # A probability of 1 would mean that no other token is left, and then there is nothing to contrast.
        return torch.zeros_like(expert[:, :1], dtype=torch.bool)
    # p >= gate is the same as 1/p − 1 <= 1/gate − 1, and 1/p − 1 is the sum of the other tokens' shares of the largest.
    # Near 1 a probability has no digits left in float32, and this sum has all of them.
    logits = precise(expert)
    top = logits.argmax(-1, keepdim=True)
    others = (logits - logits.gather(-1, top)).exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return others <= 1 / gate - 1


@dataclass(frozen=True, kw_only=True)
class M3ID(Method):
    """Multi-Modal Mutual-Information Decoding (Favero et al., CVPR 2024, arXiv 2403.14003). No official code exists.

    The longer a text gets, the less it depends on its picture. M3ID makes up for that with a weight that grows::

        score = log p(y | picture) + w_t · (log p(y | picture) − log p(y | no picture)),   w_t = exp(decay · t) − 1

    with t the number of tokens generated so far. One of two different rules decides where the contrast acts:

    * ``gate`` is the paper's rule: a step whose most likely token has probability ``gate`` or more is left as it is; no
      token is ever ruled out. The paper's value could not be recovered, so there is no default.
    * ``cutoff`` is the rule of the re-implementations published with AvisC and RITUAL, from which the figures in circulation
      come: every step is contrasted, and tokens less likely than ``cutoff`` times the most likely one are ruled out.

    ``M3ID()`` uses the second rule with its published settings, and ``M3ID(gate=0.9)`` the first. If both are given, the
    cutoff applies at the steps that the gate leaves open.

    Args:
        decay: λ, the rate at which the picture is forgotten, 0 or more; 0 turns the contrast off. The re-implementations
            use 0.02.
        gate: in [0, 1], or None. A gate of 1 is always open, one of 0 never.
        cutoff: in [0, 1], or None. The default is 0.1 without a gate, and None with one.
        first: the t of the first token, 0 or 1. It is 0 by the definition above and in RITUAL; AvisC starts at 1.
        cap: the largest weight. w grows without bound (22,025 at t = 500 with decay 0.02); from about 100 on, a larger
            weight changes nothing but rounding errors, so it stops there.
        also_drop: ids of further tokens that belong to the picture in the prompt and must go with it (row separators,
            tags), where the model's configuration does not name them.

    Departs from the paper: see ``cutoff``, ``first`` and ``cap``. "No picture" means that placeholders and the begin/end
    markers named in the model's configuration are dropped and positions close up, as if the prompt had been written
    without a picture; of several pictures in a prompt all are dropped. The weight is computed in double precision and the
    scores in single precision, whatever the model's dtype is.

    Cost: a second prefill of the text alone, and one more row in every pass (a second forward pass per token where passes
    cannot be shared, see ``mitigate``). The vision tower does not run again, and the second cache holds no visual tokens.
    Answers of one word hardly change, since w is 0 at the first token.

    Raises:
        NoImageTokens: the prompt holds no picture.
    """

    paper: ClassVar[str] = "2403.14003"
    year: ClassVar[int] = 2024
    title: ClassVar[str] = "Multi-Modal Hallucination Control by Visual Information Grounding"
    gist: ClassVar[str] = "adds, more with every token, what the picture says beyond the text alone"
    cost: ClassVar[str] = "prefill +1 without picture; one more row in every pass"

    visible: ClassVar[Mapping[str, Any]] = {"decay": 0.7, "cutoff": 0.0}
    negligible: ClassVar[Mapping[str, Any]] = {"decay": 1e-12, "cutoff": 0.0}

    decay: float = parameter(0.02, "rate at which the weight grows per token; 0 is off", low=0)
    gate: float | None = parameter(
        None, "paper: leave a step whose top probability is at least this", low=0, high=1
    )
    cutoff: float | None = parameter(
        None, f"re-implementations: plausibility cutoff (without a gate: {CUTOFF})", low=0, high=1
    )
    first: int = parameter(0, "t of the first token; AvisC: 1", low=0, high=1)
    cap: float = parameter(100.0, "largest weight", low=0)
    also_drop: tuple[int, ...] = parameter(
        (), "token ids to drop with the picture, besides those the model names"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(token < 0 for token in self.also_drop):
            raise InvalidParameter(f"m3id: also_drop={self.also_drop!r} must hold token ids, 0 or more")
        # The default depends on the gate. A frozen dataclass can set it in no other way.
        if self.gate is None and self.cutoff is None:
            object.__setattr__(self, "cutoff", CUTOFF)

    def off(self) -> Self:
        return replace(self, decay=0.0, cutoff=0.0)

    def parts(self, target: Target) -> Iterator[Contrast]:
        # At decay 0 the weight is 0 at every step, so only a cutoff could still change anything.
        if self.decay == 0 and not self.cutoff:
            return
        yield Contrast(
            views=[NoImage(self.also_drop)],
            combine=self.combine,
            decided=self.decided,
            # At t = 0 the weight is 0, so the first step does not wait for the amateur's prefill.
            needed=lambda step: self.weight(step) > 0,
        )

    def weight(self, step: int) -> float:
        """Returns the weight of the contrast once ``step`` tokens have been generated."""
        return weight(step + self.first, self.decay, self.cap)

    def decided(self, expert: Tensor, step: int) -> Tensor:
        """Returns the rows, ``(rows,)`` bool, in which one plausible token is left or the gate is closed."""
        alone = torch.zeros_like(expert[:, 0], dtype=torch.bool)
        if self.cutoff is not None:
            alone = one_left(expert, self.cutoff)
        return alone if self.gate is None else alone | closed(expert, self.gate)[:, 0]

    def combine(self, expert: Tensor, amateurs: Sequence[Tensor] | None, step: int) -> Tensor:
        """Returns what ``m3id`` gives with the weight of this step."""
        if amateurs is None:
            # Without the amateur's scores the weight is 0: what they say
            # does not matter here, while the cutoff still applies.
            return m3id(expert, expert, weight=0.0, cutoff=self.cutoff, gate=self.gate)
        return m3id(expert, amateurs[0], weight=self.weight(step), cutoff=self.cutoff, gate=self.gate)
