"""Calls that are ended because nothing comes."""

from __future__ import annotations

import threading

from neve.rpc.watch import Watch
from tests.server.raw import soon


class Call:
    """Knows whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> bool:
        self.cancelled.set()
        return True


def test_a_call_that_is_waited_for() -> None:
    watch, call = Watch(), Call()
    watched = watch.add(call, 0.05)
    with watched:
        assert call.cancelled.wait(20)
    assert watched.expired
    watch.remove(watched)
    watch.remove(watched)
    assert soon(lambda: watch._thread is None)


def test_only_waiting_counts() -> None:
    """Who does something else in between may take as long as he likes."""
    watch, idle, waiting = Watch(), Call(), Call()
    others = [watch.add(idle, 0.02)]
    with others[0]:
        pass
    other = watch.add(waiting, 0.2)
    with other:
        assert waiting.cancelled.wait(20)
    assert not idle.cancelled.is_set()
    assert not others[0].expired
    for watched in (*others, other):
        watch.remove(watched)


def test_one_thread_that_ends_and_starts_again() -> None:
    watch = Watch()
    for _ in range(2):
        calls = [Call() for _ in range(20)]
        watched = [watch.add(call, 0.05) for call in calls]
        thread = watch._thread
        assert thread is not None
        assert thread.daemon
        for one in watched:
            one.__enter__()
        assert all(call.cancelled.wait(20) for call in calls)
        assert watch._thread is thread
        for one in watched:
            watch.remove(one)
        assert soon(lambda: watch._thread is None)
        thread.join()


def test_a_call_that_cannot_be_cancelled_holds_up_nobody() -> None:
    class Broken(Call):
        def cancel(self) -> bool:
            super().cancel()
            raise ValueError("closed")

    watch, broken, call = Watch(), Broken(), Call()
    first, second = watch.add(broken, 0.01), watch.add(call, 0.05)
    with first, second:
        assert broken.cancelled.wait(20)
        assert call.cancelled.wait(20)
    watch.remove(first)
    watch.remove(second)
    assert soon(lambda: watch._thread is None)
