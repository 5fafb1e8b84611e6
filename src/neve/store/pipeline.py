"""Running several sinks over one pass of a producer, each in a thread of its own.

The stages spend their time in C without the interpreter lock (read, hash, compress), so threads
help although the work between is Python.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Self

from neve import telemetry
from neve.telemetry import carried
from neve.tree import Event, Sink

_QUEUED_BATCHES = 4
"""Batches that may wait for a sink: bounds memory at a few MiB."""

_PATIENCE_SECONDS = 0.1


class SinkThread:
    """A sink that is fed through a bounded queue by a thread of its own.

    Leaving the ``with`` block ends the thread; ``finish`` waits until the sink has seen everything.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self._sink = sink
        self._stage = telemetry.stage(f"import.{name}")
        self._queue: queue.Queue[Sequence[Event] | None] = queue.Queue(_QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._given_up = False
        self._thread = threading.Thread(target=carried(self._run), name=f"neve-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None and not self._given_up:
                try:
                    with self._stage:
                        self._sink.feed(batch)
                except BaseException as error:
                    # Kept for the feeding thread; the queue is drained so that it never blocks.
                    self._error = error
        self._stage.end()

    def feed(self, events: Sequence[Event]) -> None:
        """Raises what the sink raised for an earlier batch."""
        if self._error is not None:
            raise self._error
        self._queue.put(events)

    def finish(self) -> None:
        """Returns when the sink has seen all batches. Raises what the sink raised."""
        self._stop()
        if self._error is not None:
            raise self._error

    def _stop(self) -> None:
        # Again and again: an interrupt in the middle of a put can lose the next wake-up.
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_PATIENCE_SECONDS)
            self._thread.join(_PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_up = kind is not None
        self._stop()


def feed_all(batches: Iterable[Sequence[Event]], *sinks: SinkThread) -> None:
    """Feeds every batch to all sinks; returns when they have seen everything."""
    walk, source = telemetry.stage("import.walk"), iter(batches)
    try:
        while True:
            with walk:
                batch = next(source, None)
            if batch is None:
                break
            for sink in sinks:
                sink.feed(batch)
    finally:
        walk.end()
        close_batches(batches)
    for sink in sinks:
        sink.finish()


def close_batches(batches: Iterable[Sequence[Event]]) -> None:
    """Ends a generator that may not have come to its end, so that it gives its descriptors back now
    and not when the last traceback that refers to it is gone."""
    if isinstance(batches, Generator):
        batches.close()
