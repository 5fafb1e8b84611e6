"""The daemon as a whole: listens, and serves in this process or in several others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neve.errors import Unavailable
from neve.server.listen import Listeners, ListenOptions
from neve.server.private import PrivateSockets
from neve.server.settings import Endpoint, Settings, to_json
from neve.server.splice import Splicer
from neve.serving.process import raise_file_limit
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals
from neve.serving.workers import Workers
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.server.process import OpenStore

_MYSELF = "0"


@dataclass(frozen=True, kw_only=True)
class DaemonOptions:
    """Where and how to serve."""

    listen: ListenOptions = field(default_factory=ListenOptions)
    settings: Settings = field(default_factory=Settings)
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """How a worker is started; see ``process.serve_as_worker``."""

    command: Sequence[str]
    store: Mapping[str, Any]
    """What it is told to open, as JSON can express it."""


def run_daemon(
    options: DaemonOptions,
    environment: MutableMapping[str, str],
    open_store: OpenStore,
    worker: WorkerStart,
) -> None:
    """Serves until a signal ends it. ``environment`` says which sockets systemd passed on.

    Raises what opening the store raises, and ``InvalidRequest``, ``Conflict``, ``PermissionDenied`` and
    ``Unavailable`` if it cannot listen. To be called in the main thread.
    """
    raise_file_limit()
    with contextlib.ExitStack() as stack:
        run = _Run(options, environment, stack)
        if options.workers > 1:
            run.with_workers(open_store, worker)
        else:
            run.alone(open_store)
        if run.failed:
            raise Unavailable("connections can be carried no more")


class _Run:
    """What there is while a daemon runs."""

    def __init__(
        self, options: DaemonOptions, environment: MutableMapping[str, str], stack: contextlib.ExitStack
    ) -> None:
        self._settings = options.settings
        self._count = options.workers
        self._aborts: list[Callable[[], None]] = []
        self._stops: list[Callable[[], None]] = []
        self._stopped = False
        self.failed = False
        stack.enter_context(stop_signals(self._stop, self._abort))
        self._deadline = Deadline(self._abort)
        stack.callback(self._deadline.cancel)
        self._listeners = Listeners(options.listen, options.workers, environment)
        stack.callback(self._listeners.close)
        self._aborts.append(self._listeners.withdraw)
        self._carrier = _Carrier(self._listeners, self._fail)
        stack.callback(self._carrier.close)
        self._aborts.append(self._carrier.remove_folder)

    def _stop(self) -> None:
        self._stopped = True
        for stop in self._stops:
            stop()

    def _on_stop(self, stop: Callable[[], None]) -> None:
        self._stops.append(stop)
        if self._stopped:
            stop()

    def _fail(self) -> None:
        self.failed = True
        self._stop()

    def _abort(self) -> None:
        """Leaves nothing behind; the process is about to end."""
        for abort in reversed(self._aborts):
            with contextlib.suppress(Exception):
                abort()

    def _close_doors(self) -> None:
        LOGGER.info("stopping; calls in flight have %g s", self._settings.grace)
        self._listeners.withdraw()
        self._carrier.stop_accepting()

    def _endpoints(self, name: str) -> list[Endpoint]:
        return [*self._listeners.endpoints(), *self._carrier.endpoints(name)]

    def alone(self, open_store: OpenStore) -> None:
        """Serves in this process."""
        from neve.server.process import serve

        stop = Stop()
        self._on_stop(stop.request)

        def ready() -> None:
            self._carrier.add(_MYSELF)
            self._listeners.publish()

        def stopping() -> None:
            self._deadline.set(self._settings.grace + OVERTIME_SECONDS)
            self._close_doors()

        with open_store() as services:
            serve(services, self._endpoints(_MYSELF), self._settings, stop, ready=ready, stopping=stopping)

    def with_workers(self, open_store: OpenStore, worker: WorkerStart) -> None:
        """Serves in other processes; this one watches them, and carries connections."""
        with open_store():
            pass  # Made if it is missing; and what is the matter with it is told once.
        workers = Workers(
            self._count,
            worker.command,
            lambda name: {
                "store": worker.store,
                "folder": self._carrier.folder,
                **to_json(self._settings, self._endpoints(name)),
            },
            ready=lambda ready: self._carrier.add(ready.name),
            gone=lambda gone: self._carrier.remove(gone.name),
        )
        self._on_stop(workers.request_stop)
        self._aborts.append(workers.kill)
        serving = False
        try:
            if workers.start():
                self._listeners.publish()
                serving = True
                workers.supervise()
        finally:
            if serving:
                self._close_doors()
            workers.stop(self._settings.grace if serving else 0.0)


class _Carrier:
    """Carries connections to private sockets, if there is a listener that needs it."""

    def __init__(self, listeners: Listeners, failed: Callable[[], None]) -> None:
        self._routes = listeners.routes
        self._private: PrivateSockets | None = None
        self._splicer: Splicer | None = None
        if self._routes:
            self._private = PrivateSockets()
            self._splicer = Splicer(failed)
            listeners.attach(self._splicer)

    @property
    def folder(self) -> str | None:
        """Where the private sockets are."""
        return None if self._private is None else self._private.folder

    def endpoints(self, name: str) -> list[Endpoint]:
        """The private sockets of a process."""
        return [] if self._private is None else self._private.endpoints(name, self._routes)

    def add(self, name: str) -> None:
        """A process listens at its private sockets."""
        if self._private is not None and self._splicer is not None:
            self._splicer.add_backend(name, self._private.paths(name, self._routes))

    def remove(self, name: str) -> None:
        """It takes no new connections."""
        if self._private is not None and self._splicer is not None:
            self._splicer.remove_backend(name)
            self._private.remove(name, self._routes)

    def stop_accepting(self) -> None:
        """Nobody else is let in."""
        if self._splicer is not None:
            self._splicer.stop_accepting()

    def remove_folder(self) -> None:
        """Removes the private sockets."""
        if self._private is not None:
            self._private.close()

    def close(self) -> None:
        """Ends, when what it carries to has ended."""
        if self._splicer is not None:
            self._splicer.close()
        self.remove_folder()
