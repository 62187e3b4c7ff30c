"""PAI pays attention to the image: it raises the attention scores of the picture, and guides away from the text alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from keepsight.attention_mods.layers import chosen_layers
from keepsight.decoding.contrast import contrast, keep_only, one_left, plausible
from keepsight.decoding.views import NoImage
from keepsight.method import Method, parameter
from keepsight.parts import Contrast, Edit, HookContext, Part

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target

CUTOFF = 0.1
"""The plausibility cutoff of guidance, relative to the largest probability."""


def boost(scores: Tensor, image: Tensor, alpha: float) -> Tensor:
    """Returns ``Z + alpha · |Z|`` in the columns of the picture: a score rises whatever its sign.

    Args:
        scores: ``(batch, heads, rows, keys)`` scaled scores before the mask.
        image: ``(batch, keys)`` bool, the columns of the picture.
        alpha: the strength, 0 or more.
    """
    return scores + alpha * scores.abs() * image[:, None, None]


def guide(expert: Tensor, amateur: Tensor, gamma: float) -> Tensor:
    """Returns ``gamma · (log p(picture) − log p(no picture)) + log p(no picture)``, and −inf below a tenth of the top
    probability.

    Args:
        expert: ``(batch, vocab)`` scores given the picture.
        amateur: scores of the same shape, given no picture.
        gamma: the strength of guidance, 1 or more.
    """
    # The formula of guidance is that of a contrast with another strength: γ·e − (γ − 1)·a = (1 + s)·e − s·a for s = γ − 1.
    scores = contrast(expert.log_softmax(-1), amateur.log_softmax(-1), strength=gamma - 1)
    return keep_only(scores, plausible(expert, CUTOFF))


class Boost(Edit):
    """Raises the scores of the picture's columns in the last row of the prompt and in every generated row.

    Args:
        layers: numbers of the edited layers.
        alpha: the strength, 0 or more.
    """

    def __init__(self, layers: frozenset[int], alpha: float) -> None:
        self.layers, self.alpha = layers, alpha

    def rows(self, context: HookContext) -> Tensor:
        # The last row of the prompt predicts the first token, which is edited like all later ones.
        late = context.row_numbers() >= context.prompt - 1
        return late[None].expand(context.image.shape[0], -1)

    def attn_scores(self, scores: Tensor, image: Tensor, context: HookContext) -> Tensor:
        return boost(scores, image, self.alpha)


def decided(expert: Tensor, step: int) -> Tensor:
    """Returns the rows, ``(rows,)`` bool, in which one plausible token is left, so that guidance changes nothing."""
    return one_left(expert, CUTOFF)


def combine(expert: Tensor, amateurs: Sequence[Tensor] | None, step: int, *, gamma: float) -> Tensor:
    """Returns what ``guide`` gives where the amateur ran, and elsewhere the expert's scores with the cutoff alone."""
    # The cutoff applies at every step, whether the amateur ran or not.
    if amateurs is None:
        return keep_only(expert, plausible(expert, CUTOFF))
    return guide(expert, amateurs[0], gamma)


@dataclass(frozen=True, kw_only=True)
class PAI(Method):
    """Pay Attention to Image (Liu, Zheng & Chen, ECCV 2024, arXiv 2407.21771; official code LALBJ/PAI).

    The method has two parts. In the attention of the token being written, the scores of the picture's columns rise before
    the softmax::

        Z ← Z + alpha · |Z|

    and the next token is guided away from what the text alone would say::

        score = gamma · (log p(picture) − log p(no picture)) + log p(no picture),   −inf where p < 0.1 · max p

    Args:
        alpha: the strength in attention, 0 or more; 0 leaves attention alone. The official default is 0.2.
        gamma: the strength of guidance, 1 or more; 1 leaves scores alone. The commands in the official README use 1.1, the
            default of its command line is 2.
        first_layer: the first edited layer; all later ones are edited too. The official code starts at layer 2 of 32.
        layers: the edited layers, instead of ``first_layer``.

    Departs from the paper's code:
        Of several pictures in a prompt all are raised in attention, and the text alone is the prompt without any of them.
        The first token is edited like all others (in the official code it is not where guidance is on). The picture's
        columns are found in the prompt (in the official code they are columns 35 to 610). The amateur's cache follows beams.

    Cost: attention recomputes one row a step in each edited layer and leaves the rest to the fast kernel. Guidance costs a
    text-only prefill and one more row in every pass (a forward pass per token where passes cannot be shared, see
    ``mitigate``).

    Raises:
        UnsupportedModel: the attention cannot be replaced at run time, or the model sees the picture by cross-attention.
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

    visible: ClassVar[Mapping[str, Any]] = {"alpha": 8.0, "gamma": 4.0, "first_layer": 0}
    # Guidance rules out tokens however weak it is
    negligible: ClassVar[Mapping[str, Any]] = {"alpha": 1e-12, "gamma": 1.0}

    alpha: float = parameter(0.2, "strength in attention; 0 is off", low=0)
    gamma: float = parameter(1.1, "strength of text-only guidance; 1 is off", low=1)
    first_layer: int = parameter(2, "first edited layer", low=0)
    layers: tuple[int, ...] | None = parameter(None, "edited layers, instead of all from first_layer on")

    def off(self) -> Self:
        return replace(self, alpha=0.0, gamma=1.0)

    def refusal(self, target: Target) -> str | None:
        # Guidance alone needs no columns of the picture, so it runs on any model.
        return target.why_no_image_columns() if self.alpha > 0 else None

    def parts(self, target: Target) -> Iterator[Part]:
        if self.alpha > 0:
            count = len(target.layers)
            # A first layer beyond the last one means that no layer is edited. Small
            # models have fewer layers than the default expects.
            layers = chosen_layers(
                "pai", target, self.layers, range(min(self.first_layer, count), count), in_attention=True
            )
            yield Boost(layers, self.alpha)
        if self.gamma > 1:
            # The amateur runs unedited, as in the paper: its prompt has no picture whose scores could rise.
            yield Contrast(views=[NoImage()], combine=partial(combine, gamma=self.gamma), decided=decided)
