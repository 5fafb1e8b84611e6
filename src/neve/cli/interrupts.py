"""Signals that end a command: tidily, soon, and at the second one at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_SECONDS = 3.0
"""How long what was interrupted may take to tidy up. A store needs none of it: it survives a crash."""

_grace = GRACE_SECONDS


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by one of the signals that end a command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def interruptible(*, process: bool) -> Iterator[None]:
    """Makes SIGINT, SIGTERM and SIGHUP raise ``Interrupted`` in the block.

    If that does not end the block (the whole ``process``) within the grace time, or at a second
    signal, the process is ended with 128 and the signal's number. Signals that whoever started it
    had ignored stay so.
    """
    received: list[int] = []
    over = threading.Event()

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            _exit_now(number)
        threading.Thread(target=_exit_later, args=(number, _grace, over), daemon=True).start()
        raise Interrupted(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        previous = {n: h for n, h in handlers.items() if h in (signal.SIG_DFL, signal.default_int_handler)}
        for number in previous:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if not process:
            over.set()


@contextlib.contextmanager
def grace(seconds: float) -> Iterator[None]:
    """Gives the block more time to tidy up: for one that would leave files behind."""
    global _grace
    _grace, before = seconds, _grace
    try:
        yield
    finally:
        _grace = before


def _exit_later(number: int, seconds: float, over: threading.Event) -> None:
    if not over.wait(seconds):
        _exit_now(number)


def _exit_now(number: int) -> NoReturn:
    if sys.stderr is not None and sys.stderr.isatty():
        # Where a progress bar may have been: clears the line and shows the cursor again.
        os.write(sys.stderr.fileno(), b"\r\x1b[K\x1b[?25h")
    os._exit(128 + number)
