"""One model and one thread that generates on it: questions from any number of threads, answers token by token."""

from __future__ import annotations

import copy
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sightline.captioning import Generation
from sightline.errors import SightlineError
from sightline.grounding.scores import Grounding
from sightline.serve.batching import shape_of
from sightline.serve.errors import Busy, GenerationFailed, ShuttingDown
from sightline.serve.writing import Finish, Piece

if TYPE_CHECKING:
    from sightline.method import Method


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
        error: why it failed. A ``SightlineError``: the caller's own for input that cannot be used.
    """

    row: int
    piece: Piece = field(default_factory=Piece)
    finish: Finish | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    grounding: Grounding | None = None
    error: SightlineError | None = None

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

    def end(self, error: SightlineError) -> None:
        """Tell why there is no more, unless it has ended already."""
        if not self.over and not self.cancelled:
            self.tell(Event(row=self.number, error=error))
        self.over = True


class Ticket:
    """Some answers that were asked for together. ``cancel`` gives their place back, at the latest after the next token."""

    def __init__(self, engine: Engine, rows: Sequence[Row]) -> None:
        self._engine, self._rows = engine, rows

    def cancel(self) -> None:
        self._engine._drop(self._rows)


class Engine:
    """Writes answers on one model, in the order in which they were asked for.

    Whoever waits longest comes next, and brings along those behind it that can be answered in the same batch: the same
    methods, whatever their sampling, stop strings and lengths. An answer does not depend on its company, up to rounding in
    padded batches (see ``runs.draw.Draw`` for drawing). One thread generates; methods are in place while it does, and only
    then.

    Args:
        model, processor: as ``captioning.load`` gives them. Nobody else may generate on the model meanwhile.
        batch: answers written together.
        queue: answers that may wait.
        gather: seconds to wait for company before a batch begins.
    """

    def __init__(
        self, model: Any, processor: Any, *, batch: int = 8, queue: int = 32, gather: float = 0.003
    ) -> None:
        self.model, self.processor = model, processor
        self._tokenizer = copy.deepcopy(processor.tokenizer)  # theirs may be busy in another thread
        self._batch, self._queue, self._gather = batch, queue, gather
        self._changed = threading.Condition()
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._closing = False
        self._ending: ShuttingDown | None = None
        self._seconds = 1.0
        self._thread = threading.Thread(target=self._work, name="sightline-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Answers that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are being written for somebody."""
        return sum(not (row.over or row.cancelled) for row in self._running)

    def submit(self, asks: Sequence[Ask], tell: Callable[[Event], None]) -> Ticket:
        """Queue up for some answers. ``tell`` hears of everything, in the engine's thread: it must not wait, or raise.

        Raises:
            Busy: they do not fit into the queue.
            ShuttingDown: the engine was closed.
        """
        rows = [Row(ask, number, tell, ask.company) for number, ask in enumerate(asks)]
        with self._changed:
            if self._closing:
                raise ShuttingDown("the server is shutting down")
            if len(self._waiting) + len(rows) > self._queue:
                raise Busy(
                    f"{len(self._waiting)} answers wait already, of at most {self._queue}: try again later",
                    retry_after=self.retry_after(),
                )
            self._waiting += rows
            self._changed.notify_all()
        return Ticket(self, rows)

    def answer(self, *asks: Ask) -> Iterator[Event]:
        """The same for callers that wait: what happens, until every answer has ended. Leaving the loop cancels the rest.

        Raises:
            Busy, ShuttingDown.
        """
        events: SimpleQueue[Event] = SimpleQueue()
        ticket = self.submit(asks, events.put)
        try:
            going = len(asks)
            while going:
                event = events.get()
                yield event
                going -= event.last
        finally:
            ticket.cancel()

    def retry_after(self) -> int:
        """Whole seconds until a place in the queue is likely to be free, judged by the batches so far."""
        batches = math.ceil((len(self._waiting) + 1) / self._batch)
        return min(max(math.ceil(self._seconds * batches), 1), 60)

    def close(self, grace: float = 0.0) -> None:
        """End: nothing new is taken, who waits is told so, what is being written has ``grace`` seconds to end by itself.

        Whatever is left then is told as well, and ends with its next token. Returns when all is over; the model is as it
        was.
        """
        with self._changed:
            self._closing = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for row in left:
            row.end(ShuttingDown("the server is shutting down"))
        self._thread.join(grace)
        self.hurry()
        self._thread.join()

    def hurry(self) -> None:
        """What is being written ends with its next token, and ``close``, in another thread, waits no longer."""
        self._ending = ShuttingDown("the server is shutting down: the answer is not complete")

    def _drop(self, rows: Sequence[Row]) -> None:
        with self._changed:
            for row in rows:
                row.cancelled = True
            self._waiting = [row for row in self._waiting if not row.cancelled]

    def _work(self) -> None:
        while rows := self._next():
            begun = time.monotonic()
            self._write(rows)
            self._seconds += 0.3 * (time.monotonic() - begun - self._seconds)
            with self._changed:
                self._running = []

    def _next(self) -> list[Row]:
        """Who is answered next; empty once the engine is closed."""
        with self._changed:
            while True:
                while not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                until = time.monotonic() + self._gather
                while len(self._waiting) < self._batch and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._waiting:
                    break
            first = self._waiting[0]
            rows = [first]
            if first.company is not None:
                alike = (row for row in self._waiting[1:] if row.company == first.company)
                rows += [row for row, _ in zip(alike, range(self._batch - 1), strict=False)]
            chosen = set(map(id, rows))
            self._waiting = [row for row in self._waiting if id(row) not in chosen]
            self._running = rows
            return rows

    def _write(self, rows: Sequence[Row]) -> None:
        """Write these answers together; one by one if that fails before anybody was told of a token."""
        from sightline.serve.generating import generate

        rows = [row for row in rows if not row.cancelled and not row.over]
        if not rows:
            return
        try:
            generate(self.model, self._tokenizer, rows, ending=lambda: self._ending)
        except Exception as error:  # the thread lives on, whatever a model or a method does
            failure = _named(error)
            error.__traceback__ = None  # it holds the batch's tensors
        else:
            return
        _free()
        if len(rows) > 1 and not any(row.begun for row in rows):
            for row in rows:
                self._write([row])
            return
        for row in rows:
            row.end(failure)


def _named(error: Exception) -> SightlineError:
    if isinstance(error, SightlineError):
        return error
    import logging
    import traceback

    said = "".join(traceback.format_exception(error))
    logging.getLogger("sightline.serve").error("a generation failed\n%s", said)
    return GenerationFailed(f"the generation failed unexpectedly ({type(error).__name__})")


def _free() -> None:
    """Let go of what a failed batch held."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
