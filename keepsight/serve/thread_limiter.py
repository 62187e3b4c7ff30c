"""Threads for what takes a while, so many at a time, and work that ends when nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request

Given = ParamSpec("Given")
Found = TypeVar("Found")


class Crew:
    """At most so many calls at the same time.

    Whoever is cancelled while waiting for a thread leaves nothing behind. A call that has begun goes on, and its place is
    free when it has ended: what bounds memory is the calls, not who waits for them.
    """

    def __init__(self, many: int, name: str) -> None:
        self._free = asyncio.Semaphore(many)
        self._threads = ThreadPoolExecutor(many, thread_name_prefix=f"keepsight-{name}")

    async def run(self, act: Callable[Given, Found], *args: Given.args, **options: Given.kwargs) -> Found:
        """What ``act`` returns, or raises."""
        loop = asyncio.get_running_loop()
        await self._free.acquire()

        def over(_: Future[Found]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._free.release)

        try:
            call = self._threads.submit(act, *args, **options)
        except BaseException:
            self._free.release()
            raise
        call.add_done_callback(over)
        return await asyncio.wrap_future(call)


async def hung_up(request: Request) -> None:
    """Returns once the client has hung up; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless(gone: asyncio.Future[None], work: Coroutine[Any, Any, Found]) -> Found:
    """What ``work`` comes to; it is given up if ``gone``, which is ``hung_up``, ends before.

    Raises:
        ClientDisconnect: so it was.
    """
    going = asyncio.ensure_future(work)
    try:
        either: set[asyncio.Future[Any]] = {going, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not going.done():
            raise ClientDisconnect
        return going.result()
    finally:
        going.cancel()
