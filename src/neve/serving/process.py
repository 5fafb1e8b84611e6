"""One process of a server: its event loop, and what it has to do with its parent if it is a worker.

A worker reads its configuration as one line of JSON from the pipe that its parent holds. Any line after
it says: stop. The end of the pipe says that the parent is gone. On the other pipe it reports, a line
of JSON each: ``{"ready": true}``, ``{"stopping": true}``, ``{"failed": "why it does not start"}``; and
``{"alive": true}`` from its event loop every ``beat_seconds``, where the configuration has such.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from neve.errors import InvalidRequest, NeveError
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals

Opened = TypeVar("Opened")
"""What of a store a server works with."""

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


@dataclass(frozen=True, kw_only=True)
class Course:
    """Until when a process serves, and whom it tells."""

    stop: Stop
    ready: Callable[[], None]
    """Is called when it listens."""
    stopping: Callable[[], None]
    """Is called when it was asked to stop."""
    beat: Callable[[], object] = lambda: None
    """Is called in the event loop every ``beat_seconds``, for whoever wants to know that it turns, and that
    the threads behind it work."""
    beat_seconds: float | None = None


def run_loop(serving: Coroutine[Any, Any, None]) -> None:
    """Runs the event loop of a process that serves, to the end of ``serving``."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serving)


async def serve_until_stopped(
    course: Course,
    start: Callable[[], Awaitable[object]],
    end: Callable[[float], Awaitable[None]],
    grace: float,
    pulse: Callable[[float], bool] = lambda seconds: True,
) -> None:
    """Serves from ``start`` until it is asked to stop. Then, and after any failure, ``end`` is told how
    many seconds what is in flight has: ``grace``, if there can be anything. ``pulse`` says every so many
    seconds whether the threads behind the event loop work; see ``pools.Pulse``."""
    left = 0.0
    beating: asyncio.Task[None] | None = None
    try:
        await start()
        course.ready()
        beating = asyncio.create_task(_beat(course, pulse))
        left = grace
        await course.stop.wait()
        course.stopping()
    finally:
        await end(left)
        if beating is not None:
            beating.cancel()


async def _beat(course: Course, pulse: Callable[[float], bool]) -> None:
    while course.beat_seconds is not None:
        if pulse(course.beat_seconds):
            course.beat()
        await asyncio.sleep(course.beat_seconds)


class Parent:
    """The two pipes to the parent."""

    def __init__(self) -> None:
        self._commands = os.dup(0)
        self._reports = os.dup(1)
        # What others write to stdout is no report.
        os.dup2(2, 1)
        self._said_more = False
        self.gone = False
        self.knows_ready = False
        """Whether it was told that this process serves."""

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
        self.knows_ready = self.knows_ready or "ready" in what
        line = memoryview(json.dumps(what).encode() + b"\n")
        try:
            while line:
                line = line[os.write(self._reports, line) :]
        except OSError:
            pass

    def course(self, stop: Stop, stopping: Callable[[], None], beat_seconds: float | None) -> Course:
        """What a process does that is to report how it goes."""
        return Course(
            stop=stop,
            ready=lambda: self.report(ready=True),
            stopping=stopping,
            beat=lambda: self.report(alive=True),
            beat_seconds=beat_seconds,
        )

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


def serve_as_worker(
    open_store: Callable[[Mapping[str, Any]], AbstractContextManager[Opened]],
    serve: Callable[[Opened, Mapping[str, Any], Course], None],
    *,
    orphaned: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> bool:
    """Serves as the worker of the process that started this one. ``open_store`` gets from the
    configuration what belongs to the store, ``serve`` all of it; so does ``orphaned``, at the end, if the
    parent is gone. Returns whether it came to serve; if not, the parent knows why."""
    parent = Parent()
    # Whoever types Ctrl-C means the parent, which tells us. The signals were blocked until now.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))
    configuration = parent.configuration()
    stop, deadline = Stop(), Deadline(lambda: None)

    def stopping() -> None:
        parent.report(stopping=True)
        deadline.set(configuration["settings"]["grace"] + OVERTIME_SECONDS)

    course = parent.course(stop, stopping, configuration.get("beat_seconds"))
    with stop_signals(stop.request, lambda: None):
        parent.listen(stop)
        try:
            with open_store(configuration["store"]) as opened:
                serve(opened, configuration, course)
        except (NeveError, OSError) as error:
            if parent.knows_ready:
                raise
            parent.report(failed=str(error))
        finally:
            deadline.cancel()
            if parent.gone:
                orphaned(configuration)
    return parent.knows_ready
