"""Template of a method: copy it to keepsight/decoding/, keepsight/attention_mods/ or keepsight/steering/ and rename it.

The file is named for its paper or method. It holds the formula as a pure function over tensors, and a frozen dataclass that
says which parts the method is made of (keepsight/parts.py). It imports neither an engine nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from keepsight.decoding.views import NoImage
from keepsight.method import Method, parameter
from keepsight.parts import Contrast

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target


def mix(expert: Tensor, amateur: Tensor, share: float) -> Tensor:
    """``(1 + share) · log p(y | picture) − share · log p(y)`` on ``(batch, vocab)`` scores, up to a constant per row.

    >>> import torch
    >>> mix(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), share=1.0)
    tensor([[ 0.6867, -2.3133]])
    """
    return (1 + share) * expert.log_softmax(-1) - share * amateur.log_softmax(-1)


def combine(expert: Tensor, amateurs: Sequence[Tensor] | None, step: int, *, share: float) -> Tensor:
    """``mix`` with the one amateur of this method, which is asked at every step."""
    assert amateurs is not None
    return mix(expert, amateurs[0], share)


@dataclass(frozen=True, kw_only=True)
class Evenhanded(Method):
    """Gist (Authors, Venue Year, arXiv 2601.00000; official code owner/repository).

    The formula, as it stands in the paper::

        score = (1 + share) · log p(y | picture) − share · log p(y)

    Args:
        share: meaning, range and default; what paper and code say where they differ.

    Departs from the paper: everything that is not as published, and why.

    Cost: extra passes at prefill and per token.

    Raises:
        NoImageTokens: the prompt holds no picture.
    """

    paper: ClassVar[str] = "2601.00000"
    year: ClassVar[int] = 2026
    title: ClassVar[str] = "The title of the paper"
    gist: ClassVar[str] = "one line for people who choose a method"
    cost: ClassVar[str] = "prefill +1 without picture; one more row in every pass"
    visible: ClassVar[Mapping[str, Any]] = {"share": 5.0}
    negligible: ClassVar[Mapping[str, Any]] = {"share": 1e-12}

    share: float = parameter(0.5, "strength of the contrast; 0 is off", low=0)

    def off(self) -> Self:
        return replace(self, share=0.0)

    def parts(self, target: Target) -> Iterator[Contrast]:
        if self.share > 0:
            yield Contrast(views=[NoImage()], combine=partial(combine, share=self.share))
