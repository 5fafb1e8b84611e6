"""When interrupts are heard."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from neve.cli.interrupts import Interrupted, Postponed, interruptible

SECONDS = 60


@pytest.fixture
def interrupt() -> Iterator[Callable[[signal.Signals], None]]:
    """Sends this process a signal, and returns when it has come. Another thread may be given it."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    ours, its = socket.socketpair()
    ours.settimeout(SECONDS)
    its.setblocking(False)
    before = signal.set_wakeup_fd(its.fileno())

    def send(number: signal.Signals) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            assert ours.recv(1) == bytes([number])

    with ours, its, interruptible(process=False):
        yield send
        signal.set_wakeup_fd(before)
    over.set()
    thread.join()


def test_an_interrupt_waits_until_it_is_taken(interrupt: Callable[[signal.Signals], None]) -> None:
    done = []
    with Postponed() as interrupts:
        interrupt(signal.SIGTERM)
        done.append("before")
        with pytest.raises(Interrupted) as raised, interrupts.taken():
            done.append("never")
        assert raised.value.signal == signal.SIGTERM
        interrupt(signal.SIGTERM)
        interrupt(signal.SIGHUP)
        done.append("after")
    assert done == ["before", "after"]


def test_one_interrupt_is_taken(interrupt: Callable[[signal.Signals], None]) -> None:
    def tidied_up() -> None:
        try:
            interrupt(signal.SIGINT)
        finally:
            interrupt(signal.SIGTERM)
            interrupt(signal.SIGINT)

    with Postponed() as interrupts:
        with pytest.raises(Interrupted) as raised, interrupts.taken():
            tidied_up()
        assert raised.value.signal == signal.SIGINT


def test_interrupts_are_heard_again(interrupt: Callable[[signal.Signals], None]) -> None:
    with Postponed() as interrupts, interrupts.taken():
        pass
    with pytest.raises(Interrupted):
        interrupt(signal.SIGHUP)


def test_what_is_ignored_stays_so(interrupt: Callable[[signal.Signals], None]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Postponed() as interrupts, interrupts.taken():
            os.kill(os.getpid(), signal.SIGHUP)
            with contextlib.suppress(Interrupted):
                interrupt(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_programs_started_in_it_are_not_interrupted() -> None:
    def blocked() -> set[signal.Signals]:
        return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}

    before = blocked()
    with Postponed() as interrupts:
        assert blocked() >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        with interrupts.taken():
            assert blocked() == before
        assert blocked() >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert blocked() == before
