"""Observes a generation: the attention of every row that predicts a token, one row after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.errors import InputError, InvalidParameter
from keepsight.inference.generation import Generation, generate
from keepsight.inference.streaming import StopOnEvent
from keepsight.parts import Edit, HookContext

if TYPE_CHECKING:
    from keepsight.method import Method
    from keepsight.target import Target


class AttentionObserver(Edit, ABC):
    """Observes each row that predicts a token once in each layer, and changes nothing.

    A subclass overrides ``observe`` and keeps what it needs of each row. The observer must be the last edit, so that it sees
    the probabilities as the other edits left them.

    Args:
        layers: numbers of the decoder layers that are observed.
    """

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)
        self._seen: set[tuple[int, int]] = set()

    @abstractmethod
    def observe(self, given: Tensor, number: int, first_key: int, context: HookContext) -> None:
        """Called once for each predicting row and layer.

        Args:
            given: ``(heads, keys)`` float32 probabilities.
            number: the number of the row, counted from the start of the padded prompt.
            first_key: the number of the first key; it is above 0 where a sliding window has dropped others.
            context: the layer, and the place of the pass in the generation.
        """

    def rows(self, context: HookContext) -> Tensor:
        # The prompt's last token predicts the first token of the answer, and every later
        # row the one after it. The rows before it are left to the fast kernel.
        return (context.row_numbers() >= context.prompt - 1)[None].expand(context.image.shape[0], -1)

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        # Other edits may ask for more rows, but the predicting ones are the last of the pass and so the last here.
        numbers = range(max(context.first, context.prompt - 1), context.first + context.rows)
        first_key = max(context.first + context.rows - probs.shape[-1], 0)
        for at, number in enumerate(numbers, start=probs.shape[2] - len(numbers)):
            # An amateur that runs under the edits reads the same rows after the model itself, so the first pass counts.
            if (context.layer, number) not in self._seen:
                self._seen.add((context.layer, number))
                self.observe(probs[0, :, at], number, first_key, context)
        return probs


def generate_observed(
    target: Target,
    methods: Sequence[Method],
    generation: Generation | None,
    *observers: Edit,
    answer: Sequence[int] | None = None,
    stop: Event | None = None,
) -> tuple[int, ...]:
    """Answer one prompt under ``methods`` while ``observers`` record it.

    Args:
        target: the model and its inputs.
        methods: the methods to answer under; none is the plain model.
        generation: how tokens are chosen; default: greedy search.
        observers: edits that record; they stand after those of the methods.
        answer: tokens that were generated before. They are written again, whatever the model would choose now.
        stop: an event that ends the generation with the token that is being written once it is set.

    Returns:
        The generated tokens, up to the end mark, which is included.

    Raises:
        InputError: more than one prompt.
        InvalidParameter: beam search, in which a row belongs to no one answer.
    """
    generation = generation or Generation()
    if target.batch != 1:
        raise InputError(f"one prompt at a time can be observed, not {target.batch}")
    if generation.num_beams != 1:
        raise InvalidParameter(
            f"num_beams={generation.num_beams}: attention is observed with one beam; leave it at 1"
        )
    forced: list[LogitsProcessor] = []
    if answer is not None:
        generation = replace(generation, max_new_tokens=len(answer))
        # Setting the scores after the methods lets the methods and observers run exactly as in the first generation.
        forced = [_ForceTokens(target.prompt, answer)]
    found = generate(
        target.model,
        target.inputs,
        methods,
        generation=generation,
        processors=forced,
        observers=observers,
        stopping=[] if stop is None else [StopOnEvent(stop)],
    )
    [ids] = found.tokens
    return ids


class _ForceTokens(LogitsProcessor):
    """Leaves one token possible at each step: that of a given answer."""

    def __init__(self, prompt: int, answer: Sequence[int]) -> None:
        self.prompt, self.answer = prompt, answer

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # The one possible token gets a score of 0, the log-probability of a certain event.
        token = self.answer[input_ids.shape[1] - self.prompt]
        return torch.full_like(scores, -torch.inf).index_fill(
            -1, torch.tensor([token], device=scores.device), 0
        )
