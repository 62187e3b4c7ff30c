"""So many generations at a time as there are models, first come first served, and a bound on how many may wait."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, local
from typing import Any

from keepsight.serve.errors import Busy

Say = Callable[[Any], None]
Work = Callable[[Say, Event, int], None]
"""Something to do in a lane: it says what comes of it, heeds the event that ends it early, and is told the lane's number."""


class Desk:
    """Work in lanes. A lane is one thread, for one model, so that no two generations meet in a model.

    Whoever comes first begins first, in whichever lane is free.

    Args:
        queue: how many may wait.
        lanes: how many are worked on at a time; they are numbered from 0 on.
    """

    def __init__(self, queue: int, lanes: int = 1) -> None:
        self.queue = queue
        self.lanes = lanes
        self.pending = 0
        numbers, self._lane = itertools.count(), local()

        def settle() -> None:
            self._lane.number = next(numbers)

        self._threads = ThreadPoolExecutor(
            max_workers=lanes, thread_name_prefix="generation", initializer=settle
        )
        self._stops: set[Event] = set()

    @property
    def ahead(self) -> int:
        """How many must end before the next one that comes begins."""
        return max(self.pending - self.lanes + 1, 0)

    def place(self) -> Place:
        """A place among those who are served, from before the picture is read to the end of the answer.

        Raises:
            Busy: the queue is full.
        """
        if self.pending >= self.queue + self.lanes:
            raise Busy(
                f"{self.pending} answers are written or waiting already: try again in a moment", retry_after=2
            )
        return Place(self)

    def submit(self, work: Callable[[int], None], stop: Event) -> Future[None]:
        """Have ``work`` done in the next free lane, whose number it is told; ``stop`` is set when the desk closes."""
        self._stops.add(stop)
        future = self._threads.submit(lambda: work(self._lane.number))
        future.add_done_callback(lambda _: self._stops.discard(stop))
        return future

    def close(self) -> None:
        """End what is being written and forget what waits."""
        for stop in list(self._stops):
            stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)


class Place:
    """Somebody's place at a desk. It is free again once it has been left and nothing is done for it any more."""

    def __init__(self, desk: Desk) -> None:
        self.ahead = desk.ahead
        """How many had to end before this one begins, when it came."""
        self._desk, self._stop = desk, Event()
        self._future: Future[None] | None = None
        self._left = False
        desk.pending += 1

    def take(self, work: Work) -> AsyncIterator[Any]:
        """Put ``work`` into the queue, and give back what it says, as it says it. Once.

        Whoever stops listening ends it, or takes it out of the queue. What ``work`` raises is raised to the listener.
        """
        loop, heard, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), self._stop

        def tell(what: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(heard.put_nowait, what)

        def begin(lane: int) -> None:
            if not stop.is_set():
                work(tell, stop, lane)

        def done() -> None:
            self._free()
            heard.put_nowait(_DONE)

        def ended(_: Any) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done)

        self._future = self._desk.submit(begin, stop)
        self._future.add_done_callback(ended)
        return self._listen(heard, self._future)

    def leave(self) -> None:
        """Nobody listens any more. Any number of times."""
        self._stop.set()
        if self._future is None:
            self._free()
        else:
            self._future.cancel()

    def _free(self) -> None:
        if not self._left:
            self._left = True
            self._desk.pending -= 1

    async def _listen(self, heard: asyncio.Queue[Any], future: Future[None]) -> AsyncIterator[Any]:
        try:
            while (what := await heard.get()) is not _DONE:
                yield what
        finally:
            self.leave()
        future.result()


_DONE = object()
