"""What a cache counts; the memory for it is in ``serving.metrics``."""

from __future__ import annotations

from neve.http_cache.threads import POOLS
from neve.serving.metrics import Family, Layout, Row, label
from neve.serving.pools import Queued

ROUTES = (
    *("nix-cache-info", "narinfo", "nar", "ls", "log", "realisation", "debuginfo"),
    *("metrics", "healthz", "page"),
)
"""What requests are told apart by. Few and fixed: whoever sends requests must not make series."""

METHODS = ("read", "write")

_STATUSES = (
    *(200, 201, 206, 304, 400, 401, 403, 404, 405, 408, 409, 411, 412, 413, 415, 416, 431),
    *(500, 501, 502, 503, 507),
)
_OTHER = "other"
_STATUS_PLACES = {status: place for place, status in enumerate(_STATUSES)}

_LABELS = (label("route", ROUTES), label("method", METHODS))

_REQUESTS = Family(
    "counter",
    "neve_http_requests",
    "Requests that were answered.",
    *_LABELS,
    label("status", [*map(str, _STATUSES), _OTHER]),
)
_SECONDS = Family("histogram", "neve_http_request_seconds", "How long they took, to the last byte.", *_LABELS)
_SENT = Family("counter", "neve_http_sent_bytes", "Bytes of bodies sent.")
_RECEIVED = Family("counter", "neve_http_received_bytes", "Bytes of bodies received.")
_ACTIVE = Family("gauge", "neve_http_active_requests", "Requests under way.")
_UPLOADS = Family("gauge", "neve_http_active_uploads", "NARs being uploaded.")
_QUEUED = Family(
    "gauge", "neve_http_queued_work", "Pieces of work that wait for a thread.", label("pool", POOLS)
)

LAYOUT = Layout(_REQUESTS, _SECONDS, _SENT, _RECEIVED, _ACTIVE, _UPLOADS, _QUEUED)

SENT, RECEIVED, ACTIVE, UPLOADS = (each.start for each in (_SENT, _RECEIVED, _ACTIVE, _UPLOADS))
"""Bytes of bodies; requests under way; NARs being uploaded."""


class Counters(Row):
    """The row of one process; belongs to its event loop."""

    def request(self, route: int, method: int, status: int, seconds: float, sent: int) -> None:
        """Counts a request that has ended; ``route`` and ``method`` by their places in the lists."""
        self.add(_REQUESTS.place(route, method, _STATUS_PLACES.get(status, len(_STATUSES))))
        self.observe(_SECONDS.place(route, method), seconds)
        self.add(SENT, sent)

    def queued(self, pool: str) -> Queued:
        """Is told how much waits for the threads of one of ``POOLS``."""
        place = _QUEUED.place(POOLS.index(pool))
        return lambda count: self.set(place, count)

    def text(self) -> bytes:
        """The figures of all processes, as Prometheus reads them."""
        return self.rows.text()
