"""A logit lens: what earlier layers would predict, kept while the model's passes go by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.decoding.contrast import ruled_out
from keepsight.engines.hf.assisted_decoding import Drafts
from keepsight.engines.hf.edit_state import STATES
from keepsight.errors import UnsupportedModel
from keepsight.parts import Edit, HookContext, Lens
from keepsight.target import Target

TOLERANCE = 0.03
"""By how much of the largest logit two computations of the same logits may differ: four units of rounding of bfloat16."""


class RecordLayers(Edit):
    """Keeps the residual stream after some layers, at the rows that a next token is predicted from."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self.states: dict[int, tuple[int, Tensor]] = {}
        """By layer: the number of the first row, and the states from there on."""

    def resid_post(self, hidden: Tensor, context: HookContext) -> Tensor:
        start = max(context.prompt - 1 - context.first, 0)
        if start < context.rows:
            self.states[context.layer] = (context.first + start, hidden[:, start:])
        return hidden

    def at(self, layer: int, row: int) -> Tensor:
        """The state after a layer at a row, ``(rows, hidden)``."""
        first, hidden = self.states[layer]
        return hidden[:, row - first]


class _Logits:
    """The logits of some layers' states at one row; see ``keepsight.parts.LayerLogits``."""

    def __init__(self, states: Tensor, head: Any, softcap: float | None, device: torch.device) -> None:
        self._states, self._head, self._softcap = states, head, softcap
        self._device = device
        """That of the scores, which may be another than the head's."""

    def stacked(self) -> Tensor:
        logits: Tensor = self._head(self._states).float().to(self._device)
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)

    def mean(self) -> Tensor:
        if self._softcap is not None:
            return self.stacked().mean(0)
        # The head is linear: the mean of its answers is its answer to the mean, at a fraction of the price
        logits: Tensor = self._head(self._states.float().mean(0).to(self._states.dtype)).float()
        return logits.to(self._device)


class LensProcessor(LogitsProcessor):
    """Changes the scores of one generation by the logits of earlier layers.

    Args:
        lens: the layers and the formula.
        record: the edit that keeps the layers' states; it must be in place in the model.
        final: the edit that keeps the last layer's state as all edits leave it.
        drafts: tells when assisted decoding shows draft tokens.
    """

    supports_continuous_batching = False

    def __init__(
        self, lens: Lens, target: Target, record: RecordLayers, final: RecordLayers, drafts: Drafts
    ) -> None:
        self._final = final
        self._lens, self._record, self._drafts = lens, record, drafts
        self._head, self._norm, self._prompt = target.head, target.final_norm, target.prompt
        self._softcap = getattr(target.text_config, "final_logit_softcapping", None)
        self._name, self._last = target.name, len(target.layers) - 1
        self._state_of = STATES.get(target.model)
        self._agrees = False
        """Whether the lens has reproduced the model's own logits."""

    @torch.no_grad()
    def saw(self, logits: Tensor) -> None:
        """Compare the logits of a pass, ``(rows, tokens, vocab)``, with what the lens makes of the last layer.

        Amateurs' passes go by as well, and do not agree; the main one is among them before the first step.
        """
        if self._agrees or self._last not in self._final.states:
            return
        _, hidden = self._final.states[self._last]
        if len(hidden) != len(logits):
            return
        states = self._norm(hidden[:, -1])[None]
        mine = _Logits(states, self._head, self._softcap, logits.device).stacked()[0]
        self._agrees = _close(logits[:, -1], mine)

    def _check(self) -> None:
        """Before the first step: what the lens makes of the last layer must have been the model's own logits.

        Raises:
            UnsupportedModel: they are not, so that what it makes of other layers would mean nothing: the model scales its
                logits, or puts something else through its final norm.
        """
        if self._agrees:
            return
        edits = () if self._state_of is None else self._state_of.edits
        # Where a block within this one edits the last layer afterwards, its states here are not the last ones
        if edits and edits[-1] is not self._final:
            return
        raise UnsupportedModel(
            f"{self._name}: its logits are not what its final norm and its output projection make of its last layer, so"
            " that logits of earlier layers cannot be read with them"
        )

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._drafts.under_way:
            return scores
        self._check()
        states = [self._state(layer, input_ids.shape[1] - 1) for layer in self._lens.layers]
        logits = _Logits(torch.stack(states), self._head, self._softcap, scores.device)
        step = input_ids.shape[1] - self._prompt
        mixed = self._lens.combine(scores.float(), logits, step)
        return mixed.log_softmax(-1).to(scores.dtype)

    def _state(self, layer: int, row: int) -> Tensor:
        state = self._record.at(layer, row)
        normed: Tensor = self._norm(state) if self._lens.final_norm else state
        return normed


def _close(logits: Tensor, mine: Tensor) -> bool:
    """Whether two computations of the same logits differ by rounding alone, of a model in half precision too."""
    there = ~ruled_out(logits)
    a, b = logits[there].float(), mine[there]
    if bool(a.isnan().any()):
        return True  # a model that overflows says nothing about the lens
    size = float(a.abs().max()) if a.numel() else 0.0
    return bool(((a - b).abs() <= TOLERANCE * size).all())
