"""The cache as a whole: its sockets, and what its processes share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from neve.http_cache.listen import Listeners, ListenOptions
from neve.http_cache.metrics import LAYOUT
from neve.http_cache.process import Pages, Share, serve, share_for_worker
from neve.http_cache.settings import Settings, to_json
from neve.serving.main import Main, WorkerStart
from neve.serving.manager import ServiceManager
from neve.serving.metrics import SharedRows
from neve.serving.process import Course
from neve.serving.workers import Workers
from neve.store.services import Services


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where and how to serve."""

    listen: ListenOptions = field(default_factory=ListenOptions)
    settings: Settings = field(default_factory=Settings)
    workers: int = 1


def run_cache(
    options: CacheOptions,
    environment: MutableMapping[str, str],
    open_store: Callable[[], AbstractContextManager[Services]],
    pages: Pages,
    worker: WorkerStart,
) -> None:
    """Serves until a signal ends it. ``environment`` says which sockets systemd passed on, and what it wants
    to know.

    Raises what opening the store raises, and ``InvalidRequest``, ``Conflict``, ``PermissionDenied`` and
    ``Unavailable`` if it cannot listen. To be called in the main thread.
    """
    _Main(options, environment, pages).run(open_store, worker)


class _Main(Main[Services]):
    def __init__(self, options: CacheOptions, environment: MutableMapping[str, str], pages: Pages) -> None:
        super().__init__(options.workers, options.settings.grace, ServiceManager(environment))
        self._options = options
        self._environment = environment
        self._pages = pages

    def listen(self, stack: contextlib.ExitStack) -> Listeners:
        options, tls = self._options, self._options.settings.tls is not None
        self._listeners = Listeners(options.listen, options.workers, self._environment, tls=tls)
        stack.callback(self._listeners.close)
        self.on_abort(self._listeners.withdraw)
        self._rows = SharedRows(LAYOUT, options.workers)
        stack.callback(self._rows.close)
        return self._listeners

    def close_doors(self) -> None:
        self._listeners.close()

    def serve(self, opened: Services, course: Course) -> None:
        own = [each.dup() for each in self._listeners.sockets(0)]
        share = Share(sockets=own, rows=self._rows, row=0)
        serve(opened, self._options.settings, share, self._pages, course)

    def workers(self, worker: WorkerStart) -> Workers:
        descriptors = self._listeners.all_descriptors()

        def configuration(name: str) -> Mapping[str, Any]:
            number = int(name.partition("-")[0])
            sockets = self._listeners.sockets(number)
            return {
                "store": worker.store,
                "settings": to_json(self._options.settings),
                "share": share_for_worker(sockets, descriptors, self._rows, number),
            }

        inherited = [*descriptors, self._rows.descriptor]
        return Workers(self._options.workers, worker.command, configuration, descriptors=inherited)
