"""VHR: vision-aware head reinforcement, which scales up the heads that react to the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from keepsight.attention_mods.layers import chosen_layers, last_layers
from keepsight.decoding.views import NoImage
from keepsight.errors import InputError
from keepsight.method import Method, parameter
from keepsight.parts import Edit, HookContext, Part, Prelude

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target

LATE_SHARE = 0.44
"""The share of the layers, counted from the last, that VHR acts on. At 32 layers these are the paper's 18 to 31."""


def divergence(with_image: Tensor, text_only: Tensor) -> Tensor:
    """Returns VHD, how far each head's output moves when the picture is taken away: ``(…, heads)`` for two outputs
    ``(…, heads, dim)``."""
    distance: Tensor = torch.linalg.vector_norm(with_image.float() - text_only.float(), dim=-1)
    return distance


def clean(divergences: Tensor, text_only: Tensor) -> Tensor:
    """Returns VHD with negative outliers set to 0: heads that stand out in VHD and, without the picture, also in energy.

    A head stands out if it lies above the mean plus one standard deviation (n − 1) of the layer's heads. A single head
    does not.

    Args:
        divergences: ``(…, heads)``, as ``divergence`` gives them.
        text_only: ``(…, heads, dim)``, the outputs without the picture.
    """
    # The standard deviation (n − 1) of a single value is not a number.
    if divergences.shape[-1] == 1:
        return divergences
    energy = text_only.float().square().sum(-1)

    def outstanding(values: Tensor) -> Tensor:
        return values > values.mean(-1, keepdim=True) + values.std(-1, keepdim=True)

    return divergences.masked_fill(outstanding(divergences) & outstanding(energy), 0)


def select(divergences: Tensor) -> Tensor:
    """Returns the heads above the median of their layer, ``(…, heads)`` bool: half of them, or none if all are equal."""
    return divergences > divergences.quantile(0.5, dim=-1, keepdim=True)


class RecordHeads(Edit):
    """Records the output of every head at the last row of a pass, ``(batch, heads, head_dim)`` by layer."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.seen: dict[int, Tensor] = {}

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        # Prompts are padded on the left, so the last row of a pass is the last token of every prompt.
        self.seen[context.layer] = out[:, -1]
        return out


class Reinforce(Edit):
    """Selects heads in the pass that holds the prompt's last row, layer after layer, and scales them from then on.

    Args:
        layers: numbers of the edited layers.
        alpha: the factor.
        text_only: by layer, the heads' outputs without the picture; a prelude fills it in.
        whole_prompt: whether all rows of the prompt are scaled, or only its last.
    """

    def __init__(
        self, layers: frozenset[int], alpha: float, text_only: dict[int, Tensor], whole_prompt: bool
    ) -> None:
        self.layers, self.alpha, self.text_only, self.whole_prompt = layers, alpha, text_only, whole_prompt
        self.selected: dict[int, Tensor] = {}

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        index = context.last_prompt_row
        if context.layer not in self.selected:
            # The first pass of a prompt that is read in chunks lacks the last row, by which heads
            # are selected. Rows that have passed by then could not be scaled any more.
            if index is None:
                raise InputError(
                    "vhr selects heads in one pass over the prompt: leave out prefill_chunk_size"
                )
            alone = self.text_only.get(context.layer)
            if alone is None:
                # A cross-attention layer does not run without a picture, which is the same as an output of zeros.
                alone = torch.zeros_like(out[:, index])
            # Beams and several sequences multiply the rows of the prompt, while
            # the text-only pass had one row for each prompt.
            alone = alone.repeat_interleave(out.shape[0] // alone.shape[0], dim=0)
            self.selected[context.layer] = select(clean(divergence(out[:, index], alone), alone))
        factor = torch.where(self.selected[context.layer], self.alpha, 1.0).to(out.dtype)[:, None, :, None]
        if index is None or self.whole_prompt:
            return out * factor
        # Only the first pass comes here: later ones hold no row of the prompt, so ``index`` is None.
        return torch.cat([out[:, :index], out[:, index:] * factor], dim=1)


@dataclass(frozen=True, kw_only=True)
class VHR(Method):
    """Vision-aware Head Reinforcement (He et al., ACL 2025, arXiv 2412.13949; official code jinghan1he/VHR).

    A head whose output moves when the picture is taken away looks at the picture. In each layer, on the prompt's last
    token::

        VHD_h = ‖A_h(picture, text) − A_h(text)‖₂        set to 0 for heads that also stand out without the picture
        A_h  ← alpha · A_h                                for heads with VHD above the layer's median

    Heads are chosen once, at the first step, and for each row of a batch on its own. Layers choose one after another, so
    each sees the earlier ones reinforced. The chosen heads are scaled before the output projection at every step. Of several
    pictures in a prompt all are taken away at once.

    Args:
        alpha: the factor, above 0; 1 is off. The paper uses 2 (at 4 its model broke: low CHAIR with endless text).
        layers: the layers acted on. The default is the second and the last 44 %, which are the paper's 1 and 18 to 31 at
            32 layers.
        prompt_rows: ``all`` scales the whole prompt, so that what is cached agrees with what follows; ``last`` scales
            only its last token.

    Departs from the paper: the paper does not say how the standard deviation is taken (here n − 1), whether the text-only
    pass is reinforced (here it is not), nor which prompt rows are scaled (here all of them, as in a public port).

    Cost: one text-only prefill, and then one multiplication in each layer. The attention kernel stays.

    Raises:
        UnsupportedModel: the attention cannot be replaced at run time.
        NoImageTokens: the prompt holds no picture.
        InputError: the prompt arrives in chunks.
    """

    paper: ClassVar[str] = "2412.13949"
    year: ClassVar[int] = 2024
    title: ClassVar[str] = "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence"
    gist: ClassVar[str] = "scales up the attention heads that react to the picture being taken away"
    cost: ClassVar[str] = "prefill +1 without picture; one multiplication per layer"

    visible: ClassVar[Mapping[str, Any]] = {"alpha": 6.0, "layers": (0, 1)}
    negligible: ClassVar[Mapping[str, Any]] = {"alpha": 1.0000001}

    alpha: float = parameter(2.0, "factor on the chosen heads; 1 is off", low=0, high=1e6)
    layers: tuple[int, ...] | None = parameter(None, "layers acted on; default: 1 and the last 44 %")
    prompt_rows: str = parameter("all", "prompt tokens that are scaled", choices=("all", "last"))

    def off(self) -> Self:
        return replace(self, alpha=1.0)

    def parts(self, target: Target) -> Iterator[Part]:
        if self.alpha == 1:
            return
        count = len(target.layers)
        # A model of one layer has no second one.
        rule = {min(1, count - 1), *last_layers(count, LATE_SHARE)}
        layers = chosen_layers("vhr", target, self.layers, rule, in_attention=True)
        record = RecordHeads(layers)
        # The two parts share one mapping: the prelude fills ``record.seen``
        # before the first pass of the generation reads it.
        yield Prelude(run=lambda passes: passes.prefill(NoImage(), record))
        yield Reinforce(layers, self.alpha, record.seen, self.prompt_rows == "all")
