"""Work that takes minutes in a thread, and ends soon when its call is gone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from neve.server.calls import Calls

T = TypeVar("T")


class StoppedError(Exception):
    """The call that the work was for is gone. Nothing below may take it for an error of its own."""


class StopFlag:
    """Tells a thread that nobody waits for it any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises ``StoppedError`` if it is time to end; the work calls it every now and then."""
        if self._event.is_set():
            raise StoppedError


class StopProgress:
    """Progress that nobody looks at, as the place where to stop."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag

    def start(self, total: int | None) -> None:
        self._flag.check()

    def advance(self, amount: int, current: str = "") -> None:
        self._flag.check()


async def run_stoppable(calls: Calls, function: Callable[[StopFlag], T]) -> T:
    """The result of ``function``, which runs in a thread. Cancelled, it tells the thread to stop and
    returns when it has."""
    flag = StopFlag()
    running = asyncio.ensure_future(calls.commit(function, flag))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        flag.set()
        await ended(running)
        raise


async def ended(task: asyncio.Future[T]) -> None:
    """Returns when ``task`` is over, whatever became of it, even if the caller is cancelled meanwhile."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # Seen: nobody is told of it.
