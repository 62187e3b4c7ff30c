"""A method with two amateurs, as a third party may write one: away from the text alone and from the noised picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from keepsight import Method, parameter
from keepsight.decoding.contrast import contrast
from keepsight.decoding.vcd import NoisedImage
from keepsight.decoding.views import NoImage
from keepsight.parts import Contrast

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target

OWN = "two_amateurs:TwoAmateurs"


def combine(expert: Tensor, amateurs: Sequence[Tensor] | None, step: int, *, strength: float) -> Tensor:
    """Away from the mean of both amateurs' log-probabilities, from the second token on."""
    assert amateurs is not None
    text, noise = (one.log_softmax(-1) for one in amateurs)
    return contrast(expert.log_softmax(-1), 0.75 * text + 0.25 * noise, strength=strength * min(step, 3))


@dataclass(frozen=True, kw_only=True)
class TwoAmateurs(Method):
    """Two amateurs in one contrast."""

    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2025
    title: ClassVar[str] = "none"
    gist: ClassVar[str] = "away from the text alone and from noise"
    cost: ClassVar[str] = "two more rows"

    strength: float = parameter(0.2, "strength of the contrast", low=0)

    def off(self) -> Self:
        return replace(self, strength=0.0)

    def parts(self, target: Target) -> Iterator[Contrast]:
        if self.strength:
            views = [NoImage(), NoisedImage(step=999, seed=0)]
            yield Contrast(views=views, combine=partial(combine, strength=self.strength))
