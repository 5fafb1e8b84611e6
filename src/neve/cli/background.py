"""Commands that go on in the background once they have got somewhere."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
from collections.abc import Callable
from typing import TypeAlias

import click

from neve.errors import Unavailable
from neve.telemetry import LOGGER

Ready: TypeAlias = Callable[[], None]
"""What a command calls when it has got there."""

_SYSLOG = "/dev/log"
_READY = b"+"


def in_background(work: Callable[[Ready], None], *, same_group: bool = False) -> None:
    """Does ``work`` in another process, and returns when that is ready, here and, much later, there.

    If it ends before, so does this process, in the same way; what is the matter the other one has told.
    To be called while there is but one thread, and nothing is open that must not be used by two processes.

    The other process leaves the group (and session) of this one at once, and so hears nothing of the
    terminal; with ``same_group`` only when it is ready.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        _wait(child, reading)
        return
    os.close(reading)
    if not same_group:
        os.setsid()

    def ready() -> None:
        if same_group:
            os.setsid()
        _let_go()
        os.write(writing, _READY)
        os.close(writing)

    work(ready)


def _wait(child: int, reading: int) -> None:
    try:
        ready = os.read(reading, 1)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reading)
    if ready != _READY:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:  # Then it has told nothing.
            raise Unavailable(f"the process in the background was killed: {signal.strsignal(-code)}")
        raise click.exceptions.Exit(code or 1)


def _let_go() -> None:
    """Leaves the terminal, the pipes and the folder of who has started this; logs to syslog, if there is
    one."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    with contextlib.suppress(OSError):
        handler = logging.handlers.SysLogHandler(_SYSLOG, facility=logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.ident = f"neve[{os.getpid()}]: "
        LOGGER.handlers[:] = [handler]
