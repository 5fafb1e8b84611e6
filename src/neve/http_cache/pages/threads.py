"""Threads for looking into the store, few at a time: pages must not take all that serve Nix."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from neve.errors import Unavailable

T = TypeVar("T")


class Busy(Unavailable):
    """Too many wait already."""


class Threads:
    """Runs up to ``count`` functions side by side; ``waiting`` more wait for their turn.

    For one event loop.
    """

    def __init__(self, count: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._places = waiting

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What ``function`` returns. Raises what it raises, and ``Busy`` without a place to wait.

        A thread cannot be stopped: whoever is cancelled waits for it.
        """
        if self._free.locked():
            if self._places <= 0:
                raise Busy("too many are looking at pages right now")
            self._places -= 1
            try:
                await self._free.acquire()
            finally:
                self._places += 1
        else:
            await self._free.acquire()
        try:
            return await run_in_threadpool(function, *arguments)
        finally:
            self._free.release()
