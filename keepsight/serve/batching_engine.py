"""One model and one thread that generates on it: questions from any number of threads, answers token by token."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from keepsight.errors import KeepsightError
from keepsight.serve.errors import Busy, GenerationFailed, ShuttingDown
from keepsight.serve.requests import Ask, Event, Row

if TYPE_CHECKING:
    pass


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
        self._thread = threading.Thread(target=self._work, name="keepsight-engine", daemon=True)
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
        from keepsight.serve.batch_generation import generate

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


def _named(error: Exception) -> KeepsightError:
    if isinstance(error, KeepsightError):
        return error
    import logging
    import traceback

    said = "".join(traceback.format_exception(error))
    logging.getLogger("keepsight.serve").error("a generation failed\n%s", said)
    return GenerationFailed(f"the generation failed unexpectedly ({type(error).__name__})")


def _free() -> None:
    """Let go of what a failed batch held."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
