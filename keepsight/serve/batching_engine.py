"""One model, and the one thread that generates on it: requests come from any thread, and answers leave token by token."""

from __future__ import annotations

import copy
import gc
import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch

from keepsight.errors import KeepsightError
from keepsight.serve.batch_generation import generate
from keepsight.serve.errors import Busy, GenerationFailed, ShuttingDown
from keepsight.serve.requests import GenerationEvent, GenerationRequest, RequestState

log = logging.getLogger("keepsight.serve")


class RequestHandle:
    """The requests of one call of ``submit``, so that the caller can cancel them."""

    def __init__(self, engine: BatchingEngine, states: Sequence[RequestState]) -> None:
        self._engine, self._states = engine, states

    def cancel(self) -> None:
        """Give the requests up. Those that wait leave the queue now, and those that are generated stop at their next token.

        No further event is reported for them. It may be called any number of times, from any thread.
        """
        self._engine._cancel(self._states)


class BatchingEngine:
    """Generates answers on one model, first come, first served.

    The request that has waited longest begins the next batch. Requests behind it that have the same methods and input
    shapes join the batch; their sampling settings, stop texts and lengths may differ. An answer does not depend on the
    other requests of its batch, up to rounding in padded batches (``inference.row_sampler`` explains sampling). No request
    joins a batch that has begun. The methods are attached to the model while their batch is generated, and only then.

    Args:
        model: the model. No other code may generate on it while the engine is open.
        processor: the model's processor.
        batch: the largest number of answers in a batch, 1 or more; default 8.
        queue: the largest number of requests that may wait, 1 or more; default 32.
        gather: how many seconds a batch that is not full waits for further requests before it begins; default 0.003.
    """

    def __init__(
        self, model: Any, processor: Any, *, batch: int = 8, queue: int = 32, gather: float = 0.003
    ) -> None:
        self.model, self.processor = model, processor
        # Fast tokenizers keep settings that change while they encode, so each thread needs a copy of its own
        self._tokenizer = copy.deepcopy(processor.tokenizer)
        self._batch, self._queue, self._gather = batch, queue, gather
        # The condition guards the queue, the running batch and ``_closing``. The engine's thread waits on it for requests
        # and for ``close``
        self._changed = threading.Condition()
        self._waiting: list[RequestState] = []
        self._running: list[RequestState] = []
        self._closing = False
        # Set once and read after every token: a reference is replaced in one step, so that this needs no lock
        self._abort_error: ShuttingDown | None = None
        # A guess, until batches have been measured
        self._batch_seconds = 1.0
        # A daemon thread, so that a second signal can end the process in the middle of a forward pass
        self._thread = threading.Thread(target=self._run, name="keepsight-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> BatchingEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of answers that are being generated and that somebody still waits for."""
        return sum(not (state.finished or state.cancelled) for state in self._running)

    def submit(
        self, requests: Sequence[GenerationRequest], on_event: Callable[[GenerationEvent], None]
    ) -> RequestHandle:
        """Put requests into the queue, all of them or none. Returns at once.

        Args:
            requests: the requests. They may have different methods, and are then generated in different batches.
            on_event: called in the engine's thread with everything that happens to the requests. It must neither block
                nor raise, because all other answers wait for it.

        Returns:
            A handle that cancels the requests.

        Raises:
            Busy: the requests do not fit into the queue.
            ShuttingDown: the engine was closed.
        """
        states = [
            RequestState(request, index, on_event, request.batch_key)
            for index, request in enumerate(requests)
        ]
        with self._changed:
            if self._closing:
                raise ShuttingDown("the server is shutting down")
            if len(self._waiting) + len(states) > self._queue:
                raise Busy(
                    f"{len(self._waiting)} answers wait already, of at most {self._queue}: try again later",
                    retry_after=self.retry_after(),
                )
            self._waiting += states
            self._changed.notify_all()
        return RequestHandle(self, states)

    def generate(self, *requests: GenerationRequest) -> Iterator[GenerationEvent]:
        """Submit requests and yield their events until all answers have ended. Leaving the loop cancels the rest.

        The requests are submitted when the first event is asked for.

        Raises:
            Busy, ShuttingDown: as ``submit``.
        """
        events: SimpleQueue[GenerationEvent] = SimpleQueue()
        handle = self.submit(requests, events.put)
        try:
            unfinished = len(requests)
            while unfinished:
                event = events.get()
                yield event
                unfinished -= event.last
        finally:
            handle.cancel()

    def retry_after(self) -> int:
        """After how many whole seconds, from 1 to 60, the queue is likely to have room, judged by the batches so far."""
        # One more request than wait now, in full batches, each as long as the batches of late
        batches = math.ceil((len(self._waiting) + 1) / self._batch)
        return min(max(math.ceil(self._batch_seconds * batches), 1), 60)

    def close(self, grace: float = 0.0) -> None:
        """Stop the engine. Returns when its thread has ended and the model is as it was before.

        New requests are refused, and requests that wait fail with ``ShuttingDown`` at once. Answers that are being
        generated have ``grace`` seconds to end by themselves; then they fail with ``ShuttingDown`` at their next token.

        Args:
            grace: seconds, 0 or more; default 0.
        """
        with self._changed:
            self._closing = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for state in left:
            state.fail(ShuttingDown("the server is shutting down"))
        self._thread.join(grace)
        self.abort()
        self._thread.join()

    def abort(self) -> None:
        """End what is being generated at its next token, so that a ``close`` in another thread need not wait any longer."""
        self._abort_error = ShuttingDown("the server is shutting down: the answer is not complete")

    def _cancel(self, states: Sequence[RequestState]) -> None:
        """Mark requests as cancelled, and take those that wait out of the queue. The generation loop skips the others."""
        with self._changed:
            for state in states:
                state.cancelled = True
            self._waiting = [state for state in self._waiting if not state.cancelled]

    def _run(self) -> None:
        """The engine's thread: one batch after another until the engine is closed."""
        while states := self._next_batch():
            started = time.monotonic()
            self._run_batch(states)
            # A moving average in which the batches of late weigh most, because loads change
            self._batch_seconds += 0.3 * (time.monotonic() - started - self._batch_seconds)
            with self._changed:
                self._running = []

    def _next_batch(self) -> list[RequestState]:
        """Wait for requests and take the next batch out of the queue. An empty list means that the engine is closed."""
        with self._changed:
            while True:
                while not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                # Clients that ask at the same moment arrive a few milliseconds apart; a short wait lets them share a batch
                until = time.monotonic() + self._gather
                while len(self._waiting) < self._batch and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._waiting:  # all of them may have been cancelled meanwhile
                    break
            # The request that has waited longest decides what the batch is, so that no request waits for ever behind others
            # that happen to fit together
            first = self._waiting[0]
            states = [first]
            if first.batch_key is not None:
                alike = (state for state in self._waiting[1:] if state.batch_key == first.batch_key)
                states += [state for state, _ in zip(alike, range(self._batch - 1), strict=False)]
            chosen = set(map(id, states))
            self._waiting = [state for state in self._waiting if id(state) not in chosen]
            self._running = states
            return states

    def _run_batch(self, states: Sequence[RequestState]) -> None:
        """Generate a batch. If it fails before any token was reported, generate its requests one by one.

        One request that cannot be used, such as one without image tokens, must not fail the others of its batch.
        """
        states = [state for state in states if not state.cancelled and not state.finished]
        if not states:
            return
        try:
            # The reason is looked up at every token, because a close may come while the batch runs
            generate(self.model, self._tokenizer, states, ending=lambda: self._abort_error)
        except Exception as error:  # the thread must survive whatever a model or a method raises
            failure = _as_named_error(error)
            error.__traceback__ = None  # the frames hold the tensors of the batch
        else:
            return
        _release_memory()
        # A row that has sent tokens cannot begin again, because its client has read them
        if len(states) > 1 and not any(state.started for state in states):
            for state in states:
                self._run_batch([state])
            return
        for state in states:
            state.fail(failure)


def _as_named_error(error: Exception) -> KeepsightError:
    """The error for the caller.

    An error that was not raised on purpose is logged. Its message is kept from the caller, because it may name files of the
    server.
    """
    if isinstance(error, KeepsightError):
        return error
    log.error("a generation failed\n%s", "".join(traceback.format_exception(error)))
    return GenerationFailed(f"the generation failed unexpectedly ({type(error).__name__})")


def _release_memory() -> None:
    """Free the GPU memory of a failed batch, so that its requests can be generated one by one."""
    # After an out-of-memory error, tensors may still be held by reference cycles, and torch keeps freed blocks to itself
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
