"""Signals that end a command: tidily, soon, and at the second one at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, Self

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


class Postponed:
    """A block in which interrupts wait, but for where they are ``taken``: then one is, the first.

    Those that come after it are not heard in the block at all: it is ending, and who is impatient must not
    keep it from tidying up. For the main thread.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._mask: set[int | signal.Signals] = set()
        self._waiting: list[int] = []
        self._is_taking = False

    def __enter__(self) -> Self:
        # The mask keeps them from the programs that are started in the block. Of the threads here it is for
        # this one only: another may be given a signal, and Python runs the handler in this one all the same.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """In the block, the first interrupt raises ``Interrupted``, also one that has come before."""
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._is_taking = True
            for number in self._waiting[:1]:
                self._handle(number, None)
            yield
        finally:
            self._is_taking = False
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_taking:
            self._is_taking = False
            self._handlers[number](number, frame)
        else:
            self._waiting.append(number)


def _exit_later(number: int, seconds: float, over: threading.Event) -> None:
    if not over.wait(seconds):
        _exit_now(number)


def _exit_now(number: int) -> NoReturn:
    if sys.stderr is not None and sys.stderr.isatty():
        # Where a progress bar may have been: clears the line and shows the cursor again.
        os.write(sys.stderr.fileno(), b"\r\x1b[K\x1b[?25h")
    os._exit(128 + number)
