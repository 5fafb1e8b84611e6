"""Two ways for the threads of one process to wait for each other."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class SharedLock:
    """``with lock`` holds it together with others; ``with lock.exclusive()`` alone.

    A thread may take the shared side while it holds either. Who waits for the exclusive side comes
    before those who hold nothing yet. Who holds the shared side may ask for the exclusive one, as long
    as no two threads do that at a time.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holders = 0
        self._waiting = 0
        self._held = threading.local()

    @property
    def held(self) -> bool:
        """Whether this thread holds either side."""
        return bool(getattr(self._held, "depth", 0))

    def __enter__(self) -> None:
        depth: int = getattr(self._held, "depth", 0)
        with self._condition:
            while self._waiting and not depth:
                self._condition.wait()
            self._holders += 1
        self._held.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._held.depth -= 1
        with self._condition:
            self._holders -= 1
            if self._waiting:
                self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        depth: int = getattr(self._held, "depth", 0)
        with self._condition:
            self._waiting += 1
            try:
                while self._holders > depth:
                    self._condition.wait()
                self._held.depth = depth + 1
                yield
            finally:
                self._held.depth = depth
                self._waiting -= 1
                self._condition.notify_all()


class Arrivals:
    """Counts who is on the way, so that who goes ahead can wait for them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._under_way: set[object] = set()
        self._count = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """The caller is on the way for as long as the block takes."""
        me = object()
        with self._condition:
            self._under_way.add(me)
            self._count += 1
        try:
            yield
        finally:
            with self._condition:
                self._under_way.remove(me)
                self._condition.notify_all()

    def gather(self, pause: float = 0, patience: float = 0) -> None:
        """Returns when all who are on the way now have arrived.

        As long as others come with less than ``pause`` seconds between them, they are waited for too,
        ``patience`` seconds in all.
        """
        end = time.monotonic() + patience
        while True:
            with self._condition:
                count = self._count
                expected = set(self._under_way)
                self._condition.wait_for(lambda: expected.isdisjoint(self._under_way))  # noqa: B023
            if time.monotonic() >= end:
                return
            time.sleep(pause)
            if self._count == count:
                return
