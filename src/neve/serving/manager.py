"""What the service manager that has started this process wants to know of it: sd_notify(3).

Datagrams of a few lines, ``NAME=value`` each, to a socket that it names in the environment. Where there is
none, nothing happens; and nothing that happens to it ever stops those who serve.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from neve.telemetry import LOGGER

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_BEATS = 4
"""In the time after which the manager gives a silent process up. It asks for two at least."""

_SEND_SECONDS = 5.0
"""A manager that is busy gets so long to make room for a datagram that counts."""

_STATUS_CHARACTERS = 200
"""Longest status; it is for a line on somebody's screen."""


class ServiceManager:
    """The service manager, if there is one that listens. May be used from any thread."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Takes its variables out of ``environment``: what we start is not who it waits for."""
        values = {} if environment is None else {name: environment.pop(name, "") for name in _VARIABLES}
        self._address = _address(values.get("NOTIFY_SOCKET", ""))
        self.beat_seconds: float | None = None
        """How often it wants to hear that all is well; None: it does not."""
        if self._address is not None and values["WATCHDOG_PID"] in ("", str(os.getpid())):
            self.beat_seconds = _beat_seconds(values["WATCHDOG_USEC"])

    def ready(self, status: str) -> None:
        """Everything that clients need is there."""
        self._send(f"READY=1\n{_status(status)}")

    def stopping(self, status: str, seconds: float) -> None:
        """It was asked to end, or ends; that takes at most so many ``seconds``."""
        microseconds = math.ceil(seconds * 1_000_000)
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={microseconds}\n{_status(status)}")

    def status(self, status: str) -> None:
        """How it goes, for people."""
        self._send(_status(status))

    def alive(self) -> None:
        """All is well. To be called every ``beat_seconds``, by nobody who would do so if it were not true;
        never waits."""
        self._send("WATCHDOG=1", wait=False)

    def _send(self, text: str, *, wait: bool = True) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_SECONDS if wait else 0)
                sender.sendto(text.encode(errors="replace"), self._address)
        except OSError as error:
            LOGGER.debug("the service manager cannot be told anything: %s", error.strerror or error)


def _address(text: str) -> str | bytes | None:
    """Where to send; ``@`` at the beginning stands for a NUL: a name of a socket that is no path."""
    if text.startswith("/"):
        return text
    if text.startswith("@") and len(text) > 1:
        return b"\0" + os.fsencode(text[1:])
    if text:
        LOGGER.warning("NOTIFY_SOCKET is %r, of a kind that is not known here: nobody is told anything", text)
    return None


def _beat_seconds(microseconds: str) -> float | None:
    if not microseconds:
        return None
    if not (microseconds.isascii() and microseconds.isdecimal() and 0 < len(microseconds) < 16):
        LOGGER.warning("WATCHDOG_USEC is %r, no number of microseconds: there is no watchdog", microseconds)
        return None
    return int(microseconds) / 1_000_000 / _BEATS or None


def _status(text: str) -> str:
    line = " ".join(text.split())
    return f"STATUS={line if len(line) <= _STATUS_CHARACTERS else line[: _STATUS_CHARACTERS - 1] + '…'}"


class Beat:
    """Something that is to be done every so many seconds, by a loop that waits for other things too. Without
    ``seconds``, never."""

    def __init__(self, seconds: float | None, function: Callable[[], object]) -> None:
        self._seconds = seconds
        self._function = function
        self._next = time.monotonic()

    def left(self) -> float | None:
        """How many seconds the loop may wait; None: for ever."""
        return None if self._seconds is None else max(0.0, self._next - time.monotonic())

    def beat(self) -> None:
        """Does it if it is time."""
        if self._seconds is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._function()
