"""Runs as many generations at the same time as there are models, first come first served, with a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, local
from typing import Any

from keepsight.serve.errors import Busy

Emit = Callable[[Any], None]
Job = Callable[[Emit, Event, int], None]
"""Work for one worker.

A job is called with a function that sends events to the client, with an event that is set when the job should stop, and with
the number of the worker that runs it.
"""


class Scheduler:
    """Runs jobs on workers. A worker is one thread for one model, so that a model never runs two generations at a time.

    Jobs begin in the order in which they were submitted, on whichever worker is free.

    Args:
        queue: the largest number of clients that may wait.
        workers: how many jobs run at the same time, 1 or more; default 1. Workers are numbered from 0.
    """

    def __init__(self, queue: int, workers: int = 1) -> None:
        self.queue = queue
        self.workers = workers
        self.occupied = 0
        """The number of clients that are served or wait. It is only changed in the event loop."""
        # The pool calls the initializer in each new thread, and what is stored in a local() belongs to that thread alone
        numbers, self._worker = itertools.count(), local()

        def assign_number() -> None:
            self._worker.number = next(numbers)

        self._threads = ThreadPoolExecutor(
            max_workers=workers, thread_name_prefix="generation", initializer=assign_number
        )
        self._stops: set[Event] = set()

    @property
    def ahead(self) -> int:
        """The number of clients that must be done before a client that comes now is served."""
        return max(self.occupied - self.workers + 1, 0)

    def reserve(self) -> Slot:
        """Reserve a slot for a client, from before its image is read until its answer has ended.

        Raises:
            Busy: the queue is full.
        """
        if self.occupied >= self.queue + self.workers:
            raise Busy(
                f"{self.occupied} answers are written or waiting already: try again in a moment",
                retry_after=2,
            )
        return Slot(self)

    def submit(self, job: Callable[[int], None], stop: Event) -> Future[None]:
        """Run ``job`` on the next free worker, and pass it the worker's number.

        Args:
            job: the work. It must end soon after ``stop`` is set.
            stop: set by ``close``, for jobs that run by then.
        """
        self._stops.add(stop)
        future = self._threads.submit(lambda: job(self._worker.number))
        future.add_done_callback(lambda _: self._stops.discard(stop))
        return future

    def close(self) -> None:
        """Stop the jobs that run, drop those that wait, and return when all workers have ended."""
        for stop in list(self._stops):  # a copy, because jobs that end discard their events meanwhile
            stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)


class Slot:
    """A client's slot in a scheduler. It is free again once the client has left and no job runs for it any more.

    ``ahead`` is the number of clients that had to be done before this one when it came. All methods must be called in the
    event loop.

    Args:
        scheduler: the scheduler, in which a slot must be free. ``Scheduler.reserve`` checks that.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.ahead = scheduler.ahead
        self._scheduler, self._stop = scheduler, Event()
        self._future: Future[None] | None = None
        self._released = False
        scheduler.occupied += 1

    def run(self, job: Job) -> AsyncIterator[Any]:
        """Queue ``job`` and return the events that it emits, as it emits them. It must be called only once.

        If the client stops listening, a job that runs is told to stop, and a job that waits is never begun. What the job
        raises is raised to whoever reads the events.
        """
        loop, events, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), self._stop

        def emit(event: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed, so nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        def begin(worker: int) -> None:
            # The thread pool may have taken the job out of its queue just before the client left
            if not stop.is_set():
                job(emit, stop, worker)

        def finish() -> None:
            self._release()
            events.put_nowait(_END)

        # Called in the thread of the worker, or in the event loop if the job is cancelled before it begins
        def on_done(_: Any) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish)

        self._future = self._scheduler.submit(begin, stop)
        self._future.add_done_callback(on_done)
        return self._listen(events, self._future)

    def leave(self) -> None:
        """Give the slot up, because the client has left or its answer has ended. It may be called any number of times."""
        self._stop.set()
        if self._future is None:
            self._release()
        else:
            # A job that runs cannot be cancelled: it ends by itself, and the slot is occupied until then
            self._future.cancel()

    def _release(self) -> None:
        """Count the slot as free. Only the first call has an effect."""
        if not self._released:
            self._released = True
            self._scheduler.occupied -= 1

    async def _listen(self, events: asyncio.Queue[Any], future: Future[None]) -> AsyncIterator[Any]:
        """The events of a job until its end. Then it raises what the job has raised."""
        try:
            while (event := await events.get()) is not _END:
                yield event
        finally:
            self.leave()
        future.result()


_END = object()
"""The last entry of a queue of events. None would not do, because a job may emit anything."""
