"""Connections to one database: made by whoever needs one, kept for the next.

The library has a pool of its own, whose threads connect in the background, again and again: who asks for
a connection to a server that is down, or with a wrong password, learns after a time that there was none,
and not why. Here he connects himself, and is told at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import psycopg
from psycopg.pq import TransactionStatus

from neve.errors import Unavailable

_IDLE_SECONDS = 300.0
"""What nobody has used for so long is closed when somebody uses another."""


_OF_PARENTS: list[psycopg.Connection] = []
"""What a child has of its parent's; kept, so that nothing is done with it."""


class Pool:
    """Up to ``most`` connections at once, which ``connect`` makes. Thread-safe."""

    def __init__(self, connect: Callable[[], psycopg.Connection], most: int, patience: float) -> None:
        """``patience`` is how many seconds to wait for one of them."""
        self._connect = connect
        self._most = most
        self._patience = patience
        self._free = threading.BoundedSemaphore(most)
        self._idle: deque[tuple[float, psycopg.Connection]] = deque()
        """Since when, and which; the one used last at the end."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """One for the block. Raises ``Unavailable`` if all stay in use, and what ``connect`` raises."""
        if not self._free.acquire(timeout=self._patience):
            raise Unavailable(
                f"all {self._most} connections to the database (pool= in the address) were in use "
                f"for {self._patience:g} s"
            )
        try:
            connection = self._kept() or self._connect()
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def _kept(self) -> psycopg.Connection | None:
        """One that was used before and still is one: a server that was started anew has said so."""
        self._leave_to_parent()
        self._drop_unused()
        while True:
            with self._lock:
                if not self._idle:
                    return None
                _, connection = self._idle.pop()
            if _is_quiet(connection):
                return connection
            connection.close()

    def _give_back(self, connection: psycopg.Connection) -> None:
        idle = not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE
        with self._lock:
            if idle and not self._closed:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def _leave_to_parent(self) -> None:
        """In a child that goes on with what its parent has opened: those connections are not its own. Closing
        them would tell the server that the parent goes."""
        with self._lock:
            if self._process != os.getpid():
                self._process = os.getpid()
                _OF_PARENTS.extend(connection for _, connection in self._idle)
                self._idle.clear()

    def _drop_unused(self) -> None:
        before = time.monotonic() - _IDLE_SECONDS
        unused = []
        with self._lock:
            while self._idle and self._idle[0][0] < before:
                unused.append(self._idle.popleft()[1])
        for connection in unused:
            connection.close()

    def close(self) -> None:
        """Closes those that nobody uses, and the others once they come back. Can be called again."""
        self._leave_to_parent()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        for _, connection in idle:
            connection.close()


def _is_quiet(connection: psycopg.Connection) -> bool:
    """Whether nothing has come from the server since the last answer: what comes then is its farewell."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
