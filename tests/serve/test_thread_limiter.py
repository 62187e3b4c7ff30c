"""Work is bounded, and never handed on to a client that has disconnected."""

from __future__ import annotations

import asyncio
import threading

import pytest
from serving import GUARD
from starlette.requests import ClientDisconnect

from keepsight.serve.thread_limiter import ThreadLimiter, run_unless_disconnected


def test_a_client_that_leaves_in_the_moment_in_which_the_work_ends_has_left() -> None:
    async def play() -> None:
        disconnected = asyncio.get_running_loop().create_future()

        async def work() -> str:
            disconnected.set_result(None)
            return "the next step would begin with this"

        with pytest.raises(ClientDisconnect):
            await run_unless_disconnected(disconnected, work())

    asyncio.run(play())


@pytest.mark.parametrize("leaves", [False, True])
def test_what_work_raises_is_raised_to_a_client_that_is_there(
    leaves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        disconnected = asyncio.get_running_loop().create_future()

        async def work() -> None:
            if leaves:
                disconnected.set_result(None)
            raise ZeroDivisionError

        with pytest.raises(ClientDisconnect if leaves else ZeroDivisionError):
            await run_unless_disconnected(disconnected, work())

    asyncio.run(play())
    assert not caplog.records, "asyncio complains of errors that nobody looks at"


def test_a_client_that_leaves_cancels_the_work() -> None:
    async def play() -> None:
        disconnected = asyncio.get_running_loop().create_future()
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        waiting = asyncio.ensure_future(run_unless_disconnected(disconnected, work()))
        await begun.wait()
        disconnected.set_result(None)
        with pytest.raises(ClientDisconnect):
            await waiting
        await cancelled.wait()

    asyncio.run(play())


def test_a_call_counts_until_it_has_ended_even_if_its_caller_was_cancelled() -> None:
    free, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert free.wait(GUARD)

    async def play() -> list[str]:
        limiter = ThreadLimiter(1, "test")
        first = asyncio.ensure_future(limiter.run(slow))
        await asyncio.to_thread(begun.wait, GUARD)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        ran: list[str] = []
        second = asyncio.ensure_future(limiter.run(ran.append, "second"))
        await asyncio.sleep(0)
        assert (ran, second.done()) == ([], False)
        free.set()
        await second
        return ran

    assert asyncio.run(play()) == ["second"]
