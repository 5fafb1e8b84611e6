"""The cache as a whole: listens, and serves in this process or in several others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neve.http_cache.listen import Listeners, ListenOptions
from neve.http_cache.metrics import SharedRows
from neve.http_cache.process import OpenStore, Pages, Share, serve, share_for_worker
from neve.http_cache.settings import Settings, to_json
from neve.serving.process import raise_file_limit
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals
from neve.serving.workers import Workers
from neve.telemetry import LOGGER


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
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


def run_cache(
    options: CacheOptions,
    environment: MutableMapping[str, str],
    open_store: OpenStore,
    pages: Pages,
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
            run.alone(open_store, pages)


class _Run:
    """What there is while a cache runs."""

    def __init__(
        self, options: CacheOptions, environment: MutableMapping[str, str], stack: contextlib.ExitStack
    ) -> None:
        self._settings = options.settings
        self._count = options.workers
        self._aborts: list[Callable[[], None]] = []
        self._stop: Callable[[], None] | None = None
        self._stopped = False
        stack.enter_context(stop_signals(self._request_stop, self._abort))
        self._deadline = Deadline(self._abort)
        stack.callback(self._deadline.cancel)
        self._listeners = Listeners(options.listen, options.workers, environment)
        stack.callback(self._listeners.close)
        self._aborts.append(self._listeners.withdraw)
        self._rows = SharedRows(options.workers)
        stack.callback(self._rows.close)

    def _request_stop(self) -> None:
        self._stopped = True
        if self._stop is not None:
            self._stop()

    def _on_stop(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        if self._stopped:
            stop()

    def _abort(self) -> None:
        """Leaves nothing behind; the process is about to end."""
        for abort in reversed(self._aborts):
            with contextlib.suppress(Exception):
                abort()

    def _publish(self) -> None:
        self._listeners.publish(" (TLS)" if self._settings.tls_certificate is not None else "")

    def _close_doors(self) -> None:
        LOGGER.info("stopping; requests in flight have %g s", self._settings.grace)
        self._listeners.close()

    def alone(self, open_store: OpenStore, pages: Pages) -> None:
        """Serves in this process."""
        stop = Stop()
        self._on_stop(stop.request)

        def stopping() -> None:
            self._deadline.set(self._settings.grace + OVERTIME_SECONDS)
            self._close_doors()

        with open_store() as services:
            own = [each.dup() for each in self._listeners.sockets(0)]
            share = Share(sockets=own, rows=self._rows, row=0)
            serve(services, self._settings, share, pages, stop, ready=self._publish, stopping=stopping)

    def with_workers(self, open_store: OpenStore, worker: WorkerStart) -> None:
        """Serves in other processes; this one watches them."""
        with open_store():
            pass  # Made if it is missing; and what is the matter with it is told once.
        descriptors = self._listeners.all_descriptors()

        def configuration(name: str) -> Mapping[str, Any]:
            number = int(name.partition("-")[0])
            sockets = self._listeners.sockets(number)
            return {
                "store": worker.store,
                "settings": to_json(self._settings),
                "share": share_for_worker(sockets, descriptors, self._rows, number),
            }

        workers = Workers(
            self._count,
            worker.command,
            configuration,
            descriptors=[*descriptors, self._rows.descriptor],
        )
        self._on_stop(workers.request_stop)
        self._aborts.append(workers.kill)
        serving = False
        try:
            if workers.start():
                self._publish()
                serving = True
                workers.supervise()
        finally:
            if serving:
                self._close_doors()
            workers.stop(self._settings.grace if serving else 0.0)
