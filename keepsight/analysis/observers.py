"""Listening to a generation: the attention of every row that predicts a token, one row after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from threading import Event
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

from keepsight.api import attached
from keepsight.engines.hf.patching import editing
from keepsight.errors import InputError, InvalidParameter
from keepsight.inference.generation import Generation
from keepsight.inference.stopping import Until
from keepsight.parts import Edit, HookContext

if TYPE_CHECKING:
    from keepsight.method import Method
    from keepsight.target import Target


class PredictingRows(Edit):
    """Hears, changing nothing, each row that predicts a token, once in each layer. A subclass says what it keeps of them.

    It must be the last edit, so that it hears what others made of the probabilities.
    """

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)
        self._seen: set[tuple[int, int]] = set()

    def hear(self, given: Tensor, number: int, first_key: int, context: HookContext) -> None:
        """One row of one layer.

        Args:
            given: ``(heads, keys)`` float32 probabilities.
            number: of the row, counted from the start of the padded prompt.
            first_key: number of the first key; above 0 where a sliding window has dropped others.
        """
        raise NotImplementedError

    def rows(self, context: HookContext) -> Tensor:
        return (context.row_numbers() >= context.prompt - 1)[None].expand(context.image.shape[0], -1)

    def attn_pattern(self, probs: Tensor, image: Tensor, context: HookContext) -> Tensor:
        # Others may edit more rows, but these are the last of the pass and so the last here
        numbers = range(max(context.first, context.prompt - 1), context.first + context.rows)
        first_key = max(context.first + context.rows - probs.shape[-1], 0)
        for at, number in enumerate(numbers, start=probs.shape[2] - len(numbers)):
            # A contrast branch that runs under the edits passes after the model itself: the first pass counts
            if (context.layer, number) not in self._seen:
                self._seen.add((context.layer, number))
                self.hear(probs[0, :, at], number, first_key, context)
        return probs


def generate_heard(
    target: Target,
    methods: Sequence[Method],
    generation: Generation | None,
    *listeners: Edit,
    answer: Sequence[int] | None = None,
    stop: Event | None = None,
) -> tuple[int, ...]:
    """Answer one prompt under ``methods`` while ``listeners`` hear it; gives back the generated tokens.

    Args:
        answer: tokens that were generated before; they are written again, whatever the model would say now.
        stop: ends the generation with the token that is being written once it is set.

    Sampling starts from the seed of ``generation``, and leaves the caller's random state as it was.

    Raises:
        InputError: more than one prompt.
        InvalidParameter: beam search, in which a row belongs to no one answer.
    """
    generation = generation or Generation()
    if target.batch != 1:
        raise InputError(f"one prompt at a time can be listened to, not {target.batch}")
    if generation.num_beams != 1:
        raise InvalidParameter(
            f"num_beams={generation.num_beams}: attention is listened to with one beam; leave it at 1"
        )
    model = target.model
    cuda = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(generation.seed)
        processors = stack.enter_context(attached(model, target.inputs, *methods))
        stack.enter_context(editing(target, *listeners))
        arguments = {**target.inputs, **generation.arguments(), "logits_processor": processors}
        if stop is not None:
            arguments["stopping_criteria"] = [Until(stop)]
        if answer is not None:
            arguments |= {
                "max_new_tokens": len(answer),
                "logits_processor": [*processors, _Dictate(target.prompt, answer)],
            }
        written = model.generate(**arguments)  # type: ignore[operator]
    return tuple(written[0, target.prompt :].tolist())


class _Dictate(LogitsProcessor):
    """Leaves one token possible at each step: that of a given answer."""

    def __init__(self, prompt: int, answer: Sequence[int]) -> None:
        self.prompt, self.answer = prompt, answer

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.answer[input_ids.shape[1] - self.prompt]
        return torch.full_like(scores, -torch.inf).index_fill(
            -1, torch.tensor([token], device=scores.device), 0
        )
