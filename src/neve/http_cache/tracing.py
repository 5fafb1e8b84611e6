"""A span for each request that has to do with the store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from neve import telemetry
from neve.http_cache.exchange import Exchange
from neve.telemetry import SERVER

_UNTOLD = ("metrics", "healthz")
"""Routes for those who only watch."""

_SHOWN = 1000
"""Characters of a path, which clients choose."""

_METHODS = ("GET", "HEAD", "PUT")
"""Whatever else clients write there is one word for us."""


@contextlib.contextmanager
def _traced(exchange: Exchange, route: str) -> Iterator[None]:
    method = exchange.method if exchange.method in _METHODS else "_OTHER"
    # Not the query: it belongs to those who may see it.
    path = exchange.path[:_SHOWN]
    attributes = {"http.request.method": method, "http.route": route, "url.path": path}
    parent = telemetry.received(exchange.scope["headers"])
    with telemetry.span(f"{method} {route}", attributes, SERVER, parent) as span:
        yield
        span.set("http.response.status_code", exchange.status)
        span.set("http.response.body.size", exchange.sent)
        if exchange.status >= 500:
            span.fail(str(exchange.status))


_NOTHING = contextlib.nullcontext()


def traced(exchange: Exchange, route: str) -> contextlib.AbstractContextManager[None]:
    """The block is the answer to a request of a route."""
    return _traced(exchange, route) if telemetry.is_tracing() and route not in _UNTOLD else _NOTHING
