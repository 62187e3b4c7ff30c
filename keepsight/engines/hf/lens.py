"""A logit lens: what earlier layers would predict, kept while the model's passes go by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.decoding.contrast import ruled_out
from keepsight.engines.hf.assisted_decoding import Drafts
from keepsight.errors import UnsupportedModel
from keepsight.parts import Edit, HookContext, Lens
from keepsight.target import Target

TOLERANCE = 0.03
"""By how much of the largest logit two computations of the same logits may differ: four units of rounding of bfloat16."""


POSITIONS = 32
"""How many positions of a pass are looked at: assisted decoding asks for those of its drafts as well, the last not first."""


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
        self._passes: list[Tensor] | None = []
        """The logits of the passes before the first step; None once they have been compared."""

    def saw(self, logits: Tensor) -> None:
        """Note the logits of a pass, ``(rows, tokens, vocab)``, if they are of one of the passes before the first step."""
        if self._passes is not None:
            self._passes.append(logits[:, -POSITIONS:])

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._drafts.under_way:
            return scores
        self._check(input_ids.shape[1] - 1)
        states = [self._state(layer, input_ids.shape[1] - 1) for layer in self._lens.layers]
        logits = _Logits(torch.stack(states), self._head, self._softcap, scores.device)
        step = input_ids.shape[1] - self._prompt
        mixed = self._lens.combine(scores.float(), logits, step)
        return mixed.log_softmax(-1).to(scores.dtype)

    def _state(self, layer: int, row: int) -> Tensor:
        state = self._record.at(layer, row)
        normed: Tensor = self._norm(state) if self._lens.final_norm else state
        return normed

    def _check(self, row: int) -> None:
        """At the first step: what the lens makes of the last layer must be the model's own logits.

        Raises:
            UnsupportedModel: they are not, so that what it makes of other layers would mean nothing: the model scales its
                logits, or puts something else through its final norm.
        """
        if self._passes is None:
            return
        passes, self._passes = self._passes, None
        states = self._norm(self._final.at(self._last, row))[None]
        mine = _Logits(states, self._head, self._softcap, states.device).stacked()[0]
        # Amateurs' passes and those of a search around this one may have come in between
        found = (one[:, i] for one in passes if len(one) == len(mine) for i in range(one.shape[1]))
        if not any(_close(one.to(mine.device), mine) for one in found):
            raise UnsupportedModel(
                f"{self._name}: its logits are not what its final norm and its output projection make of its last layer, so"
                " that logits of earlier layers cannot be read with them"
            )


def _close(logits: Tensor, mine: Tensor) -> bool:
    """Whether two computations of the same logits differ by rounding alone, of a model in half precision too."""
    there = ~ruled_out(logits)
    a, b = logits[there].float(), mine[there]
    size = float(a.abs().max()) if a.numel() else 0.0
    return bool(((a - b).abs() <= TOLERANCE * size).all())
