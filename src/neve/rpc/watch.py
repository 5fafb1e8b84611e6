"""Ends calls on which nothing happens any more.

The library knows deadlines for whole calls only, and a stream of a terabyte has none; so whoever waits
for a stream says so here, and a thread cancels the calls that were waited for too long. The thread
lives as long as there are calls to watch.
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Protocol, Self

_CHECK_SECONDS = 0.5


class Cancellable(Protocol):
    """A call."""

    def cancel(self) -> bool: ...


class Watched:
    """A call being watched. Its ``with`` block is a time of waiting for the peer."""

    def __init__(self, call: Cancellable, seconds: float) -> None:
        self.call = call
        self.seconds = seconds
        self.since: float | None = None
        self.expired = False
        """Whether it was cancelled for this."""

    def __enter__(self) -> Self:
        self.since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.since = None


class Watch:
    """All calls being watched, and the thread that does it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[Watched] = set()
        self._thread: threading.Thread | None = None

    def add(self, call: Cancellable, seconds: float) -> Watched:
        """Watches ``call``: nobody waits for it longer than ``seconds`` at a time."""
        watched = Watched(call, seconds)
        with self._lock:
            self._watched.add(watched)
            # In the child of a fork there is a thread that does not run.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="neve-rpc-watch", daemon=True)
                self._thread.start()
        return watched

    def remove(self, watched: Watched) -> None:
        """Does nothing if it is not watched any more."""
        with self._lock:
            self._watched.discard(watched)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._watched:
                    self._thread = None
                    return
                current = list(self._watched)
            now = time.monotonic()
            for watched in current:
                since = watched.since
                if since is not None and now - since > watched.seconds:
                    watched.expired = True
                    # Whatever is the matter with one call, the others are still to be watched.
                    with contextlib.suppress(Exception):
                        watched.call.cancel()
            time.sleep(min(_CHECK_SECONDS, *(watched.seconds / 4 for watched in current)))


WATCH = Watch()
