"""What a service manager is told, and what it may say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from neve.serving.manager import Beat, ServiceManager
from neve.serving.process import Course, serve_until_stopped
from neve.serving.stopping import Stop
from tests.logged import logged
from tests.serving.listening_manager import ListeningManager


@pytest.mark.parametrize("abstract", [False, True])
def test_everything_that_is_told(tmp_path: Path, abstract: bool) -> None:
    with ListeningManager(tmp_path, abstract=abstract, watchdog_seconds=20) as listening:
        environment = {"X": "y", **listening.environment}
        manager = ServiceManager(environment)
        # Who is started by us is not who is waited for.
        assert environment == {"X": "y"}
        assert manager.beat_seconds == 5
        manager.ready("listening on\nunix:/a")
        manager.status("one of two")
        manager.alive()
        manager.stopping("stopping; calls have 30 s", 40.5)
        assert listening.rest() == [
            "READY=1",
            "STATUS=listening on unix:/a",
            "STATUS=one of two",
            "WATCHDOG=1",
            "STOPPING=1",
            "EXTEND_TIMEOUT_USEC=40500000",
            "STATUS=stopping; calls have 30 s",
        ]


def test_nobody_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": str(tmp_path / "none")}, None):
        manager = ServiceManager(environment)
        assert manager.beat_seconds is None
        manager.ready("ready")
        manager.alive()
        manager.stopping("stopping", 1)
    # Without a socket, a watchdog has nobody to tell.
    assert ServiceManager({"WATCHDOG_USEC": "1000000"}).beat_seconds is None


def test_a_manager_that_is_full_or_has_gone(tmp_path: Path) -> None:
    with ListeningManager(tmp_path) as listening:
        manager = ServiceManager(listening.environment)
        for _ in range(10_000):  # More than the queue of any socket takes; nobody waits.
            manager.alive()
        assert set(listening.rest()) == {"WATCHDOG=1"}
    manager.ready("ready")


@pytest.mark.parametrize("address", ["notify", "@", "vsock:2:1234"])
def test_kinds_of_sockets_that_are_not_known(address: str) -> None:
    with logged() as messages:
        manager = ServiceManager({"NOTIFY_SOCKET": address})
    assert len(messages) == 1
    assert repr(address) in messages[0]
    manager.ready("ready")


@pytest.mark.parametrize("microseconds", ["-1", "x", "1.5", "9" * 30, "٣"])
def test_watchdogs_that_are_not_understood(tmp_path: Path, microseconds: str) -> None:
    with ListeningManager(tmp_path) as listening, logged() as messages:
        environment = listening.environment | {"WATCHDOG_USEC": microseconds}
        assert ServiceManager(environment).beat_seconds is None
    assert len(messages) == 1
    assert "WATCHDOG_USEC" in messages[0]


def test_whose_watchdog_it_is(tmp_path: Path) -> None:
    with ListeningManager(tmp_path, watchdog_seconds=2) as listening:
        for pid, seconds in ((str(os.getpid()), 0.5), ("1", None), ("", 0.5)):
            environment = listening.environment | {"WATCHDOG_PID": pid}
            assert ServiceManager(environment).beat_seconds == seconds
        assert ServiceManager(listening.environment | {"WATCHDOG_USEC": "0"}).beat_seconds is None


def test_a_long_status(tmp_path: Path) -> None:
    with ListeningManager(tmp_path) as listening:
        ServiceManager(listening.environment).status("ä" * 1000)
        (line,) = listening.rest()
    assert line == f"STATUS={'ä' * 199}…"


def test_no_beat_without_seconds() -> None:
    beats: list[None] = []
    beat = Beat(None, lambda: beats.append(None))
    beat.beat()
    assert beat.left() is None
    assert beats == []
    beat = Beat(1000, lambda: beats.append(None))
    assert beat.left() == 0
    beat.beat()
    beat.beat()
    left = beat.left()
    assert left is not None
    assert 0 < left <= 1000
    assert len(beats) == 1


def test_the_event_loop_itself_beats() -> None:
    """What is told comes from the loop that serves: none if that hangs, also while others work."""
    stop, hanging = Stop(), threading.Event()
    beats: list[threading.Thread] = []
    during: list[int] = []

    def hang() -> None:
        before = len(beats)
        hanging.wait(0.3)
        during.append(len(beats) - before)
        stop.request()

    def beat() -> None:
        beats.append(threading.current_thread())
        if len(beats) == 3:
            asyncio.get_running_loop().call_soon(hang)

    course = Course(stop=stop, ready=lambda: None, stopping=lambda: None, beat=beat, beat_seconds=0.01)

    async def nothing(*_: object) -> None:
        return

    asyncio.run(serve_until_stopped(course, nothing, nothing, 1))
    assert during == [0]
    assert set(beats) == {threading.current_thread()}


def test_it_beats_while_calls_in_flight_end() -> None:
    stop = Stop()
    beats: list[None] = []
    stop.request()

    async def start() -> None:
        return

    async def end(_: float) -> None:
        before = len(beats)
        async with asyncio.timeout(60):
            while len(beats) < before + 3:
                await asyncio.sleep(0.01)

    course = Course(
        stop=stop,
        ready=lambda: None,
        stopping=lambda: None,
        beat=lambda: beats.append(None),
        beat_seconds=0.01,
    )
    asyncio.run(serve_until_stopped(course, start, end, 1))
    assert len(beats) >= 3


def test_sockets_are_not_left_open(tmp_path: Path) -> None:
    with ListeningManager(tmp_path) as listening:
        manager = ServiceManager(listening.environment)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            manager.status("x")
        with contextlib.closing(socket.socket(socket.AF_UNIX)):
            pass
        assert len(os.listdir("/proc/self/fd")) == before
