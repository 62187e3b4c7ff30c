"""One generation at a time, first come first served, and a bound on how many may wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

from sightline.serve.errors import Busy

Say = Callable[[Any], None]
Work = Callable[[Say, Event], None]
"""Something to do in the generation thread: it says what comes of it, and heeds the event that ends it early."""


class Desk:
    """Work for one model, in one thread, so that no two generations meet in it.

    Args:
        queue: how many may wait.
    """

    def __init__(self, queue: int) -> None:
        self.queue = queue
        self.pending = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")
        self._stops: set[Event] = set()

    def take(self, work: Work) -> AsyncIterator[Any]:
        """Put ``work`` into the queue, and give back what it says, as it says it.

        Whoever stops listening ends it, or takes it out of the queue. What ``work`` raises is raised to the listener.

        Raises:
            Busy: the queue is full.
        """
        if self.pending > self.queue:
            raise Busy(f"{self.pending} answers are waiting already: try again in a moment", retry_after=2)
        loop, heard, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), Event()

        def tell(what: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(heard.put_nowait, what)

        def begin() -> None:
            if not stop.is_set():
                work(tell, stop)

        def leave() -> None:
            self.pending -= 1
            self._stops.discard(stop)
            heard.put_nowait(_DONE)

        def ended(_: Any) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(leave)

        self.pending += 1
        self._stops.add(stop)
        future = self._thread.submit(begin)
        future.add_done_callback(ended)
        return _listen(heard, future, stop)

    def close(self) -> None:
        """End what is being written and forget what waits."""
        for stop in list(self._stops):
            stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)


_DONE = object()


async def _listen(heard: asyncio.Queue[Any], future: Future[None], stop: Event) -> AsyncIterator[Any]:
    try:
        while (what := await heard.get()) is not _DONE:
            yield what
    finally:
        stop.set()
        future.cancel()
    future.result()
