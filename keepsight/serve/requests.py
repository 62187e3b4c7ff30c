"""What a client asks of the batching engine, and what it is told."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Ask:
    """One answer to be written.

    Args:
        inputs: of one prompt, one row, as ``prompts.prepare_chat`` makes them.
        methods: in their order; none is the plain model.
        max_tokens: 1 or more.
        temperature: 0 is greedy; above, tokens are drawn, from a stream of this very answer.
        top_p: in (0, 1]; of drawing.
        seed: what is drawn; None is another every time.
        stop: texts before which the answer ends.
        top_logprobs: None records no log-probabilities; else so many alternatives beside each token.
        grounding: record how far the picture supports each token. One more forward pass for each.

    Raises:
        InvalidParameter: temperature, top-p or max_tokens is out of its range.
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
        if self.temperature == 0:
            Generation(max_new_tokens=self.max_tokens)
        else:
            Generation(
                max_new_tokens=self.max_tokens, sample=True, temperature=self.temperature, top_p=self.top_p
            )
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.token_hex(16))

    @property
    def company(self) -> Any:
        """Answers with the same one are written together; None is written alone."""
        shape = shape_of(self.inputs)
        return None if shape is None else (self.methods, self.grounding, shape)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to an answer: it grew, it ended, or it failed.

    Args:
        row: which of the answers that were asked for together.
        piece: what it grew by.
        finish: why it ended; None while it goes on, and where it failed.
        prompt_tokens, tokens: of the prompt, and written so far, the end mark included.
        grounding: of the whole answer, where that was asked for and it has ended.
        error: why it failed. A ``KeepsightError``: the caller's own for input that cannot be used.
    """

    row: int
    piece: Piece = field(default_factory=Piece)
    finish: Finish | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    grounding: Grounding | None = None
    error: KeepsightError | None = None

    @property
    def last(self) -> bool:
        """Whether this is the last of its row."""
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class Row:
    """One answer's place in the engine."""

    ask: Ask
    number: int
    tell: Callable[[Event], None]
    company: Any
    cancelled: bool = False
    over: bool = False
    begun: bool = False

    def end(self, error: KeepsightError) -> None:
        """Tell why there is no more, unless it has ended already."""
        if not self.over and not self.cancelled:
            self.tell(Event(row=self.number, error=error))
        self.over = True
