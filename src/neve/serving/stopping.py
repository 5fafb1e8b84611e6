"""The wish that a process ends: by a signal, a second one that does not wait, a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from neve.telemetry import LOGGER

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OVERTIME_SECONDS = 5.0
"""What may be needed beyond the grace time to close all that is open."""


class Stop:
    """Asked for once, from any thread or a signal handler; waited for in an event loop."""

    def __init__(self) -> None:
        self.requested = False
        self._wake: Callable[[], object] | None = None

    def request(self) -> None:
        """Asks the process to end; more often does not hurt."""
        self.requested = True
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed already.
                self._wake()

    async def wait(self) -> None:
        """Returns when it was asked for. To be used by one task."""
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(event.set)
        if not self.requested:
            await event.wait()


@contextlib.contextmanager
def stop_signals(stop: Callable[[], None], abort: Callable[[], None]) -> Iterator[None]:
    """In the block, SIGINT, SIGTERM and SIGHUP call ``stop``; a second one calls ``abort`` and ends the
    process at once, with 128 and its number. Signals that are ignored stay so. Main thread only."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            stop()
            return
        try:
            abort()
        finally:
            os._exit(128 + number)

    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Deadline:
    """Ends a process that does not come to its end by itself."""

    def __init__(self, abort: Callable[[], None]) -> None:
        """``abort`` is called before the end, to leave nothing behind."""
        self._abort = abort
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        """After so many seconds the process ends with 1, unless ``cancel`` is called before."""
        self._timer = threading.Timer(seconds, self._end, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """It came to its end."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, seconds: float) -> None:
        LOGGER.error("still busy %g s after being told to stop: ending all the same", seconds)
        try:
            self._abort()
        finally:
            os._exit(1)
