"""The same call for many items, several at once: for servers where each call has to travel."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from neve.telemetry import carried

T = TypeVar("T")
Item = TypeVar("Item")

CALLS_AT_ONCE = 16


class CallsAtOnce:
    """Threads that make calls; they start when first needed and end with ``close``. Thread-safe."""

    def __init__(self, limit: int = CALLS_AT_ONCE, name: str = "neve-grpc") -> None:
        """``limit`` is how many calls there are at once; ``name`` is that of the threads."""
        self.limit = limit
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> Generator[T, None, None]:
        """What ``function`` makes of each item, in order; ``items`` is consumed a bounded number ahead."""
        source = iter(items)
        pending: deque[Future[T]] = deque()
        try:
            while True:
                for item in islice(source, self.limit - len(pending)):
                    pending.append(self.submit(function, item))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def submit(self, function: Callable[[Item], T], item: Item) -> Future[T]:
        """Has ``function`` called with ``item``."""
        return self._executor().submit(carried(function), item)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.limit, thread_name_prefix=self._name)
            return self._pool

    def close(self, *, wait: bool = True) -> None:
        """``wait``: for the calls that are being made. Can be called again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait, cancel_futures=True)
