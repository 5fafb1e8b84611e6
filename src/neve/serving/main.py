"""A server as a whole: listens, and serves in this process or in several others.

What is the same for all of them is the order of things: signals, addresses, the store, workers, and the way
back. A server fills in what it listens with and how it serves.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic

from neve.serving.listeners import Listeners
from neve.serving.manager import ServiceManager
from neve.serving.process import Course, Opened, raise_file_limit
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals
from neve.serving.workers import Watch, Workers
from neve.telemetry import LOGGER


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """How a worker is started; see ``process.serve_as_worker``."""

    command: Sequence[str]
    store: Mapping[str, Any]
    """What it is told to open, as JSON can express it."""


class Main(ABC, Generic[Opened]):
    """The process that somebody started: serves what it opens, or has workers do so."""

    serves = "requests"
    """What is in flight, for the log."""

    def __init__(self, workers: int, grace: float, manager: ServiceManager) -> None:
        self._count = workers
        self._grace = grace
        self._manager = manager
        self._aborts: list[Callable[[], None]] = []
        self._stops: list[Callable[[], None]] = []
        self._stopped = False
        self._deadline = Deadline(self._abort)

    def run(self, open_store: Callable[[], AbstractContextManager[Opened]], worker: WorkerStart) -> None:
        """Serves until a signal ends it. To be called in the main thread, once.

        Raises what opening the store and listening raise, and ``Unavailable`` if a worker does not start.
        """
        raise_file_limit()
        with contextlib.ExitStack() as stack:
            stack.enter_context(stop_signals(self.stop, self._abort))
            stack.callback(self._deadline.cancel)
            listeners = self.listen(stack)
            if self._count > 1:
                self._with_workers(listeners, open_store, worker)
            else:
                self._alone(listeners, open_store)

    # What a server fills in.

    @abstractmethod
    def listen(self, stack: contextlib.ExitStack) -> Listeners:
        """Claims the addresses, and makes what processes share; ``stack`` ends all of it."""

    @abstractmethod
    def serve(self, opened: Opened, course: Course) -> None:
        """Serves what was opened in this process, and returns when it has stopped."""

    @abstractmethod
    def workers(self, worker: WorkerStart) -> Workers:
        """The others, not started yet."""

    @abstractmethod
    def close_doors(self) -> None:
        """Lets in nobody else."""

    def answers(self) -> bool:
        """Whether what this process does besides serving goes on. Asked every few seconds; must not wait."""
        return True

    # What it has to call.

    def on_abort(self, abort: Callable[[], None]) -> None:
        """``abort`` is called before the process ends at once, to leave nothing behind."""
        self._aborts.append(abort)

    def stop(self) -> None:
        """Asks for the end. From any thread or signal handler."""
        self._stopped = True
        for stop in self._stops:
            stop()

    # The order of things.

    def _on_stop(self, stop: Callable[[], None]) -> None:
        self._stops.append(stop)
        if self._stopped:
            stop()

    def _abort(self) -> None:
        for abort in reversed(self._aborts):
            with contextlib.suppress(Exception):
                abort()

    def _stopping(self) -> None:
        status = f"stopping; {self.serves} in flight have {self._grace:g} s"
        LOGGER.info("%s", status)
        # With what ``Deadline`` and the end of workers may take.
        self._manager.stopping(status, self._grace + 2 * OVERTIME_SECONDS)
        self.close_doors()

    def _ready(self, listeners: Listeners) -> None:
        listeners.publish()
        self._manager.ready(listeners.status)

    def _beat(self) -> None:
        if self.answers():
            self._manager.alive()

    def _alone(self, listeners: Listeners, open_store: Callable[[], AbstractContextManager[Opened]]) -> None:
        stop = Stop()
        self._on_stop(stop.request)

        def stopping() -> None:
            self._deadline.set(self._grace + OVERTIME_SECONDS)
            self._stopping()

        with open_store() as opened:
            course = Course(
                stop=stop,
                ready=lambda: self._ready(listeners),
                stopping=stopping,
                beat=self._beat,
                beat_seconds=self._manager.beat_seconds,
            )
            self.serve(opened, course)

    def _with_workers(
        self,
        listeners: Listeners,
        open_store: Callable[[], AbstractContextManager[Opened]],
        worker: WorkerStart,
    ) -> None:
        with open_store():
            pass  # Made if it is missing; and what is the matter with it is told once.
        workers = self.workers(worker)
        self._on_stop(workers.request_stop)
        self._aborts.append(workers.kill)
        workers.watch = Watch(
            beat_seconds=self._manager.beat_seconds, alive=self._beat, serving=self._tell_how_many
        )
        serving = False
        try:
            if workers.start():
                self._ready(listeners)
                serving = True
                workers.supervise()
        finally:
            if serving:
                self._stopping()
            workers.stop(self._grace if serving else 0.0)

    def _tell_how_many(self, serving: int) -> None:
        if not self._stopped:
            self._manager.status(f"{serving} of {self._count} workers serve")
