"""VHR: vision-aware head reinforcement. Heads that answer to the picture speak louder."""

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


def divergence(with_image: Tensor, text_only: Tensor) -> Tensor:
    """VHD: how far each head's output moves when the picture is taken away. ``(…, heads, dim)`` twice → ``(…, heads)``."""
    distance: Tensor = torch.linalg.vector_norm(with_image.float() - text_only.float(), dim=-1)
    return distance


def clean(divergences: Tensor, text_only: Tensor) -> Tensor:
    """VHD with negative outliers set to 0: heads that stand out in VHD and, without the picture, in their energy too.

    Standing out is lying above mean plus one standard deviation (n − 1) of the layer's heads; a single head does not.
    """
    if divergences.shape[-1] == 1:
        return divergences
    energy = text_only.float().square().sum(-1)

    def outstanding(values: Tensor) -> Tensor:
        return values > values.mean(-1, keepdim=True) + values.std(-1, keepdim=True)

    return divergences.masked_fill(outstanding(divergences) & outstanding(energy), 0)


def select(divergences: Tensor) -> Tensor:
    """Heads above the median of their layer, ``(…, heads)`` bool: half of them, and none where all are equal."""
    return divergences > divergences.quantile(0.5, dim=-1, keepdim=True)


class RecordHeads(Edit):
    """Keeps what every head puts out at the last row of a pass."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.seen: dict[int, Tensor] = {}

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        self.seen[context.layer] = out[:, -1]
        return out


class Reinforce(Edit):
    """Selects heads when the prompt's last row passes, layer after layer, and scales them from then on."""

    def __init__(
        self, layers: frozenset[int], alpha: float, text_only: dict[int, Tensor], whole_prompt: bool
    ) -> None:
        self.layers, self.alpha, self.text_only, self.whole_prompt = layers, alpha, text_only, whole_prompt
        self.selected: dict[int, Tensor] = {}

    def head_out(self, out: Tensor, context: HookContext) -> Tensor:
        index = context.last_prompt_row
        if context.layer not in self.selected:
            if index is None:
                raise InputError(
                    "vhr selects heads in one pass over the prompt: leave out prefill_chunk_size"
                )
            alone = self.text_only.get(context.layer)
            if alone is None:  # a cross-attention layer, which says nothing without a picture
                alone = torch.zeros_like(out[:, index])
            alone = alone.repeat_interleave(out.shape[0] // alone.shape[0], dim=0)
            self.selected[context.layer] = select(clean(divergence(out[:, index], alone), alone))
        factor = torch.where(self.selected[context.layer], self.alpha, 1.0).to(out.dtype)[:, None, :, None]
        if index is None or self.whole_prompt:
            return out * factor
        return torch.cat([out[:, :index], out[:, index:] * factor], dim=1)


@dataclass(frozen=True, kw_only=True)
class VHR(Method):
    """Vision-aware Head Reinforcement (He et al., ACL 2025, arXiv 2412.13949; official code jinghan1he/VHR).

    A head whose output moves when the picture is taken away looks at the picture. Per layer, on the prompt's last
    token::

        VHD_h = ‖A_h(picture, text) − A_h(text)‖₂        set to 0 for heads that also stand out without the picture
        A_h  ← alpha · A_h                                for heads with VHD above the layer's median

    Heads are chosen once, at the first step, layer by layer, each layer seeing the earlier ones reinforced, for each
    row of a batch on its own; they are scaled before the output projection at every step.

    Args:
        alpha: factor, above 0; 1 is off. Paper: 2 (at 4 its model broke: low CHAIR with endless text).
        layers: the layers acted on. Default: the second, and the last 44 %; that is the paper's 1 and 18–31 at 32
            layers.
        prompt_rows: ``all`` scales the whole prompt, so that what is cached agrees with what follows; ``last`` only
            its last token.

    Departs from the paper: it does not say how the standard deviation is taken (here n − 1), whether the text-only
    pass is reinforced (here not), nor which prompt rows are scaled (here all, as in a public port).

    Cost: one text-only prefill; then a multiplication. The attention kernel stays.

    Raises:
        UnsupportedModel: attention that cannot be replaced at run time.
        NoImageTokens: the prompt holds no picture.
        InputError: the prompt arrives in chunks.
    """

    paper: ClassVar[str] = "2412.13949"
    year: ClassVar[int] = 2024
    title: ClassVar[str] = "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence"
    gist: ClassVar[str] = "scales up the attention heads that react to the picture being taken away"
    cost: ClassVar[str] = "prefill +1 without picture; one multiplication per layer"

    visible: ClassVar[Mapping[str, Any]] = {"alpha": 6.0, "layers": (0, 1)}

    alpha: float = parameter(2.0, "factor on the chosen heads; 1 is off", low=0, high=1e6)
    layers: tuple[int, ...] | None = parameter(None, "layers acted on; default: 1 and the last 44 %")
    prompt_rows: str = parameter("all", "prompt tokens that are scaled", choices=("all", "last"))

    def off(self) -> Self:
        return replace(self, alpha=1.0)

    def parts(self, target: Target) -> Iterator[Part]:
        if self.alpha == 1:
            return
        count = len(target.layers)
        rule = {min(1, count - 1), *last_layers(count, LATE_SHARE)}
        layers = chosen_layers("vhr", target, self.layers, rule)
        record = RecordHeads(layers)
        yield Prelude(run=lambda passes: passes.prefill(NoImage(), record))
        yield Reinforce(layers, self.alpha, record.seen, self.prompt_rows == "all")
