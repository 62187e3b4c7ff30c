"""PAI: pay attention to the image, by adding to its attention scores, and by text-only guidance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from keepsight.attention_mods.layers import chosen_layers
from keepsight.decoding.contrast import contrast, keep_only, one_left, plausible
from keepsight.engines.hf.contrast_processor import ContrastMethod, ContrastProcessor
from keepsight.engines.hf.patching import editing
from keepsight.method import Method, parameter
from keepsight.parts import Edit, Site

if TYPE_CHECKING:
    from transformers import LogitsProcessor
    from typing_extensions import Self

    from keepsight.target import Target

CUTOFF = 0.1


def boost(scores: Tensor, image: Tensor, alpha: float) -> Tensor:
    """``Z + alpha · |Z|`` in the columns of the picture: a score rises whatever its sign.

    Args:
        scores: ``(batch, heads, rows, keys)`` scaled scores before the mask.
        image: ``(batch, keys)`` bool.
    """
    return scores + alpha * scores.abs() * image[:, None, None]


def guide(expert: Tensor, amateur: Tensor, gamma: float) -> Tensor:
    """``gamma · (log p(picture) − log p(no picture)) + log p(no picture)``, −inf below a tenth of the top probability."""
    scores = contrast(expert.log_softmax(-1), amateur.log_softmax(-1), strength=gamma - 1)
    return keep_only(scores, plausible(expert, CUTOFF))


class Boost(Edit):
    """Adds to the last row of the prompt and to every generated one."""

    def __init__(self, layers: frozenset[int], alpha: float) -> None:
        self.layers, self.alpha = layers, alpha

    def rows(self, site: Site) -> Tensor:
        late = site.row_numbers() >= site.prompt - 1
        return late[None].expand(site.image.shape[0], -1)

    def scores(self, scores: Tensor, image: Tensor, site: Site) -> Tensor:
        return boost(scores, image, self.alpha)


@dataclass(frozen=True, kw_only=True)
class _Guidance(ContrastMethod):
    """PAI's second part as a contrast: the amateur is the prompt without its picture, and runs unedited."""

    paper: ClassVar[str] = "2407.21771"
    gamma: float

    def __post_init__(self) -> None:
        """Validated by PAI."""

    def off(self) -> Self:
        return replace(self, gamma=1.0)

    @property
    def is_off(self) -> bool:
        return self.gamma == 1

    def amateur(self, target: Target) -> dict[str, Any]:
        return target.without_image()

    def needs_amateur(self, step: int) -> bool:
        return True

    def decided(self, expert: Tensor, step: int) -> Tensor:
        return one_left(expert, CUTOFF)

    def combine(self, expert: Tensor, amateur: Tensor | None, step: int) -> Tensor:
        if amateur is None:
            return keep_only(expert, plausible(expert, CUTOFF))
        return guide(expert, amateur, self.gamma)


@dataclass(frozen=True, kw_only=True)
class PAI(Method):
    """Pay Attention to Image (Liu, Zheng & Chen, ECCV 2024, arXiv 2407.21771; official code LALBJ/PAI).

    Two parts. In the attention of the token being written, scores of the picture's columns rise before the softmax::

        Z ← Z + alpha · |Z|

    and the next token is guided away from what the text alone would say::

        score = gamma · (log p(picture) − log p(no picture)) + log p(no picture),   −inf where p < 0.1 · max p

    Args:
        alpha: strength in attention, 0 or more; 0 leaves attention alone. Official default: 0.2.
        gamma: strength of guidance, 1 or more; 1 leaves scores alone. README's commands: 1.1, argparse: 2.
        first_layer: first edited layer; all later ones are edited. Code: 2 of 32.
        layers: the edited layers, instead of ``first_layer``.

    Departs from the paper's code:
        The first token is edited like all others (there, with guidance on, it is not). The picture's columns are found in
        the prompt (there: columns 35 to 610). The amateur's cache follows beams.

    Cost: attention recomputes one row a step in each edited layer and leaves the rest to the fast kernel; guidance costs a
    text-only prefill and one more row in every pass (a forward per token where passes cannot be shared, see ``mitigate``).

    Raises:
        UnsupportedModel: attention that cannot be replaced at run time; a model that sees the picture by cross-attention.
        NoImageTokens: the prompt holds no picture.
    """

    paper: ClassVar[str] = "2407.21771"
    year: ClassVar[int] = 2024
    title: ClassVar[str] = (
        "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs"
    )
    gist: ClassVar[str] = (
        "raises the attention scores of the picture, and guides away from the text-only prompt"
    )
    cost: ClassVar[str] = (
        "attention: one row per layer and token; guidance: prefill +1 without picture, one more row in every pass"
    )

    alpha: float = parameter(0.2, "strength in attention; 0 is off", low=0)
    gamma: float = parameter(1.1, "strength of text-only guidance; 1 is off", low=1)
    first_layer: int = parameter(2, "first edited layer", low=0)
    layers: tuple[int, ...] | None = parameter(None, "edited layers, instead of all from first_layer on")

    def off(self) -> Self:
        return replace(self, alpha=0.0, gamma=1.0)

    @contextmanager
    def attach(self, target: Target) -> Iterator[Sequence[LogitsProcessor]]:
        with ExitStack() as stack:
            processors = []
            if self.alpha > 0:
                target.check_image_in_context("pai")
                count = len(target.layers)
                layers = chosen_layers("pai", target, self.layers, range(min(self.first_layer, count), count))
                stack.enter_context(editing(target, Boost(layers, self.alpha)))
            if self.gamma > 1:
                guidance = ContrastProcessor(_Guidance(gamma=self.gamma), target)
                stack.enter_context(guidance.riding_along(target))
                processors.append(guidance)
            yield processors
