"""One answer at a time, for programs that talk to people: its text as it is written, and a word to end it early."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from transformers import TextStreamer

from keepsight.api import attached
from keepsight.errors import InvalidParameter
from keepsight.inference.detokenizer import until_end
from keepsight.inference.generation import Generation
from keepsight.inference.stopping import Until

if TYPE_CHECKING:
    from keepsight.method import Method


@dataclass(frozen=True)
class Written:
    """A finished answer.

    ``ids`` are its tokens, end mark included and padding not; ``stopped`` tells that it was ended early, ``full`` that it
    reached the largest number of tokens without an end mark; ``seconds`` is the wall time of ``generate``.
    """

    text: str
    ids: tuple[int, ...]
    stopped: bool
    full: bool
    seconds: float


class _Say(TextStreamer):
    """Hands text on as soon as its words are whole."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say, self._begun = say, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._say(text)


def write(
    model: Any,
    processor: Any,
    inputs: Any,
    *methods: Method | str,
    say: Callable[[str], None],
    stop: Event | None = None,
    generation: Generation | None = None,
) -> Written:
    """Answer one prompt under ``methods``, saying each piece of the text as it comes.

    Args:
        inputs: of one prompt, as ``prepare`` gives them, on the model's device.
        say: called in this thread with whole words, the spaces between them included.
        stop: once set, the answer ends with the token that is being written.
        generation: greedy unless given; one beam.

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
    prompt = inputs["input_ids"].shape[1]
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), attached(model, inputs, *methods) as processors:
        torch.manual_seed(generation.seed)
        begun = time.perf_counter()
        written = model.generate(
            **inputs,
            **generation.arguments(),
            logits_processor=processors,
            streamer=_Say(processor.tokenizer, say),
            stopping_criteria=[Until(stop)],
        )
        seconds = time.perf_counter() - begun
    ends = model.generation_config.eos_token_id
    ids = until_end(written[0, prompt:].tolist(), ends)
    ended = bool(ids) and ids[-1] in (ends if isinstance(ends, list) else [ends])
    return Written(
        text=processor.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        ids=tuple(ids),
        stopped=stop.is_set() and not ended,
        full=not ended and len(ids) >= generation.max_new_tokens,
        seconds=seconds,
    )
