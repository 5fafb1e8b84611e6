"""The threads that compress what is stored in the embedded store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from neve.packstore.frames import Record

_MAX_WAITING_GROUPS = 24


def worker_count() -> int:
    """Threads that compress or decompress."""
    return max(2, min(4, (os.cpu_count() or 1) - 1))


class PackThreads:
    """The threads that compress for all batches of one service; they live while one of those uses them.

    However many batches there are, a bounded number of groups waits: that bounds memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.BoundedSemaphore(_MAX_WAITING_GROUPS)

    def enter(self) -> None:
        """Must come before the first ``submit`` of a batch."""
        with self._lock:
            self._users += 1
            if self._pool is None:
                self._pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="neve-pack")

    def leave(self) -> None:
        """The end of a batch that entered. With the last one the threads end."""
        with self._lock:
            self._users -= 1
            pool = None
            if not self._users:
                pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def submit(self, function: Callable[[list[Record]], None], group: list[Record]) -> Future[None]:
        """Has a thread run ``function`` on ``group``; waits while too many groups are waiting."""
        self._room.acquire()
        try:
            assert self._pool is not None
            future = self._pool.submit(function, group)
        except BaseException:
            self._room.release()
            raise
        # Also called when the future is cancelled.
        future.add_done_callback(lambda _: self._room.release())
        return future
