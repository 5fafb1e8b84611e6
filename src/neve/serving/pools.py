"""Threads that an event loop leaves work to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from neve import telemetry

T = TypeVar("T")

Queued = Callable[[int], None]
"""Is told how many pieces of work wait for a thread, whenever that changes."""


class Pool:
    """The threads for one kind of work, and how much of it waits for them. Belongs to one event loop."""

    def __init__(self, name: str, threads: int, queued: Queued | None = None) -> None:
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"neve-{name}")
        self._queued = queued
        self._under_way = 0

    def run(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Begins to run ``function`` in a thread, as soon as one is free."""
        work = telemetry.carried(function)
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        if self._queued is not None:
            self._change(1)
            future.add_done_callback(lambda _: self._change(-1))
        return future

    def _change(self, amount: int) -> None:
        before = self._under_way
        self._under_way += amount
        if self._queued is not None and max(before, self._under_way) > self._threads:
            self._queued(max(0, self._under_way - self._threads))

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """Ends the threads. Not to be waited for in the event loop's thread."""
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)
