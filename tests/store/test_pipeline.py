"""Sinks in threads: order, errors, and that nothing is left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from neve.store.pipeline import SinkThread, close_batches, feed_all
from neve.tree import Data, Event

from .helpers import leaving_nothing_open


class Collecting:
    """A sink that keeps what it is fed and may fail at one batch."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.batches: list[Sequence[Event]] = []
        self.thread: threading.Thread | None = None
        self._fail_at = fail_at

    def feed(self, events: Sequence[Event]) -> None:
        self.thread = threading.current_thread()
        if len(self.batches) == self._fail_at:
            raise ValueError("this sink is full")
        self.batches.append(events)


def batches(count: int) -> Iterator[list[Event]]:
    for i in range(count):
        yield [Data(b"%d" % i)]


def test_every_sink_sees_everything_in_order() -> None:
    first, second = Collecting(), Collecting()
    with leaving_nothing_open(), SinkThread(first, "first") as one, SinkThread(second, "second") as two:
        feed_all(batches(100), one, two)
        assert first.batches == second.batches == list(batches(100))
    assert len({first.thread, second.thread, threading.current_thread()}) == 3


def test_a_sink_that_fails_ends_the_pass() -> None:
    other, failing = Collecting(), Collecting(fail_at=3)
    with (
        leaving_nothing_open(),
        pytest.raises(ValueError, match="full"),
        SinkThread(other, "other") as one,
        SinkThread(failing, "failing") as two,
    ):
        feed_all(batches(100_000), one, two)
    assert len(failing.batches) == 3
    assert len(other.batches) < 100


def test_a_failure_at_the_last_batch_shows_when_finishing() -> None:
    failing = Collecting(fail_at=2)
    with pytest.raises(ValueError, match="full"), SinkThread(failing, "failing") as thread:
        feed_all(batches(3), thread)


def test_a_slow_sink_holds_the_producer_back() -> None:
    go_on = threading.Event()
    produced = 0

    class Waiting(Collecting):
        def feed(self, events: Sequence[Event]) -> None:
            go_on.wait()
            super().feed(events)

    def producing() -> Iterator[list[Event]]:
        nonlocal produced
        for batch in batches(100):
            produced += 1
            if produced == 4:
                threading.Timer(0.05, go_on.set).start()
            assert produced < 20 or go_on.is_set()
            yield batch

    sink = Waiting()
    with SinkThread(sink, "waiting") as thread:
        feed_all(producing(), thread)
    assert sink.batches == list(batches(100))


def test_the_producer_is_closed_while_the_error_is_still_held() -> None:
    closed = threading.Event()

    def producing() -> Iterator[list[Event]]:
        try:
            yield from batches(100_000)
        finally:
            closed.set()

    source = producing()
    with pytest.raises(ValueError, match="full") as raised, SinkThread(Collecting(1), "sink") as thread:
        feed_all(source, thread)
    assert raised.traceback
    assert closed.is_set()
    close_batches(source)
    close_batches([[Data(b"")]])


def test_a_producer_that_fails() -> None:
    def producing() -> Iterator[list[Event]]:
        yield [Data(b"")]
        raise OSError("gone")

    with (
        leaving_nothing_open(),
        pytest.raises(OSError, match="gone"),
        SinkThread(Collecting(), "s") as thread,
    ):
        feed_all(producing(), thread)
