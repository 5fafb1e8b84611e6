"""Threads that an event loop leaves work to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from neve import telemetry
from neve.telemetry import LOGGER

T = TypeVar("T")

Queued = Callable[[int], None]
"""Is told how many pieces of work wait for a thread, whenever that changes."""

STUCK_SECONDS = 120.0
"""Threads that end nothing for so long, while something waits for them, are stuck. Whoever works for a client
may wait for another server for as long as a call to that may take: less, unless an address says otherwise."""


class Pool:
    """The threads for one kind of work, and how much of it waits for them. Belongs to one event loop."""

    def __init__(self, name: str, threads: int, queued: Queued | None = None) -> None:
        self.name = name
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"neve-{name}")
        self._queued = queued
        self._under_way = 0
        self.is_open = True
        self.ended = 0
        """Changes whenever a piece of work has ended. No count of them: several threads change it at once."""

    def run(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Begins to run ``function`` in a thread, as soon as one is free."""
        work = telemetry.carried(function)
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._do, work, arguments)
        if self._queued is not None:
            self._change(1)
            future.add_done_callback(lambda _: self._change(-1))
        return future

    def _do(self, work: Callable[..., T], arguments: Sequence[object]) -> T:
        try:
            return work(*arguments)
        finally:
            self.ended += 1

    def _change(self, amount: int) -> None:
        before = self._under_way
        self._under_way += amount
        if self._queued is not None and max(before, self._under_way) > self._threads:
            self._queued(max(0, self._under_way - self._threads))

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """Ends the threads. Not to be waited for in the event loop's thread."""
        self.is_open = False
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)


class Pulse:
    """Whether pools get anything done: now and then a piece of work that is none goes through each of them.
    For pools whose work comes in small pieces. Belongs to the event loop of the pools."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._feelers = [_Feeler(pool) for pool in pools]

    def beats(self, seconds: float) -> bool:
        """False if one of them is stuck. To be called every so many ``seconds``; never waits."""
        felt = [feeler.feels(seconds) for feeler in self._feelers]
        return all(felt)


class _Feeler:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sent: asyncio.Future[None] | None = None
        self._ended = pool.ended
        self._missed = 0
        """How often in a row nothing had ended. Not seconds: whoever was frozen has missed those."""

    def feels(self, seconds: float) -> bool:
        pool = self._pool
        if not pool.is_open:
            return True
        waits = self._sent is not None and not self._sent.done()
        self._missed = self._missed + 1 if waits and pool.ended == self._ended else 0
        self._ended = pool.ended
        if self._sent is None or self._sent.done():
            self._sent = pool.run(_nothing)
        if self._missed * seconds < STUCK_SECONDS:
            return True
        LOGGER.error("%s threads have ended nothing for %.3g s", pool.name, self._missed * seconds)
        return False


def _nothing() -> None:
    pass
