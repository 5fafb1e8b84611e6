"""Figures of all processes of a server, for Prometheus.

Every process counts in a row of its own of one piece of shared memory: an array of doubles, whose places are
the same in each. So counting is an addition, whoever is asked for the figures adds up the rows of all, and a
process that is started in the place of another goes on with its row. ``prometheus_client`` only writes them
down.

What the places are for, a ``Layout`` says: a server lists its families of figures, whose labels have few and
fixed values. Whoever sends requests must not make series.
"""

from __future__ import annotations

import bisect
import math
import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

from neve import errors
from neve.telemetry import FIGURES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
"""Bounds of the durations in seconds."""

FEW = 16
"""A family of at most so many figures is told whole. What comes into being with its first event has not grown
by that for Prometheus, and no alert on errors would notice the first one; but the combinations of all
methods and statuses are a thousand."""

BUG = "Internal"
"""The kind of errors that are none of ``neve.errors``."""

KINDS = (*[name for name in errors.__all__ if name != "NeveError"], BUG)


def kind_of(error: BaseException) -> str:
    """One of ``KINDS``: the class of ``neve.errors`` that a failure is of."""
    return next((each.__name__ for each in type(error).__mro__ if each.__name__ in KINDS), BUG)


class Label(NamedTuple):
    """A label, or several that go together, and all values that it may have."""

    names: tuple[str, ...]
    values: Sequence[tuple[str, ...]]


def label(name: str, values: Sequence[str]) -> Label:
    """One label by itself."""
    return Label((name,), [(value,) for value in values])


class Family:
    """Figures by one name, one for each combination of values of its labels."""

    def __init__(
        self, kind: Literal["counter", "gauge", "histogram"], name: str, text: str, *labels: Label
    ) -> None:
        self.kind = kind
        self.name = name
        self.text = text
        self.labels = labels
        # A duration: how many are within each bound, how many are beyond the last, and their sum.
        self.width = len(BUCKETS) + 2 if kind == "histogram" else 1
        self.size = self.width * math.prod(len(each.values) for each in labels)
        self.start = 0
        """Its first place; the layout sets it."""

    def place(self, *values: int) -> int:
        """Where a figure is, by the places of its labels' values in their lists."""
        number = 0
        for each, value in zip(self.labels, values, strict=True):
            number = number * len(each.values) + value
        return self.start + number * self.width

    def __iter__(self) -> Iterator[tuple[list[str], int]]:
        """The labels' values of each figure, and where it is."""
        for number, values in enumerate(product(*[each.values for each in self.labels])):
            yield [name for value in values for name in value], self.start + number * self.width


_STATES = label("state", ("new", "known"))
_RESULTS = label("result", ("hit", "miss"))
_FOUND = label("what", ("blobs", "directories", "path_infos", "narinfos"))


class Layout:
    """The places of a row: the families of a server, and those that all servers have."""

    def __init__(self, *families: Family) -> None:
        self.errors = Family("counter", "neve_errors", "Requests that failed.", label("kind", KINDS))
        blobs = Family("counter", "neve_blobs", "Blobs that were put: known ones take no room.", _STATES)
        sizes = Family("counter", "neve_blob_bytes", "Bytes of blobs and chunks that were put.", _STATES)
        found = Family(
            "counter", "neve_lookups", "What was looked for near, before it is far.", _FOUND, _RESULTS
        )
        self.families = (*families, self.errors, blobs, sizes, found)
        self.size = 0
        for family in self.families:
            family.start = self.size
            self.size += family.size
        self.gauges = [place for each in self.families if each.kind == "gauge" for _, place in each]
        self.figures = dict(
            zip(FIGURES, [place for each in (blobs, sizes, found) for _, place in each], strict=True)
        )


class SharedRows:
    """The memory. Processes get it as the descriptor that they inherit."""

    def __init__(self, layout: Layout, count: int, descriptor: int | None = None) -> None:
        """Makes it, or, with ``descriptor``, uses what the parent made."""
        self.layout = layout
        self.count = count
        self._row_bytes = 8 * layout.size
        self.descriptor = os.memfd_create("neve-metrics") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, count * self._row_bytes)
        self._map = mmap.mmap(self.descriptor, count * self._row_bytes)

    def row(self, number: int) -> memoryview[float]:
        """The row of a process, numbered from 0."""
        return memoryview(self._map)[number * self._row_bytes : (number + 1) * self._row_bytes].cast("d")

    def total(self) -> list[float]:
        """All rows added up."""
        return [sum(values) for values in zip(*(self.row(n) for n in range(self.count)), strict=True)]

    def text(self) -> bytes:
        """The figures of all processes, as Prometheus reads them."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self.layout, self.total()))
        return generate_latest(registry)

    def share(self, number: int) -> dict[str, int]:
        """What ``inherited`` makes a row of, as JSON can express it, in a process that inherits the
        descriptor."""
        return {"descriptor": self.descriptor, "count": self.count, "row": number}

    def close(self) -> None:
        """Closes the descriptor; rows can still be used."""
        os.close(self.descriptor)


def inherited(layout: Layout, share: Mapping[str, int]) -> tuple[SharedRows, int]:
    """The memory, and the number of the row of this process. Raises ``KeyError``."""
    return SharedRows(layout, share["count"], share["descriptor"]), share["row"]


class Row:
    """The row of one process. Belongs to its event loop, but for ``count``."""

    def __init__(self, rows: SharedRows, number: int) -> None:
        self.rows = rows
        self._values = rows.row(number)
        self._errors = {kind: rows.layout.errors.place(place) for place, kind in enumerate(KINDS)}
        self._figures = rows.layout.figures
        self._lock = threading.Lock()
        # What was under way in a process that is gone, is not any more.
        for place in rows.layout.gauges:
            self._values[place] = 0.0

    def add(self, place: int, amount: float = 1.0) -> None:
        """Adds to a figure."""
        self._values[place] += amount

    def set(self, place: int, value: float) -> None:
        """Sets a gauge."""
        self._values[place] = value

    def observe(self, place: int, seconds: float) -> None:
        """Counts a duration, whose histogram begins at ``place``."""
        values = self._values
        values[place + bisect.bisect_left(BUCKETS, seconds)] += 1
        values[place + len(BUCKETS) + 1] += seconds

    def error(self, kind: str) -> None:
        """Counts a request that failed; ``kind`` is one of ``KINDS``."""
        self._values[self._errors[kind]] += 1

    def count(self, figure: str, amount: float) -> None:
        """Adds to one of ``telemetry.FIGURES``. From any thread."""
        with self._lock:
            self._values[self._figures[figure]] += amount


class _Collector:
    def __init__(self, layout: Layout, total: list[float]) -> None:
        self._layout = layout
        self._total = total

    def collect(self) -> Iterator[Metric]:
        return (self._metric(family) for family in self._layout.families)

    def _metric(self, family: Family) -> Metric:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        names = [name for each in family.labels for name in each.names]
        if family.kind == "histogram":
            durations = HistogramMetricFamily(family.name, family.text, labels=names)
            for values, place in family:
                buckets, seconds = _histogram(self._total[place : place + family.width])
                if buckets[-1][1]:
                    durations.add_metric(values, buckets, seconds)
            return durations
        make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        metric = make(family.name, family.text, labels=names)
        for values, place in family:
            if self._total[place] or family.kind == "gauge" or family.size <= FEW:
                metric.add_metric(values, self._total[place])
        return metric


def _histogram(figures: list[float]) -> tuple[list[tuple[str, float]], float]:
    """Buckets as Prometheus counts them (up to each bound), and the sum."""
    buckets: list[tuple[str, float]] = []
    count = 0.0
    for value, bound in zip(figures, [*map(str, BUCKETS), "+Inf"], strict=False):
        count += value
        buckets.append((bound, count))
    return buckets, figures[-1]
