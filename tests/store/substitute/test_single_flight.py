"""What many ask for at the same time is done once, and everybody hears how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from neve.errors import Corrupt
from neve.store.substitute.single_flight import SingleFlight

WAIT_SECONDS = 60


class Work:
    """Something that takes until it is told how to end."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.calls = 0
        self.ends: list[Callable[[], str]] = []
        self.go_on = threading.Semaphore(0)

    def __call__(self) -> str:
        self.calls += 1
        end = self.ends.pop(0)
        self.started.release()
        assert self.go_on.acquire(timeout=WAIT_SECONDS)
        return end()


def raising(error: BaseException) -> Callable[[], str]:
    def end() -> str:
        raise error

    return end


def run_together(flights: SingleFlight[str, str], work: Work, count: int = 5) -> list[Future[str]]:
    """One that does it and the others, which wait; they are let go on together."""
    with ThreadPoolExecutor(count) as pool:
        results = [pool.submit(flights.run, "key", work)]
        assert work.started.acquire(timeout=WAIT_SECONDS)
        results += [pool.submit(flights.run, "key", work) for _ in range(count - 1)]
        for _ in range(count):
            work.go_on.release()
    return results


def test_all_get_the_result() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    work.ends = [lambda: "done"] * 5
    assert {result.result() for result in run_together(flights, work)} == {"done"}
    # Those who came too late for it did it again; nothing is remembered.
    calls = work.calls
    work.go_on.release()
    work.ends = [lambda: "again"]
    assert flights.run("key", work) == "again"
    assert work.calls == calls + 1


def test_all_get_the_error_each_one_of_its_own() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    work.ends = [raising(Corrupt("broken"))] * 5
    errors = [result.exception() for result in run_together(flights, work)]
    assert all(type(error) is Corrupt and str(error) == "broken" for error in errors)
    assert flights._flights == {}


def test_an_interrupt_is_nobody_elses() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    work.ends = [raising(KeyboardInterrupt()), *[lambda: "done"] * 5]
    first, *others = run_together(flights, work)
    assert isinstance(first.exception(), KeyboardInterrupt)
    assert {other.result() for other in others} == {"done"}
    assert flights._flights == {}


def test_different_keys_do_not_wait_for_each_other() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    work = Work()
    work.ends = [lambda: "done"]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(flights.run, "slow", work)
        assert work.started.acquire(timeout=WAIT_SECONDS)
        assert flights.run("fast", lambda: "fast") == "fast"
        work.go_on.release()
        assert slow.result() == "done"


def test_who_fails_alone_raises_what_was_raised() -> None:
    flights: SingleFlight[str, str] = SingleFlight()
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as raised:
        flights.run("key", raising(error))
    assert raised.value is error
    assert flights.run("key", lambda: "fine") == "fine"
