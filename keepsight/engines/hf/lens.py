"""A logit lens: what earlier layers would predict, kept while the model's passes go by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.engines.hf.assisted_decoding import Drafts
from keepsight.parts import Edit, HookContext, Lens
from keepsight.target import Target


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
    """

    supports_continuous_batching = False

    def __init__(self, lens: Lens, target: Target, record: RecordLayers, drafts: Drafts) -> None:
        self._lens, self._record, self._drafts = lens, record, drafts
        self._head, self._norm, self._prompt = target.head, target.final_norm, target.prompt
        self._softcap = getattr(target.text_config, "final_logit_softcapping", None)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._drafts.under_way:
            return scores
        states = [self._state(layer, input_ids.shape[1] - 1) for layer in self._lens.layers]
        logits = _Logits(torch.stack(states), self._head, self._softcap, scores.device)
        step = input_ids.shape[1] - self._prompt
        mixed = self._lens.combine(scores.float(), logits, step)
        return mixed.log_softmax(-1).to(scores.dtype)

    def _state(self, layer: int, row: int) -> Tensor:
        first, hidden = self._record.states[layer]
        state = hidden[:, row - first]
        normed: Tensor = self._norm(state) if self._lens.final_norm else state
        return normed
