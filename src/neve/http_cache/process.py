"""One process that serves: its event loop, and its life as a worker of another process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neve.errors import InvalidRequest, NeveError, Unavailable
from neve.http_cache.app import CacheApp
from neve.http_cache.metrics import Counters, SharedRows
from neve.http_cache.server import Server
from neve.http_cache.settings import Settings, from_json
from neve.serving.process import SWITCH_SECONDS, Parent, loop_factory
from neve.serving.stopping import OVERTIME_SECONDS, Deadline, Stop, stop_signals
from neve.store.services import Services

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

OpenStore = Callable[[], AbstractContextManager[Services]]
Pages = Callable[[Services, Settings], "Sequence[BaseRoute]"]
"""Makes the routes of the pages for people, in the event loop's thread."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a process has of what all processes of a cache share."""

    sockets: Sequence[socket.socket]
    """Bound; they belong to the process."""
    rows: SharedRows
    row: int


def serve(
    services: Services,
    settings: Settings,
    share: Share,
    pages: Pages,
    stop: Stop,
    *,
    ready: Callable[[], None],
    stopping: Callable[[], None],
) -> None:
    """Serves until it is asked to stop and requests in flight have ended, or their grace time has.

    ``ready`` is called when it listens, ``stopping`` when it was asked to stop. Raises what these raise,
    what reading the files that ``settings`` name raises, and ``Unavailable`` if it cannot listen.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(services, settings, share, pages, stop, ready, stopping))


async def _serve(
    services: Services,
    settings: Settings,
    share: Share,
    pages: Pages,
    stop: Stop,
    ready: Callable[[], None],
    stopping: Callable[[], None],
) -> None:
    counters = Counters(share.rows, share.row)
    app = CacheApp(services, settings, counters, pages(services, settings))
    grace = 0.0
    try:
        server = Server(app, settings, _tls(settings))
        try:
            await server.start(share.sockets)
            ready()
            grace = settings.grace
            await stop.wait()
            app.is_stopping = True
            stopping()
        finally:
            await server.stop(grace)
    finally:
        await asyncio.to_thread(app.close)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Of the files that were checked before anything listened. Raises ``Unavailable`` if they are not the
    same any more."""
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot use the certificate {settings.tls_certificate}: {error}") from error
    return context


def serve_as_worker(
    open_store: Callable[[Mapping[str, Any]], AbstractContextManager[Services]], pages: Pages
) -> bool:
    """Serves as the worker of the process that started this one. ``open_store`` gets from the
    configuration what belongs to the store. Returns whether it came to serve; if not, the parent knows
    why."""
    parent = Parent()
    # Whoever types Ctrl-C means the parent, which tells us. The signals were blocked until now.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))
    configuration = parent.configuration()
    settings = from_json(configuration["settings"])
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
            share = _inherited(configuration)
            with open_store(configuration["store"]) as services:
                serve(services, settings, share, pages, stop, ready=ready, stopping=stopping)
        except (NeveError, OSError) as error:
            if served:
                raise
            parent.report(failed=str(error))
        finally:
            deadline.cancel()
    return served


def share_for_worker(
    sockets: Sequence[socket.socket], others: Sequence[int], rows: SharedRows, row: int
) -> Any:
    """What ``serve_as_worker`` makes a ``Share`` of, as JSON can express it; ``others`` are descriptors
    that the worker inherits too, and that are none of its business."""
    own = [each.fileno() for each in sockets]
    return {
        "sockets": own,
        "unwanted": [each for each in others if each not in own],
        "metrics": rows.descriptor,
        "rows": rows.count,
        "row": row,
    }


def _inherited(configuration: Mapping[str, Any]) -> Share:
    try:
        share = configuration["share"]
        for descriptor in share["unwanted"]:
            os.close(descriptor)
        sockets = [socket.socket(fileno=descriptor) for descriptor in share["sockets"]]
        return Share(sockets=sockets, rows=SharedRows(share["rows"], share["metrics"]), row=share["row"])
    except KeyError as error:
        raise InvalidRequest(f"the configuration of a worker lacks {error}") from error
