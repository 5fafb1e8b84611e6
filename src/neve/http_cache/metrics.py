"""Figures of all processes of a cache, for Prometheus.

Every process counts in a row of its own of one piece of shared memory: an array of doubles, whose
places are the same in each. So counting is an addition, whoever is asked for the figures adds up the rows
of all, and a process that is started in the place of another goes on with its row. ``prometheus_client``
only writes them down.
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

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
_STATUS_LABELS = (*map(str, _STATUSES), _OTHER)
_STATUS_PLACES = {status: place for place, status in enumerate(_STATUSES)}

BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
"""Bounds of the durations in seconds."""

SENT, RECEIVED, ACTIVE, UPLOADS = range(4)
"""Bytes of bodies; requests under way; NARs being uploaded."""

_SCALARS = 4
_GAUGES = (ACTIVE, UPLOADS)

# A line of a route: for each method, requests by status, then durations: their buckets, the rest, their sum.
_PER_METHOD = len(_STATUS_LABELS) + len(BUCKETS) + 2
_PER_ROUTE = len(METHODS) * _PER_METHOD
_ROW = _SCALARS + len(ROUTES) * _PER_ROUTE
_ROW_BYTES = 8 * _ROW


class Counters:
    """The row of one process; belongs to its event loop."""

    def __init__(self, rows: SharedRows, number: int) -> None:
        self._rows = rows
        self._row = rows.row(number)
        # What was under way in a process that is gone, is not any more.
        for place in _GAUGES:
            self._row[place] = 0.0

    def add(self, place: int, amount: float = 1.0) -> None:
        """Adds to one of the figures that have no route."""
        self._row[place] += amount

    def request(self, route: int, method: int, status: int, seconds: float, sent: int) -> None:
        """Counts a request that has ended; ``route`` and ``method`` by their places in the lists."""
        row = self._row
        start = _SCALARS + route * _PER_ROUTE + method * _PER_METHOD
        row[start + _STATUS_PLACES.get(status, len(_STATUSES))] += 1
        start += len(_STATUS_LABELS)
        row[start + bisect.bisect_left(BUCKETS, seconds)] += 1
        row[start + len(BUCKETS) + 1] += seconds
        row[SENT] += sent

    def text(self) -> bytes:
        """The figures of all processes, as Prometheus reads them."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self._rows.total()))
        return generate_latest(registry)


class SharedRows:
    """The memory. Processes get it as the descriptor that they inherit."""

    def __init__(self, count: int, descriptor: int | None = None) -> None:
        """Makes it, or, with ``descriptor``, uses what the parent made."""
        self.count = count
        self.descriptor = os.memfd_create("neve-metrics") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, count * _ROW_BYTES)
        self._map = mmap.mmap(self.descriptor, count * _ROW_BYTES)

    def row(self, number: int) -> memoryview[float]:
        """The row of a process, numbered from 0."""
        return memoryview(self._map)[number * _ROW_BYTES : (number + 1) * _ROW_BYTES].cast("d")

    def total(self) -> list[float]:
        """All rows added up."""
        return [sum(values) for values in zip(*(self.row(n) for n in range(self.count)), strict=True)]

    def close(self) -> None:
        """Closes the descriptor; rows can still be used."""
        os.close(self.descriptor)


class _Collector:
    def __init__(self, total: list[float]) -> None:
        self._total = total

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        total = self._total
        labels = ("route", "method")
        requests = CounterMetricFamily(
            "neve_http_requests", "Requests that were answered.", labels=(*labels, "status")
        )
        seconds = HistogramMetricFamily(
            "neve_http_request_seconds", "How long they took, to the last byte.", labels=labels
        )
        for names, start in _lines():
            for place, status in enumerate(_STATUS_LABELS):
                if count := total[start + place]:
                    requests.add_metric((*names, status), count)
            buckets, sum_value = _histogram(total, start + len(_STATUS_LABELS))
            if buckets[-1][1]:
                seconds.add_metric(names, buckets, sum_value)
        yield requests
        yield seconds
        scalars: tuple[tuple[int, Any, str, str], ...] = (
            (SENT, CounterMetricFamily, "neve_http_sent_bytes", "Bytes of bodies sent."),
            (RECEIVED, CounterMetricFamily, "neve_http_received_bytes", "Bytes of bodies received."),
            (ACTIVE, GaugeMetricFamily, "neve_http_active_requests", "Requests under way."),
            (UPLOADS, GaugeMetricFamily, "neve_http_active_uploads", "NARs being uploaded."),
        )
        for place, family, name, text in scalars:
            yield family(name, text, value=total[place])


def _lines() -> Iterator[tuple[tuple[str, str], int]]:
    """Labels of each route and method, and where its figures begin."""
    for route, route_name in enumerate(ROUTES):
        for method, method_name in enumerate(METHODS):
            yield (route_name, method_name), _SCALARS + route * _PER_ROUTE + method * _PER_METHOD


def _histogram(total: list[float], start: int) -> tuple[list[tuple[str, float]], float]:
    """Buckets as Prometheus counts them (up to each bound), and the sum."""
    buckets: list[tuple[str, float]] = []
    count = 0.0
    for place, bound in enumerate([*map(str, BUCKETS), "+Inf"]):
        count += total[start + place]
        buckets.append((bound, count))
    return buckets, total[start + len(BUCKETS) + 1]
