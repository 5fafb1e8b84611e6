"""Fetching in threads: together, once, and one by one when something is wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from neve.errors import NeveError, Unavailable
from neve.fs.loads import Closed, Far, Held, Loads, NotAtHand, Waiter, from_held
from tests.logged import logged

from .services import Gate

SECONDS = 60


class Squares:
    """A source of squares. Zero is damaged, and stops a batch; other signs come first."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.batches: list[tuple[int, ...]] = []

    def fetch(self, wanted: Sequence[int]) -> Iterator[tuple[int, int]]:
        self.batches.append(tuple(wanted))
        self.gate.passed(tuple(wanted))
        for number in wanted:
            if not number:
                raise Unavailable("zero is damaged")
            yield number, number * number


class Reader:
    """Somebody who waits."""

    def __init__(self, loads: Loads, source: Squares, *wanted: int, along: Sequence[int] = ()) -> None:
        self.held: Held = {}
        self.source = source
        self.wanted = wanted
        self._done = threading.Event()
        self.waiter = Waiter(self.held, self._done.set)
        loads.want(NotAtHand(source, wanted, along), self.waiter)

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def values(self) -> list[Any]:
        assert self._done.wait(SECONDS)
        return [self.held[self.source, what] for what in self.wanted]


@pytest.fixture
def source() -> Squares:
    return Squares()


@pytest.fixture
def loads(source: Squares) -> Iterator[Loads]:
    loads = Loads(4)
    yield loads
    source.gate.open()
    loads.close()
    assert loads.wait_until_idle(SECONDS)


def test_what_is_wanted_comes(loads: Loads, source: Squares) -> None:
    assert Reader(loads, source, 3, 4).values() == [9, 16]
    assert source.batches == [(3, 4)]


def test_the_same_twice(loads: Loads, source: Squares) -> None:
    assert Reader(loads, source, 3, 3).values() == [9, 9]


def test_one_thread_that_is_idle_is_not_counted_on_twice(loads: Loads, source: Squares) -> None:
    assert Reader(loads, source, 1).values() == [1]
    assert loads.wait_until_idle(SECONDS)
    source.gate.close()
    readers = [Reader(loads, source, number) for number in (2, 3, 4)]
    for _ in readers:
        source.gate.wait_for_call()
    source.gate.open()
    assert [reader.values() for reader in readers] == [[4], [9], [16]]


class FarSquares(Squares, Far):
    """Squares that take minutes."""


@pytest.mark.parametrize(("threads", "for_far"), [(4, 3), (2, 1)])
def test_what_is_far_leaves_threads_to_what_is_near(threads: int, for_far: int) -> None:
    far, near = FarSquares(), Squares()
    far.gate.close()
    loads = Loads(threads)
    readers = [Reader(loads, far, number) for number in range(1, 9)]
    given_up = Reader(loads, far, 9)
    given_up.waiter.given_up = True
    for _ in range(for_far):
        far.gate.wait_for_call()
    assert Reader(loads, near, 3, 4).values() == [9, 16]
    assert len(far.batches) == for_far
    assert Reader(loads, near, 5).values() == [25]
    far.gate.open()
    assert [reader.values() for reader in readers] == [[number**2] for number in range(1, 9)]
    assert len(far.batches) == len(readers)
    loads.close()
    assert loads.wait_until_idle(SECONDS)


def test_what_is_far_comes_with_one_thread_too() -> None:
    loads = Loads(1)
    assert Reader(loads, FarSquares(), 2).values() == [4]
    loads.close()


def test_what_is_under_way_is_waited_for(loads: Loads, source: Squares) -> None:
    source.gate.close()
    first = Reader(loads, source, 2, 3, along=[5, 6])
    source.gate.wait_for_call()
    others = [Reader(loads, source, 3), Reader(loads, source, 6, 2), Reader(loads, source, 3, 7)]
    source.gate.wait_for_call()
    assert not first.is_done
    source.gate.open()
    assert first.values() == [4, 9]
    assert [other.values() for other in others] == [[9], [36, 4], [9, 49]]
    assert source.batches == [(2, 3, 5, 6), (7,)]


def test_what_is_damaged_harms_no_neighbour(loads: Loads, source: Squares) -> None:
    source.gate.close()
    reader = Reader(loads, source, 1, 0, 2, along=[3])
    other = Reader(loads, source, 2)
    alone = Reader(loads, source, 3)
    source.gate.open()
    one, zero, two = reader.values()
    assert (one, two) == (1, 4)
    assert isinstance(zero, Unavailable)
    assert (other.values(), alone.values()) == ([4], [9])
    with pytest.raises(Unavailable, match="zero"):
        from_held(source, 0, reader.held)


def test_what_nobody_wants_is_not_tried_again(loads: Loads, source: Squares) -> None:
    assert Reader(loads, source, 1, along=[0, 2]).values() == [1]
    loads.fetch_ahead(source, [0, 5])
    assert loads.wait_until_idle(SECONDS)
    assert Reader(loads, source, 5).values() == [25]
    assert source.batches == [(1, 0, 2), (0, 5), (5,)]


def test_what_is_not_fetched_is_still_missing(source: Squares) -> None:
    with pytest.raises(NotAtHand) as missing:
        from_held(source, 3, {})
    assert (missing.value.source, missing.value.wanted) == (source, [3])
    assert from_held(source, 3, {(source, 3): None}) is None


def test_fetching_ahead_keeps_nobody_waiting(source: Squares) -> None:
    loads = Loads(2)
    source.gate.close()
    for number in range(1, 5):
        loads.fetch_ahead(source, [number])
    source.gate.wait_for_call()
    # One thread fetches ahead; the other one is for who waits.
    reader = Reader(loads, source, 10)
    source.gate.wait_for_call()
    # What is wanted after all goes before what is not.
    urgent = Reader(loads, source, 4)
    source.gate.open()
    assert (reader.values(), urgent.values()) == ([100], [16])
    assert loads.wait_until_idle(SECONDS)
    assert source.batches[:3] == [(1,), (10,), (4,)]
    loads.close()


@pytest.mark.parametrize(("threads", "most", "expected"), [(8, 1, 1), (8, 3, 3), (8, 99, 4), (8, None, 4)])
def test_so_many_threads_fetch_ahead(source: Squares, threads: int, most: int | None, expected: int) -> None:
    loads = Loads(threads, most)
    source.gate.close()
    for number in range(1, 20):
        loads.fetch_ahead(source, [number])
    for _ in range(expected):
        source.gate.wait_for_call()
    reader = Reader(loads, source, 100)  # He is served by another thread.
    source.gate.wait_for_call()
    assert len(source.batches) == expected + 1
    source.gate.open()
    assert reader.values() == [10_000]
    loads.close()
    assert loads.wait_until_idle(SECONDS)


def test_no_more_is_fetched_ahead_than_may_come_in_time(source: Squares) -> None:
    loads = Loads(2)
    source.gate.close()
    loads.fetch_ahead(source, [1])
    source.gate.wait_for_call()
    for number in range(2, 2000):
        loads.fetch_ahead(source, [number])
    assert len(loads._on_the_way) < 300
    source.gate.open()
    assert Reader(loads, source, 1999).values() == [1999 * 1999]
    assert loads.wait_until_idle(SECONDS)
    loads.close()


def test_with_one_thread_nothing_is_fetched_ahead(source: Squares) -> None:
    loads = Loads(1)
    loads.fetch_ahead(source, [1])
    assert Reader(loads, source, 2).values() == [4]
    assert source.batches == [(2,)]
    loads.close()


def test_no_more_threads_than_allowed(source: Squares) -> None:
    loads = Loads(3)
    source.gate.close()
    readers = [Reader(loads, source, number) for number in range(1, 11)]
    for _ in range(3):
        source.gate.wait_for_call()
    assert not source.gate.waiting.acquire(timeout=0.1)
    assert loads._started == 3
    source.gate.open()
    assert [reader.values() for reader in readers] == [[number * number] for number in range(1, 11)]
    loads.close()


def test_who_gives_up_saves_work(source: Squares) -> None:
    loads = Loads(1)
    source.gate.close()
    Reader(loads, source, 1)
    source.gate.wait_for_call()
    given_up, shared, other = Reader(loads, source, 2), Reader(loads, source, 3), Reader(loads, source, 3)
    given_up.waiter.given_up = shared.waiter.given_up = True
    source.gate.open()
    assert other.values() == [9]
    assert loads.wait_until_idle(SECONDS)
    assert source.batches == [(1,), (3,)]
    # Whoever comes later gets it.
    assert Reader(loads, source, 2).values() == [4]
    loads.close()


def test_unasked(loads: Loads, source: Squares) -> None:
    """What nobody waits for when it comes."""
    came: list[tuple[int, int]] = []
    source.gate.close()
    loads.fetch_ahead(source, [1, 2, 3], lambda what, value: came.append((what, value)))
    source.gate.wait_for_call()
    reader = Reader(loads, source, 2)
    source.gate.open()
    assert reader.values() == [4]
    assert loads.wait_until_idle(SECONDS)
    assert came == [(1, 1), (3, 9)]


def test_closing(source: Squares) -> None:
    loads = Loads(1)
    source.gate.close()
    running = Reader(loads, source, 1)
    source.gate.wait_for_call()
    queued = Reader(loads, source, 2)
    loads.close()
    late = Reader(loads, source, 3)
    for reader in (running, queued, late):
        (value,) = reader.values()
        assert isinstance(value, Closed)
    loads.fetch_ahead(source, [4])
    assert not loads.wait_until_idle(0)
    source.gate.open()
    assert loads.wait_until_idle(SECONDS)
    assert source.batches == [(1,)]
    loads.close()


def test_bugs_of_sources_and_of_those_who_wait(loads: Loads) -> None:
    class Broken(Squares):
        def fetch(self, wanted: Sequence[int]) -> Iterator[tuple[int, int]]:
            if 1 in wanted:
                raise ZeroDivisionError
            yield from ()

    broken = Broken()
    with logged() as lines:
        for number in (1, 2):
            (value,) = Reader(loads, broken, number).values()
            assert isinstance(value, NeveError)
            assert "internal error" in str(value)

        def fail() -> None:
            raise ZeroDivisionError

        squares = Squares()
        loads.want(NotAtHand(squares, [5]), Waiter({}, fail))
        assert Reader(loads, squares, 6).values() == [36]
        assert loads.wait_until_idle(SECONDS)
    assert lines.count("internal error, please report it") == 2
