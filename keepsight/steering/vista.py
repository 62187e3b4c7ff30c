"""VISTA: a visual steering vector (VSV), and logits augmented by late layers (SLA), usable separately and together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from keepsight.attention_mods.layers import chosen_layers
from keepsight.decoding.contrast import ruled_out
from keepsight.decoding.views import MainPrompt, NoImage
from keepsight.errors import InvalidParameter, UnsupportedModel
from keepsight.method import Method, parameter
from keepsight.parts import Edit, HookContext, Lens, Part, Passes, Prelude

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target


def steer(hidden: Tensor, vector: Tensor, strength: float, *, unit: bool, gain: bool) -> Tensor:
    """Returns ``hidden`` moved along ``vector`` and brought back to its length; zero vectors move nothing.

    Args:
        hidden: ``(…, hidden)`` in any dtype; the result is computed in float32 and returned in that dtype.
        vector: broadcastable to ``hidden``.
        strength: λ, 0 or more.
        unit: False makes the step λ·v; True makes it λ times the length of ``hidden``, along v.
        gain: whether the step is multiplied by ``1 + max(0, cos(hidden, −v))``, which is more where the state points away.
    """
    x, v = hidden.float(), vector.float()
    length, size = x.norm(dim=-1, keepdim=True), v.norm(dim=-1, keepdim=True)
    # The bounds below avoid a division by 0: a zero vector leaves the state as it is (last line), and a state of zeros
    # stays zero.
    step = strength * v
    if unit:
        step = step / size.clamp(min=1e-12) * length
    if gain:
        away = -(x * v).sum(-1, keepdim=True) / (length * size).clamp(min=1e-12)
        step = step * (1 + away.clamp(min=0))
    moved = x + step
    moved = moved * (length / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    # Bringing a state back to its length rounds. Where the vector is zero,
    # the state is therefore returned as it came, bit for bit.
    steered: Tensor = moved.to(hidden.dtype).where(size > 0, hidden)
    return steered


def augment(final: Tensor, late: Tensor, gamma: float) -> Tensor:
    """Returns ``(1 − γ) · final + γ · late``; tokens that were ruled out in ``final`` stay ruled out.

    Args:
        final: ``(rows, vocab)`` scores of the model.
        late: logits of late layers, of the same shape.
        gamma: γ, in [0, 1].
    """
    # At γ = 1 the product 0 · −inf would not be a number.
    return torch.where(ruled_out(final), final, (1 - gamma) * final + gamma * late)


class RecordResidual(Edit):
    """Records the residual stream after each layer, at the last token of a pass, ``(batch, hidden)`` by layer."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.seen: dict[int, Tensor] = {}

    def resid_post(self, hidden: Tensor, context: HookContext) -> Tensor:
        # Prompts are padded on the left, so the last row of a pass is the last token of every prompt.
        self.seen[context.layer] = hidden[:, -1].float()
        return hidden


class _Steer(Edit):
    """Holds the steering vectors of one generation, which a prelude measures, and steers hidden states along them."""

    def __init__(self, method: VSV, layers: frozenset[int]) -> None:
        self.method, self.layers = method, layers
        self.vectors: dict[int, Tensor] = {}

    def _steered(self, hidden: Tensor, context: HookContext) -> Tensor:
        """Returns ``hidden`` ``(batch, rows, hidden)`` with the rows steered that the recipe names."""
        chosen = self.method
        vector = self.vectors[context.layer].to(hidden.device)
        # Beams and several sequences multiply the rows of the prompt, while the prelude had one row for each prompt.
        vector = vector.repeat_interleave(hidden.shape[0] // vector.shape[0], dim=0)[:, None]
        steered = steer(
            hidden, vector, chosen.strength, unit=chosen.direction == "unit", gain=chosen.gain == "cos"
        )
        # A pass that begins at the prompt's last token or later holds no other row, so no choice of rows is needed.
        if chosen.rows == "all" or context.first >= context.prompt - 1:
            return steered
        new = context.row_numbers() >= context.prompt - 1
        return torch.where(new[None, :, None], steered, hidden)


class SteerResidual(_Steer):
    """Steers the residual stream after each layer."""

    def resid_post(self, hidden: Tensor, context: HookContext) -> Tensor:
        return self._steered(hidden, context)


class SteerMLP(_Steer):
    """Steers the output of each layer's MLP, before it is added to the residual stream."""

    def mlp_out(self, hidden: Tensor, context: HookContext) -> Tensor:
        return self._steered(hidden, context)


@dataclass(frozen=True, kw_only=True)
class VSV(Method):
    """Visual Steering Vector, the first part of VISTA (Li et al., ICML 2025, arXiv 2502.03628; code LzVv123456/VISTA).

    What the picture adds to the state of the prompt's last token, layer by layer, is added again to every later state::

        v_l = h_l(picture, text) − h_l(text)        h ← (h + strength · v) · ‖h‖ / ‖h + strength · v‖

    Of several pictures in a prompt, v is what all of them add together.

    Paper and released code do different things, and a strength means something else in each:

    * The paper, which is the default: ``site="residual", direction="raw", gain="none", rows="new"``.
    * The code: ``site="mlp", direction="unit", gain="cos", rows="all"``. There, strength is a step in units of the state's
      own length, and grows up to twofold where the state points away from v.

    Args:
        strength: λ, 0 or more; 0 is off. The paper uses 0.17 for LLaVA-1.5 captions and 0.01 for yes/no questions. A value
            that is too large ends or garbles answers: check recall and length, not CHAIR alone.
        site: ``residual`` steers the residual stream after each layer, ``mlp`` its MLP's output before it is added.
        direction: ``raw`` keeps v's length, ``unit`` does not.
        gain: ``cos`` makes a larger step where the state points away from v, ``none`` does not.
        rows: ``new`` steers the prompt's last token and all generated ones, ``all`` the whole prompt too.
        layers: the layers acted on; the default is all.

    Departs from the code: the code passes v through a principal component analysis of a single pair, which adds 1 to
    coordinate 0 of layer 0. This is not repeated here. Nothing is cast to half precision.

    Cost: two more prefills, one with the picture and one without; then one vector operation per layer. The attention
        kernel stays.

    Raises:
        UnsupportedModel: a layer has no MLP, with ``site="mlp"``.
        NoImageTokens: the prompt holds no picture.
    """

    paper: ClassVar[str] = "2502.03628"
    year: ClassVar[int] = 2025
    title: ClassVar[str] = (
        "The Hidden Life of Tokens: Reducing Hallucination of LVLMs via Visual Information Steering"
    )
    gist: ClassVar[str] = "adds again, to every state, what the picture added to the prompt's last one"
    cost: ClassVar[str] = (
        "prefill +1 with the vision tower and +1 without picture; one vector operation per layer"
    )

    visible: ClassVar[Mapping[str, Any]] = {"strength": 3.0}
    negligible: ClassVar[Mapping[str, Any]] = {"strength": 1e-12}

    strength: float = parameter(0.17, "step along the steering vector; 0 is off", low=0)
    site: str = parameter(
        "residual", "what is steered: after the layer, or its MLP's output", choices=("residual", "mlp")
    )
    direction: str = parameter("raw", "keep the vector's length, or not", choices=("raw", "unit"))
    gain: str = parameter("none", "step further where a state points away", choices=("none", "cos"))
    rows: str = parameter("new", "tokens that are steered", choices=("new", "all"))
    layers: tuple[int, ...] | None = parameter(None, "layers acted on; default: all")

    def off(self) -> Self:
        return replace(self, strength=0.0)

    def parts(self, target: Target) -> Iterator[Part]:
        if self.strength == 0:
            return
        layers = chosen_layers("vsv", target, self.layers, range(len(target.layers)))
        edit = SteerResidual(self, layers) if self.site == "residual" else SteerMLP(self, layers)

        def measure(passes: Passes) -> None:
            # The layers before the steered ones are recorded too, since ``_complete`` may need them.
            shown, hidden = (RecordResidual(frozenset(range(max(layers) + 1))) for _ in range(2))
            passes.prefill(MainPrompt(), shown)
            # Of a method beside this one that contrasts with the same view, this pass is also the amateur's prefill.
            passes.prefill(NoImage(), hidden)
            for record in (shown, hidden):
                _complete(record.seen, layers, target.name)
            # Parts are named before a prelude runs, so the edit gets its vectors afterwards.
            edit.vectors = {layer: shown.seen[layer] - hidden.seen[layer] for layer in layers}

        yield Prelude(run=measure)
        yield edit


def _complete(seen: dict[int, Tensor], layers: frozenset[int], model: str) -> None:
    """Fill in the states after cross-attention layers, which do not run without a picture: the residual stream leaves them
    as it entered.

    Raises:
        UnsupportedModel: the first layer is such a layer, so the state that enters it was not recorded.
    """
    # In ascending order, so a layer that was filled in can serve the next one.
    for layer in sorted(layers):
        if layer not in seen:
            if layer - 1 not in seen:
                raise UnsupportedModel(f"{model}: the first layer does nothing without a picture")
            seen[layer] = seen[layer - 1]


SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""Names of settings that scale logits in the model's own code, where the head and the norm alone do not show it."""


@dataclass(frozen=True, kw_only=True)
class SLA(Method):
    """Self-Logits Augmentation, the second part of VISTA (Li et al., ICML 2025, arXiv 2502.03628; code LzVv123456/VISTA).

    Visual evidence is strongest a few layers before the last, so the logits of these layers are mixed in::

        o ← (1 − gamma) · o + gamma · mean over the ``window`` layers before the last of Head(h_l)

    It asks nothing of the pictures, of which a prompt may hold several.

    Args:
        gamma: the share of the late layers' logits, in [0, 1]; 0 is off. The paper uses 0.3.
        window: the number of layers before the last one, 1 or more. The paper uses 5; the code's range has 6. Small windows
            need a small gamma.
        final_norm: whether the states pass the final norm before the head. The code leaves it out, and the paper does
            not say; without it the mixing ratio depends on how long a model's late states are.

    Departs from the code: logits of the last row only are computed (in the code those of the whole prompt); a logit soft
    cap is applied to each layer. Scores are returned as log-probabilities.

    Cost: one more head product per token (``window`` of them where logits are soft-capped), and no extra forward pass. The
    attention kernel stays.

    Raises:
        InvalidParameter: the window is longer than the decoder.
        UnsupportedModel: logits are scaled in a way that head and norm do not show.
        NoImageTokens: the prompt holds no picture.
    """

    paper: ClassVar[str] = "2502.03628"
    year: ClassVar[int] = 2025
    title: ClassVar[str] = (
        "The Hidden Life of Tokens: Reducing Hallucination of LVLMs via Visual Information Steering"
    )
    gist: ClassVar[str] = "mixes in the logits of the layers before the last"
    cost: ClassVar[str] = "one more head product per token"

    visible: ClassVar[Mapping[str, Any]] = {"gamma": 0.8, "window": 1}
    negligible: ClassVar[Mapping[str, Any]] = {"gamma": 1e-12}

    gamma: float = parameter(0.3, "share of the late layers' logits; 0 is off", low=0, high=1)
    window: int = parameter(5, "layers before the last", low=1)
    final_norm: bool = parameter(False, "pass the final norm before the head")

    def off(self) -> Self:
        return replace(self, gamma=0.0)

    def refusal(self, target: Target) -> str | None:
        if self.gamma == 0:
            return None
        text = target.text_config
        scaled = [name for name in SCALES if getattr(text, name, None)]
        return f"it scales its logits ({scaled[0]}), which sla does not reproduce" if scaled else None

    def parts(self, target: Target) -> Iterator[Lens]:
        if self.gamma == 0:
            return
        count = len(target.layers)
        if self.window >= count:
            raise InvalidParameter(
                f"sla: window={self.window} must be less than the {count} layers of {target.name}"
            )
        yield Lens(
            # The last layer is left out: its logits are the model's own scores already.
            layers=range(count - 1 - self.window, count - 1),
            final_norm=self.final_norm,
            # The head is linear where logits are not capped, so the mean over
            # layers costs one product with it instead of one for each.
            combine=lambda scores, logits, step: augment(scores, logits.mean(), self.gamma),
        )
