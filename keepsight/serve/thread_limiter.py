"""Bounded thread pools for an event loop, and work that is cancelled when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request

Params = ParamSpec("Params")
Result = TypeVar("Result")


class ThreadLimiter:
    """Runs blocking calls in threads, at most ``limit`` at the same time.

    A caller that is cancelled while it waits for a thread leaves nothing behind. A call that has begun runs to its end even
    if its caller was cancelled, and counts until then, because it holds memory until then.

    Args:
        limit: the largest number of calls at the same time, 1 or more.
        name: the name of the threads, after ``keepsight-``.
    """

    def __init__(self, limit: int, name: str) -> None:
        # The pool alone would bound the threads, but it takes any number of calls, with their arguments, into its queue
        self._free = asyncio.Semaphore(limit)
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix=f"keepsight-{name}")

    async def run(
        self, function: Callable[Params, Result], *args: Params.args, **options: Params.kwargs
    ) -> Result:
        """Call ``function`` in a thread, once one is free, and return what it returns or raise what it raises."""
        loop = asyncio.get_running_loop()
        await self._free.acquire()

        def release(_: Future[Result]) -> None:
            # This runs in the thread of the call, and semaphores of asyncio are not thread-safe
            with suppress(RuntimeError):  # the event loop may have ended before the call
                loop.call_soon_threadsafe(self._free.release)

        try:
            call = self._threads.submit(function, *args, **options)
        except BaseException:  # no call has begun that could release its place
            self._free.release()
            raise
        # Released by the call and not by this coroutine, which may be cancelled while the call still holds memory
        call.add_done_callback(release)
        return await asyncio.wrap_future(call)


async def wait_for_disconnect(request: Request) -> None:
    """Return once the client of ``request`` has disconnected.

    The body must have been read before, because ``receive`` gives its parts first.
    """
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def run_unless_disconnected(
    disconnected: asyncio.Future[None], work: Coroutine[Any, Any, Result]
) -> Result:
    """Run ``work`` and return its result; cancel it if the client disconnects.

    Args:
        disconnected: a future of ``wait_for_disconnect``. It stays as it is.
        work: a coroutine that has not begun.

    Raises:
        ClientDisconnect: the client has disconnected, even if ``work`` ended in the same moment. The caller begins
            the next step only for clients that are still there.
    """
    task = asyncio.ensure_future(work)
    try:
        either: set[asyncio.Future[Any]] = {task, disconnected}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if disconnected.done():
            if task.done() and not task.cancelled():
                # Nobody is left to raise the error to, and asyncio logs every error that is never retrieved
                task.exception()
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
