"""Streams one answer: hands on its text as it is written, and lets another thread end it early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextStreamer

from keepsight.errors import InvalidParameter
from keepsight.inference.generation import Generation, end_token_ids, generate

if TYPE_CHECKING:
    from keepsight.method import Method


@dataclass(frozen=True)
class StreamedAnswer:
    """A finished answer.

    Args:
        text: the whole text, without special tokens and without white space around it.
        ids: its tokens, end mark included and padding not.
        stopped: whether the answer was ended early by its event.
        full: whether the answer reached the largest number of tokens without an end mark.
        seconds: the wall time of ``model.generate``.
    """

    text: str
    ids: tuple[int, ...]
    stopped: bool
    full: bool
    seconds: float


class StopOnEvent(StoppingCriteria):
    """Ends every row with the token that is being written once ``event`` is set, for example by another thread."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device
        )


class _CallbackStreamer(TextStreamer):
    """Calls a function with text as soon as its words are whole, without white space before the first of them."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text, self._begun = on_text, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        # White space may come in pieces of its own, so it is removed until a first word has come.
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._on_text(text)


def stream_answer(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    *methods: Method | str,
    on_text: Callable[[str], None],
    stop: Event | None = None,
    generation: Generation | None = None,
) -> StreamedAnswer:
    """Answer one prompt under ``methods``, and hand on each piece of the text as it comes.

    Args:
        model: an image-text-to-text model of transformers.
        processor: its processor, with a ``tokenizer``.
        inputs: the model inputs of one prompt, as ``prepare`` gives them, on the model's device.
        methods: recipes or spec strings, composed in this order; none is the plain model.
        on_text: called in this thread with whole words, the spaces between them included. An exception that it raises ends
            the answer and goes to the caller.
        stop: an event; once it is set, the answer ends with the token that is being written.
        generation: how tokens are chosen, with one beam; default: greedy search.

    Raises:
        InvalidParameter: beam search, which knows its text only at the end.
        UnsupportedModel, NoImageTokens: as ``attached``. Whatever is raised, the model is as it was before.
    """
    generation = generation or Generation()
    if generation.num_beams != 1:
        raise InvalidParameter(
            f"num_beams={generation.num_beams}: a beam search cannot be watched as it writes"
        )
    stop = stop or Event()
    found = generate(
        model,
        inputs,
        methods,
        generation=generation,
        streamer=_CallbackStreamer(processor.tokenizer, on_text),
        stopping=[StopOnEvent(stop)],
    )
    [ids] = found.tokens
    ended = bool(ids) and ids[-1] in end_token_ids(model)
    return StreamedAnswer(
        text=processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip(),
        ids=ids,
        # The event may be set after the last token. An answer that came
        # to its end mark is complete, and was not cut short.
        stopped=stop.is_set() and not ended,
        full=not ended and len(ids) >= generation.max_new_tokens,
        seconds=found.seconds,
    )
