"""Observing a generation: the attention of every row that predicts a token, one row after the other."""

from __future__ import annotations

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


class AttentionObserver(Edit):
    """Observes each row that predicts a token once in each layer, changing nothing. A subclass says what it keeps of them.

    It must be the last edit, so that it sees the probabilities as the other edits left them.

    Args:
        layers: numbers of the decoder layers that are observed.
    """

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)
        self._seen: set[tuple[int, int]] = set()

    def observe(self, given: Tensor, number: int, first_key: int, context: HookContext) -> None:
        """Take note of one row of one layer.

        Args:
            given: ``(heads, keys)`` float32 probabilities.
            number: of the row, counted from the start of the padded prompt.
            first_key: number of the first key; above 0 where a sliding window has dropped others.
            site: where in the generation the row stands.
        """
        raise NotImplementedError

    def rows(self, context: HookContext) -> Tensor:
        return (context.row_numbers() >= context.prompt - 1)[None].expand(context.image.shape[0], -1)

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        # Other edits may ask for more rows, but the predicting ones are the last of the pass and so the last here
        numbers = range(max(context.first, context.prompt - 1), context.first + context.rows)
        first_key = max(context.first + context.rows - probs.shape[-1], 0)
        for at, number in enumerate(numbers, start=probs.shape[2] - len(numbers)):
            # An amateur that runs under the edits passes after the model itself, so the first pass counts
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
    """Answer one prompt under ``methods`` while ``observers`` look on; gives back the generated tokens.

    Args:
        generation: greedy unless given.
        answer: tokens that were generated before; they are written again, whatever the model would say now.
        stop: ends the generation with the token that is being written once it is set.

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
        token = self.answer[input_ids.shape[1] - self.prompt]
        return torch.full_like(scores, -torch.inf).index_fill(
            -1, torch.tensor([token], device=scores.device), 0
        )
