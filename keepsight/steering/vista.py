"""VISTA: a visual steering vector (VSV), and logits augmented by late layers (SLA). Usable apart and together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.attention_mods.layers import chosen_layers
from keepsight.engines.hf.assisted_decoding import drafting
from keepsight.engines.hf.contrast_processor import overhear
from keepsight.engines.hf.patching import editing
from keepsight.errors import InvalidParameter, UnsupportedModel
from keepsight.method import Method, parameter
from keepsight.parts import Edit, Site

if TYPE_CHECKING:
    from typing_extensions import Self

    from keepsight.target import Target


def steer(hidden: Tensor, vector: Tensor, strength: float, *, unit: bool, gain: bool) -> Tensor:
    """``hidden`` moved along ``vector`` and brought back to its length; zero vectors move nothing.

    Args:
        hidden: ``(…, hidden)``, any dtype; computed in float32 and returned as it came.
        vector: broadcastable to ``hidden``.
        strength: λ. Raw: the step is λ·v. Unit: λ times the length of ``hidden``, along v.
        gain: multiply the step by ``1 + max(0, cos(hidden, −v))``: more where the state points away.
    """
    x, v = hidden.float(), vector.float()
    length, size = x.norm(dim=-1, keepdim=True), v.norm(dim=-1, keepdim=True)
    step = strength * v
    if unit:
        step = step / size.clamp(min=1e-12) * length
    if gain:
        away = -(x * v).sum(-1, keepdim=True) / (length * size).clamp(min=1e-12)
        step = step * (1 + away.clamp(min=0))
    moved = x + step
    moved = moved * (length / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    steered: Tensor = moved.to(hidden.dtype).where(size > 0, hidden)
    return steered


def augment(final: Tensor, late: Tensor, gamma: float) -> Tensor:
    """``(1 − γ) · final + γ · late``, tokens that were ruled out staying so."""
    return torch.where(final == -math.inf, final, (1 - gamma) * final + gamma * late)


class Listen(Edit):
    """Keeps the residual stream after each layer, at the last token of a pass."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.heard: dict[int, Tensor] = {}

    def leave(self, hidden: Tensor, site: Site) -> Tensor:
        self.heard[site.layer] = hidden[:, -1].float()
        return hidden


class _Steer(Edit):
    def __init__(self, method: VSV, layers: frozenset[int]) -> None:
        self.method, self.layers = method, layers
        self.vectors: dict[int, Tensor] = {}

    def _steered(self, hidden: Tensor, site: Site) -> Tensor:
        chosen = self.method
        vector = self.vectors[site.layer].to(hidden.device)
        vector = vector.repeat_interleave(hidden.shape[0] // vector.shape[0], dim=0)[:, None]
        steered = steer(
            hidden, vector, chosen.strength, unit=chosen.direction == "unit", gain=chosen.gain == "cos"
        )
        if chosen.rows == "all" or site.first >= site.prompt - 1:
            return steered
        new = site.row_numbers() >= site.prompt - 1
        return torch.where(new[None, :, None], steered, hidden)


class SteerResidual(_Steer):
    """Steers the residual stream after each layer."""

    def leave(self, hidden: Tensor, site: Site) -> Tensor:
        return self._steered(hidden, site)


class SteerMLP(_Steer):
    """Steers what each layer's MLP puts out."""

    def mlp(self, hidden: Tensor, site: Site) -> Tensor:
        return self._steered(hidden, site)


@dataclass(frozen=True, kw_only=True)
class VSV(Method):
    """Visual Steering Vector, the first part of VISTA (Li et al., ICML 2025, arXiv 2502.03628; code LzVv123456/VISTA).

    What the picture adds to the state of the prompt's last token, layer by layer, is added again to every later state::

        v_l = h_l(picture, text) − h_l(text)        h ← (h + strength · v) · ‖h‖ / ‖h + strength · v‖

    Paper and released code do different things, and a strength means something else in each:

    * paper, the default: ``site="residual", direction="raw", gain="none", rows="new"``;
    * code: ``site="mlp", direction="unit", gain="cos", rows="all"``, where strength is a step in units of the
    state's own
      length and grows up to twofold where the state points away from v.

    Args:
        strength: λ, 0 or more; 0 is off. Paper: 0.17 for LLaVA-1.5 captions, 0.01 for yes/no questions. Too large a
            value ends or garbles answers: watch recall and length, not CHAIR alone.
        site: ``residual``, after each layer, or ``mlp``, its MLP's output before it is added.
        direction: ``raw`` keeps v's length, ``unit`` does not.
        gain: ``cos`` steps further where the state points away from v.
        rows: ``new`` steers the prompt's last token and all generated ones, ``all`` the whole prompt too.
        layers: layers acted on; default all.

    Departs from the code: it passes v through a principal component analysis of a single pair, which adds 1 to
    coordinate 0 of layer 0; not repeated here. Nothing is cast to half precision.

    Cost: two more prefills, one with the picture and one without; then one vector operation per layer. The attention
        kernel stays.

    Raises:
        UnsupportedModel: no MLP in a layer, with ``site="mlp"``.
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

    @contextmanager
    def attach(self, target: Target) -> Iterator[Sequence[LogitsProcessor]]:
        if self.strength == 0:
            yield []
            return
        layers = chosen_layers("vsv", target, self.layers, range(len(target.layers)))
        edit = SteerResidual(self, layers) if self.site == "residual" else SteerMLP(self, layers)
        with editing(target, edit):
            shown = _hear(target, dict(target.model_inputs), layers)
            hidden = _hear(target, target.without_image(), layers)
            edit.vectors = {layer: shown[layer] - hidden[layer] for layer in layers}
            yield []


def _hear(target: Target, inputs: dict[str, Any], layers: frozenset[int]) -> dict[int, Tensor]:
    listen = Listen(frozenset(range(max(layers) + 1)))
    overhear(target, inputs, listen)
    heard = listen.heard
    for layer in sorted(layers):
        if layer not in heard:
            # Cross-attention layers are passed over without a picture: the stream leaves them as it entered
            if layer - 1 not in heard:
                raise UnsupportedModel(f"{target.name}: the first layer does nothing without a picture")
            heard[layer] = heard[layer - 1]
    return heard


class Remember(Edit):
    """Keeps the late layers' states of the rows that a next token is predicted from."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.states: dict[int, tuple[int, Tensor]] = {}

    def leave(self, hidden: Tensor, site: Site) -> Tensor:
        start = max(site.prompt - 1 - site.first, 0)
        if start < site.rows:
            self.states[site.layer] = (site.first + start, hidden[:, start:])
        return hidden


class Augment(LogitsProcessor):
    """Mixes the late layers' logits into the scores of one generation."""

    supports_continuous_batching = False

    def __init__(self, target: Target, method: SLA, remember: Remember) -> None:
        self.head, self.norm, self.method, self.remember = target.head, target.final_norm, method, remember
        text = target.model.config.get_text_config(decoder=True)
        self.softcap = getattr(text, "final_logit_softcapping", None)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if drafting():
            return scores
        late = self._late(input_ids.shape[1] - 1).to(scores.device)
        mixed = augment(scores.float(), late, self.method.gamma)
        return mixed.log_softmax(-1).to(scores.dtype)

    def _late(self, row: int) -> Tensor:
        """``(rows, vocab)``: the mean of the late layers' logits."""
        states = []
        for first, hidden in self.remember.states.values():
            state = hidden[:, row - first]
            states.append(self.norm(state) if self.method.final_norm else state)
        stacked = torch.stack(states)
        if self.softcap is None:
            # The head is linear: the mean of its answers is its answer to the mean, at a fraction of the price
            logits: Tensor = self.head(stacked.float().mean(0).to(stacked.dtype)).float()
            return logits
        capped: Tensor = self.softcap * torch.tanh(self.head(stacked).float() / self.softcap)
        return capped.mean(0)


@dataclass(frozen=True, kw_only=True)
class SLA(Method):
    """Self-Logits Augmentation, the second part of VISTA (Li et al., ICML 2025, arXiv 2502.03628; code LzVv123456/VISTA).

    Visual evidence is strongest a few layers before the last; their logits are mixed in::

        o ← (1 − gamma) · o + gamma · mean over the ``window`` layers before the last of Head(h_l)

    Args:
        gamma: in [0, 1]; 0 is off. Paper: 0.3.
        window: layers before the last one, 1 or more. Paper: 5; the code's range has 6. Small windows want a small
            gamma.
        final_norm: whether the states pass the final norm before the head. The code leaves it out, the paper does
            not say; without it the mixing ratio depends on how long a model's late states are.

    Departs from the code: logits of the last row only are computed (there: of the whole prompt); a logit soft cap is
    applied to each layer. Scores leave as log-probabilities.

    Cost: one more head product per token (``window`` of them where logits are soft-capped); no extra forward. The
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

    gamma: float = parameter(0.3, "share of the late layers' logits; 0 is off", low=0, high=1)
    window: int = parameter(5, "layers before the last", low=1)
    final_norm: bool = parameter(False, "pass the final norm before the head")

    def off(self) -> Self:
        return replace(self, gamma=0.0)

    @contextmanager
    def attach(self, target: Target) -> Iterator[Sequence[LogitsProcessor]]:
        if self.gamma == 0:
            yield []
            return
        _ = target.image_mask
        count = len(target.layers)
        if self.window >= count:
            raise InvalidParameter(
                f"sla: window={self.window} must be less than the {count} layers of {target.name}"
            )
        text = target.model.config.get_text_config(decoder=True)
        scaled = [
            name
            for name in ("logits_scaling", "logit_scale", "lm_head_multiplier")
            if getattr(text, name, None)
        ]
        if scaled:
            raise UnsupportedModel(
                f"{target.name} scales its logits ({scaled[0]}), which sla does not reproduce"
            )
        remember = Remember(frozenset(range(count - 1 - self.window, count - 1)))
        with editing(target, remember):
            yield [Augment(target, self, remember)]
