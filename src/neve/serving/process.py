"""One process of a server: its event loop, and what it has to do with its parent if it is a worker.

A worker reads its configuration as one line of JSON from the pipe that its parent holds. Any line after
it says: stop. The end of the pipe says that the parent is gone. On the other pipe it reports, a line
of JSON each: ``{"ready": true}``, ``{"stopping": true}``, ``{"failed": "why it does not start"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

from neve.errors import InvalidRequest
from neve.serving.stopping import Stop

SWITCH_SECONDS = 0.001
"""Threads that compress must not hold up the event loop for longer."""
_ORPHAN_SECONDS = 5.0
"""How long a worker may take to end when its parent is gone."""
_READ_BYTES = 65536


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def raise_file_limit() -> None:
    """Connections are descriptors: as many as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Parent:
    """The two pipes to the parent."""

    def __init__(self) -> None:
        self._commands = os.dup(0)
        self._reports = os.dup(1)
        # What others write to stdout is no report.
        os.dup2(2, 1)
        self._said_more = False
        self.gone = False

    def configuration(self) -> dict[str, Any]:
        """What it says first. Raises ``InvalidRequest`` if that is nothing, or nothing of use."""
        line = b""
        while b"\n" not in line:
            if not (part := os.read(self._commands, _READ_BYTES)):
                raise InvalidRequest("a worker is started by the daemon, which says what to do")
            line += part
        line, _, more = line.partition(b"\n")
        self._said_more = bool(more)
        document: dict[str, Any] = json.loads(line)
        return document

    def report(self, **what: object) -> None:
        """Tells it something; nothing happens if it is gone."""
        line = memoryview(json.dumps(what).encode() + b"\n")
        try:
            while line:
                line = line[os.write(self._reports, line) :]
        except OSError:
            pass

    def listen(self, stop: Stop) -> None:
        """Has a thread ask to stop when the parent says so or is gone; then the process ends soon,
        come what may."""
        if self._said_more:
            stop.request()
        threading.Thread(target=self._listen, args=(stop,), name="neve-parent", daemon=True).start()

    def _listen(self, stop: Stop) -> None:
        while os.read(self._commands, _READ_BYTES):
            stop.request()
        self.gone = True
        stop.request()
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)
