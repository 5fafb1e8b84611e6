"""Calls that take minutes: the work in a thread, what it tells on the stream, a conclusion at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from neve.rpc.status import shortened
from neve.server.calls import Calls, Context
from neve.server.long_work import StopFlag, ended, run_stoppable
from neve.telemetry import Progress

_INTERVAL_SECONDS = 0.1
_SILENT_INTERVALS = 10
"""After so many intervals without progress an empty message says that the server still works."""

PROBLEMS_A_MESSAGE = 500


class Message(Protocol):
    """What such calls answer with."""

    total: int
    advance: int
    current: str

    def ByteSize(self) -> int: ...  # noqa: N802


M = TypeVar("M", bound=Message)
R = TypeVar("R")


async def send_told(
    calls: Calls,
    turns: asyncio.Semaphore,
    context: Context,
    message: Callable[[], M],
    work: Callable[[Progress], R],
    conclusion: Callable[[R], Iterable[M]],
) -> None:
    """Does the work when it is this call's turn, and writes the messages of the answer."""
    told = _Told(message)

    def stoppable(stop: StopFlag) -> R:
        told.stop = stop
        return work(told)

    async def take_turn() -> R:
        async with turns:
            return await run_stoppable(calls, stoppable)

    async def write(message: M) -> None:
        await context.write(message)
        # It takes few bytes, and yet the client is not one of those that hold a stream and do nothing.
        calls.moved(calls.limits.min_stream_bytes)

    running = asyncio.ensure_future(take_turn())
    try:
        silent = 0
        while not running.done():
            await asyncio.wait({running}, timeout=_INTERVAL_SECONDS)
            news = told.take()
            silent = silent + 1 if news is None else 0
            if news is not None or silent % _SILENT_INTERVALS == 0:
                await write(news or message())
        for last in conclusion(running.result()):
            await write(last)
    finally:
        running.cancel()
        await ended(running)


class _Told(Generic[M]):
    """What the work has told since it was asked last. The work is in another thread."""

    def __init__(self, message: Callable[[], M]) -> None:
        self.stop = StopFlag()
        self._lock = threading.Lock()
        self._message = message
        self._news = message()

    def start(self, total: int | None) -> None:
        self.stop.check()
        with self._lock:
            self._news.total = total or 0

    def advance(self, amount: int, current: str = "") -> None:
        self.stop.check()
        with self._lock:
            self._news.advance += amount
            if current:
                self._news.current = shortened(current)

    def take(self) -> M | None:
        """The news, if there are any."""
        with self._lock:
            news, self._news = self._news, self._message()
        return news if news.ByteSize() else None
