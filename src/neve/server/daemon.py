"""The daemon as a whole: its addresses, and how connections get to its processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from neve.errors import Unavailable
from neve.server.listen import Listeners, ListenOptions
from neve.server.private import PrivateSockets
from neve.server.settings import Endpoint, Settings, to_json
from neve.server.splice import Splicer
from neve.serving.main import Main, WorkerStart
from neve.serving.manager import ServiceManager
from neve.serving.metrics import Row, SharedRows
from neve.serving.metrics_server import MetricsServer
from neve.serving.process import Course
from neve.serving.workers import Workers
from neve.store.services import Services

_MYSELF = "0"


@dataclass(frozen=True, kw_only=True)
class DaemonOptions:
    """Where and how to serve."""

    listen: ListenOptions = field(default_factory=ListenOptions)
    settings: Settings = field(default_factory=Settings)
    workers: int = 1


def run_daemon(
    options: DaemonOptions,
    environment: MutableMapping[str, str],
    open_store: Callable[[], AbstractContextManager[Services]],
    worker: WorkerStart,
) -> None:
    """Serves until a signal ends it. ``environment`` says which sockets systemd passed on, and what it wants
    to know.

    Raises what opening the store raises, and ``InvalidRequest``, ``Conflict``, ``PermissionDenied`` and
    ``Unavailable`` if it cannot listen. To be called in the main thread.
    """
    main = _Main(options, environment)
    main.run(open_store, worker)
    if main.failed:
        raise Unavailable("connections can be carried no more")


class _Main(Main[Services]):
    serves = "calls"

    def __init__(self, options: DaemonOptions, environment: MutableMapping[str, str]) -> None:
        super().__init__(options.workers, options.settings.grace, ServiceManager(environment))
        self._options = options
        self._environment = environment
        self.failed = False

    def listen(self, stack: contextlib.ExitStack) -> Listeners:
        self._listeners = Listeners(self._options.listen, self._options.workers, self._environment)
        stack.callback(self._listeners.close)
        self.on_abort(self._listeners.withdraw)
        self._carrier = _Carrier(self._listeners, self._fail)
        stack.callback(self._carrier.close)
        self.on_abort(self._carrier.remove_folder)
        self._rows: SharedRows | None = None
        if self._listeners.metrics:
            self._rows = self._shared_rows(stack)
            server = MetricsServer(self._listeners.metrics, self._rows.text)
            stack.callback(server.close)
        return self._listeners

    def _shared_rows(self, stack: contextlib.ExitStack) -> SharedRows:
        from neve.server.figures import LAYOUT

        rows = SharedRows(LAYOUT, self._options.workers)
        stack.callback(rows.close)
        return rows

    def _fail(self) -> None:
        self.failed = True
        self.stop()

    def close_doors(self) -> None:
        self._listeners.withdraw()
        self._carrier.stop_accepting()

    def answers(self) -> bool:
        return self._carrier.answers()

    def _endpoints(self, name: str) -> list[Endpoint]:
        return [*self._listeners.endpoints(), *self._carrier.endpoints(name)]

    def serve(self, opened: Services, course: Course) -> None:
        from neve.server.process import serve

        def ready() -> None:
            self._carrier.add(_MYSELF)
            course.ready()

        own = replace(course, ready=ready)
        row = None if self._rows is None else Row(self._rows, 0)
        serve(opened, self._endpoints(_MYSELF), self._options.settings, own, row)

    def workers(self, worker: WorkerStart) -> Workers:
        rows = self._rows

        def configuration(name: str) -> Mapping[str, Any]:
            slot = int(name.partition("-")[0])
            return {
                "store": worker.store,
                "folder": self._carrier.folder,
                "metrics": None if rows is None else rows.share(slot),
                **to_json(self._options.settings, self._endpoints(name)),
            }

        return Workers(
            self._options.workers,
            worker.command,
            configuration,
            descriptors=[] if rows is None else [rows.descriptor],
            ready=lambda ready: self._carrier.add(ready.name),
            gone=lambda gone: self._carrier.remove(gone.name),
        )


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

    def answers(self) -> bool:
        """Whether it still carries."""
        return self._splicer is None or self._splicer.answers()

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
