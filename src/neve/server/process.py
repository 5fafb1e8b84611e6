"""One process that serves: its event loop, and its life as a worker of another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from neve.server.app import Binding, Daemon
from neve.server.figures import LAYOUT, Figures
from neve.server.private import abandon
from neve.server.settings import Endpoint, Settings, from_json
from neve.serving import process
from neve.serving.metrics import Row, inherited
from neve.serving.process import Course, run_loop, serve_until_stopped
from neve.serving.tls import renewed_credentials
from neve.store.services import Services
from neve.telemetry import count_with


def serve(
    services: Services,
    endpoints: Sequence[Endpoint],
    settings: Settings,
    course: Course,
    row: Row | None = None,
) -> None:
    """Serves until it is asked to stop and calls in flight have ended, or their grace time has. Counts in
    ``row``, if there is one.

    Raises what telling of its ``course`` raises, and ``Unavailable`` if it cannot listen.
    """
    if row is not None:
        count_with(row.count)
    try:
        run_loop(_serve(services, endpoints, settings, course, Figures(row)))
    finally:
        if row is not None:
            count_with(None)


async def _serve(
    services: Services, endpoints: Sequence[Endpoint], settings: Settings, course: Course, figures: Figures
) -> None:
    daemon = Daemon(services, settings.limits, read_only=settings.read_only, figures=figures)
    bindings = [_binding(endpoint, settings) for endpoint in endpoints]
    start = partial(daemon.start, bindings)
    await serve_until_stopped(course, start, daemon.stop, settings.grace, daemon.pulse.beats)


def _binding(endpoint: Endpoint, settings: Settings) -> Binding:
    if not endpoint.tls:
        return Binding(endpoint.address, admin=endpoint.admin)
    assert settings.tls is not None
    credentials = renewed_credentials(settings.tls, admin=endpoint.admin)
    return Binding(endpoint.address, credentials, endpoint.admin)


def serve_as_worker(open_store: Callable[[Mapping[str, Any]], AbstractContextManager[Services]]) -> bool:
    """Serves as the worker of the process that started this one; see ``serving.process``."""
    return process.serve_as_worker(open_store, _serve_as_told, orphaned=_orphaned)


def _serve_as_told(services: Services, configuration: Mapping[str, Any], course: Course) -> None:
    settings, endpoints = from_json(configuration)
    share = configuration.get("metrics")
    serve(services, endpoints, settings, course, None if share is None else Row(*inherited(LAYOUT, share)))


def _orphaned(configuration: Mapping[str, Any]) -> None:
    if configuration["folder"] is not None:
        abandon(configuration["folder"])
