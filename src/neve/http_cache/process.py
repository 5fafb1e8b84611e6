"""One process that serves: its event loop, and its life as a worker of another process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from neve.errors import InvalidRequest
from neve.http_cache.app import CacheApp
from neve.http_cache.metrics import LAYOUT, Counters
from neve.http_cache.server import Server
from neve.http_cache.settings import Settings, from_json
from neve.serving import process
from neve.serving.metrics import SharedRows, inherited
from neve.serving.process import Course, run_loop, serve_until_stopped
from neve.store.services import Services
from neve.telemetry import count_with

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

Pages = Callable[[Services, Settings], "Sequence[BaseRoute]"]
"""Makes the routes of the pages for people, in the event loop's thread."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a process has of what all processes of a cache share."""

    sockets: Sequence[socket.socket]
    """Bound; they belong to the process."""
    rows: SharedRows
    row: int


def serve(services: Services, settings: Settings, share: Share, pages: Pages, course: Course) -> None:
    """Serves until it is asked to stop and requests in flight have ended, or their grace time has.

    Raises what telling of its ``course`` raises, what reading the files that ``settings`` name raises, and
    ``Unavailable`` if it cannot listen.
    """
    run_loop(_serve(services, settings, share, pages, course))


async def _serve(services: Services, settings: Settings, share: Share, pages: Pages, course: Course) -> None:
    counters = Counters(share.rows, share.row)
    app = CacheApp(services, settings, counters, pages(services, settings))
    count_with(counters.count)
    try:
        server = Server(app, settings)
        start = partial(server.start, share.sockets)
        await serve_until_stopped(course, start, server.stop, settings.grace, app.pulse.beats)
    finally:
        await asyncio.to_thread(app.close)
        count_with(None)


def serve_as_worker(
    open_store: Callable[[Mapping[str, Any]], AbstractContextManager[Services]], pages: Pages
) -> bool:
    """Serves as the worker of the process that started this one; see ``serving.process``."""

    def as_told(services: Services, configuration: Mapping[str, Any], course: Course) -> None:
        serve(services, from_json(configuration["settings"]), _inherited(configuration), pages, course)

    return process.serve_as_worker(open_store, as_told)


def share_for_worker(
    sockets: Sequence[socket.socket], others: Sequence[int], rows: SharedRows, row: int
) -> Any:
    """What ``serve_as_worker`` makes a ``Share`` of, as JSON can express it; ``others`` are descriptors
    that the worker inherits too, and that are none of its business."""
    own = [each.fileno() for each in sockets]
    return {
        "sockets": own,
        "unwanted": [each for each in others if each not in own],
        "metrics": rows.share(row),
    }


def _inherited(configuration: Mapping[str, Any]) -> Share:
    try:
        share = configuration["share"]
        for descriptor in share["unwanted"]:
            os.close(descriptor)
        sockets = [socket.socket(fileno=descriptor) for descriptor in share["sockets"]]
        rows, row = inherited(LAYOUT, share["metrics"])
        return Share(sockets=sockets, rows=rows, row=row)
    except KeyError as error:
        raise InvalidRequest(f"the configuration of a worker lacks {error}") from error
