"""So many generations at a time as there are models, first come first served, and a bound on how many may wait."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, local
from typing import Any

from sightline.serve.errors import Busy

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

    def take(self, work: Work) -> AsyncIterator[Any]:
        """Put ``work`` into the queue, and give back what it says, as it says it.

        Whoever stops listening ends it, or takes it out of the queue. What ``work`` raises is raised to the listener.

        Raises:
            Busy: the queue is full.
        """
        if self.pending >= self.queue + self.lanes:
            raise Busy(
                f"{self.pending} answers are written or waiting already: try again in a moment", retry_after=2
            )
        loop, heard, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), Event()

        def tell(what: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(heard.put_nowait, what)

        def begin() -> None:
            if not stop.is_set():
                work(tell, stop, self._lane.number)

        def leave() -> None:
            self.pending -= 1
            self._stops.discard(stop)
            heard.put_nowait(_DONE)

        def ended(_: Any) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(leave)

        self.pending += 1
        self._stops.add(stop)
        future = self._threads.submit(begin)
        future.add_done_callback(ended)
        return _listen(heard, future, stop)

    def close(self) -> None:
        """End what is being written and forget what waits."""
        for stop in list(self._stops):
            stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)


_DONE = object()


async def _listen(heard: asyncio.Queue[Any], future: Future[None], stop: Event) -> AsyncIterator[Any]:
    try:
        while (what := await heard.get()) is not _DONE:
            yield what
    finally:
        stop.set()
        future.cancel()
    future.result()
