"""The objects that the batching engine, its callers and its generation loop share.

They stand in a module of their own so that ``batching_engine`` can import ``batch_generation`` without a circle.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keepsight.errors import KeepsightError
from keepsight.grounding.scores import Grounding
from keepsight.inference.collate import shape_of
from keepsight.inference.detokenizer import Finish, Piece
from keepsight.inference.generation import Generation

if TYPE_CHECKING:
    from keepsight.method import Method


# Requests are compared by identity, because tensors cannot be compared for a single truth value
@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """One answer that the engine is asked to generate.

    Args:
        inputs: the model inputs of one prompt, with a batch size of 1, as ``prompts.prepare_chat`` returns them.
        methods: the methods in the order in which they are applied. An empty tuple is the plain model.
        max_tokens: the largest number of tokens of the answer, 1 or more.
        temperature: 0, the default, decodes greedily. Above 0, tokens are sampled from a random stream of this request
            alone.
        top_p: the nucleus of sampling, above 0 and at most 1, the default. It has no effect on greedy decoding.
        seed: the seed of the random stream. None draws a fresh seed for every request.
        stop: the answer ends before the first of these texts.
        top_logprobs: how many alternatives are recorded beside each token, 0 or more. None records no log-probabilities.
        grounding: whether to record how far the image supports each token. It costs one more forward pass per token.

    Raises:
        InvalidParameter: ``temperature``, ``top_p`` or ``max_tokens`` is out of its range.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    methods: tuple[Method, ...] = ()
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: str | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    grounding: bool = False

    def __post_init__(self) -> None:
        # Generation checks the ranges, so that the server and the command line refuse the same values
        if self.temperature == 0:
            Generation(max_new_tokens=self.max_tokens)
        else:
            Generation(
                max_new_tokens=self.max_tokens, sample=True, temperature=self.temperature, top_p=self.top_p
            )
        # A frozen dataclass refuses plain assignment, also in its own __post_init__
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.token_hex(16))

    @property
    def batch_key(self) -> Any:
        """Requests with equal keys may share a batch. None means that this request must be generated alone.

        Sampling settings, stop texts and lengths are not part of the key: each row of a batch has its own.
        """
        shape = shape_of(self.inputs)
        return None if shape is None else (self.methods, self.grounding, shape)


@dataclass(frozen=True, kw_only=True)
class GenerationEvent:
    """Something that happened to one answer: it grew, it ended, or it failed.

    Args:
        index: the position of the request among those that were submitted together.
        piece: the text and the tokens by which the answer grew.
        finish: why the answer ended. None while it goes on, and where it failed.
        prompt_tokens: the number of tokens of the prompt.
        tokens: the number of tokens generated so far, the end mark included.
        grounding: the grounding of the whole answer, if it was requested and the answer has ended; otherwise None.
        error: why the answer failed, or None. Input that cannot be used gets the method's or the model's own named error.
    """

    index: int
    piece: Piece = field(default_factory=Piece)
    finish: Finish | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    grounding: Grounding | None = None
    error: KeepsightError | None = None

    @property
    def last(self) -> bool:
        """Whether no further event follows for this answer."""
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class RequestState:
    """A request while it waits in the engine or is being generated.

    Args:
        request: what was submitted.
        index: the position of the request among those that were submitted together.
        on_event: the caller's callback. It runs in the engine's thread, so it must neither block nor raise.
        batch_key: ``request.batch_key``, computed once, because the engine compares it for every batch.
        cancelled: whether the caller gave up. If so, no event is reported any more.
        finished: whether the last event was reported.
        started: whether a token was generated. A request that has started is never generated a second time.
    """

    request: GenerationRequest
    index: int
    on_event: Callable[[GenerationEvent], None]
    batch_key: Any
    cancelled: bool = False
    finished: bool = False
    started: bool = False

    def fail(self, error: KeepsightError) -> None:
        """Report ``error`` as the last event, unless the answer has ended or was cancelled."""
        if not self.finished and not self.cancelled:
            self.on_event(GenerationEvent(index=self.index, error=error))
        self.finished = True
