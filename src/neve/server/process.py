"""One process that serves: its event loop, and its life as a worker of another process.

A worker reads its configuration as one line of JSON from the pipe that its parent holds. Any line after
it says: stop. The end of the pipe says that the parent is gone. On the other pipe it reports, a line
of JSON each: ``{"ready": true}``, ``{"stopping": true}``, ``{"failed": "why it does not start"}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from neve.errors import InvalidRequest, NeveError
from neve.server.app import Binding, Daemon
from neve.server.private import abandon
from neve.server.settings import Endpoint, Settings, from_json
from neve.server.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals
from neve.store.services import Services

_SWITCH_SECONDS = 0.001
"""Threads that compress must not hold up the event loop for longer."""
_ORPHAN_SECONDS = 5.0
"""How long a worker may take to end when its parent is gone."""
_READ_BYTES = 65536

OpenStore = Callable[[], AbstractContextManager[Services]]


def serve(
    services: Services,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    stop: Stop,
    *,
    ready: Callable[[], None],
    stopping: Callable[[], None],
) -> None:
    """Serves until it is asked to stop and calls in flight have ended, or their grace time has.

    ``ready`` is called when it listens, ``stopping`` when it was asked to stop. Raises what these raise,
    and ``Unavailable`` if it cannot listen.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(services, endpoints, settings, stop, ready, stopping))


async def _serve(
    services: Services,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    stop: Stop,
    ready: Callable[[], None],
    stopping: Callable[[], None],
) -> None:
    daemon = Daemon(services, settings.limits, read_only=settings.read_only)
    grace = 0.0
    try:
        await daemon.start([_binding(endpoint, settings) for endpoint in endpoints])
        ready()
        grace = settings.grace
        await stop.wait()
        stopping()
    finally:
        await daemon.stop(grace)


def _binding(endpoint: Endpoint, settings: Settings) -> Binding:
    if not endpoint.tls:
        return Binding(endpoint.address, admin=endpoint.admin)
    assert settings.tls is not None
    return Binding(endpoint.address, settings.tls.credentials(admin=endpoint.admin), endpoint.admin)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Parent:
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


def serve_as_worker(open_store: Callable[[Mapping[str, Any]], AbstractContextManager[Services]]) -> bool:
    """Serves as the worker of the process that started this one. ``open_store`` gets from the
    configuration what belongs to the store. Returns whether it came to serve; if not, the parent knows
    why."""
    parent = _Parent()
    # Whoever types Ctrl-C means the parent, which tells us. The signals were blocked until now.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))
    configuration = parent.configuration()
    settings, endpoints = from_json(configuration)
    stop = Stop()
    deadline = Deadline(lambda: None)
    served = False

    def ready() -> None:
        nonlocal served
        served = True
        parent.report(ready=True)

    def stopping() -> None:
        parent.report(stopping=True)
        deadline.set(settings.grace + OVERTIME_SECONDS)

    with stop_signals(stop.request, lambda: None):
        parent.listen(stop)
        try:
            with open_store(configuration["store"]) as services:
                serve(services, endpoints, settings, stop, ready=ready, stopping=stopping)
        except (NeveError, OSError) as error:
            if served:
                raise
            parent.report(failed=str(error))
        finally:
            deadline.cancel()
            if parent.gone and configuration["folder"] is not None:
                abandon(configuration["folder"])
    return served
