"""Writers that come together share their syncs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neve.packstore.frames import Record
from neve.packstore.locks import Arrivals, SharedLock
from neve.packstore.sessions import Session
from tests.packstore.helpers import contents, opened, put, record, set_name, stage
from tests.packstore.many_puts import BEGIN, END, all_at_once, put_blobs, put_names

MAX_SYNCS = 8
"""For 64 puts at once, those of LMDB included, which syncs once a commit."""
ROUNDS = 3
"""Of which the best one counts: with other work on the machine not all threads have their turn in time."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("puts", [put_blobs, put_names])
def test_many_puts_share_syncs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, puts: Callable[[Path, int], None]
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    puts(folder, 64)
    with opened(folder) as store:
        assert len(contents(store)) == 65
    # One was of the first record, before the others.
    assert 2 <= len(synced) <= MAX_SYNCS // 2 + 1


@pytest.mark.strace
@pytest.mark.parametrize("what", ["blobs", "names"])
def test_many_puts_share_system_calls(tmp_path: Path, what: str) -> None:
    counts = [count_syncs(tmp_path / str(number), what) for number in range(ROUNDS)]
    assert 2 <= min(counts) <= MAX_SYNCS, counts


def count_syncs(folder: Path, what: str) -> int:
    """System calls that sync, made by 64 threads of another process that put something each."""
    folder.mkdir()
    calls = "fdatasync,fsync,msync,sync_file_range,sync,syncfs"
    trace = folder / "trace"
    # Stops at these calls only: threads that are slowed down at every other would not come together.
    strace = ["strace", "-f", "--seccomp-bpf", "-s", "100", "-e", f"trace={calls},write", "-o", str(trace)]
    puts = [sys.executable, "-m", "tests.packstore.many_puts", str(folder / "store"), "64", what]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*strace, *puts], check=True, env=environment)
    between = trace.read_text().partition(BEGIN.decode())[2].partition(END.decode())[0]
    return len(re.findall(rf"\b({calls.replace(',', '|')})\(", between))


def test_who_stages_during_a_commit_goes_along_with_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first commit is held up in its sync, and all others wait for their turn meanwhile."""
    with opened(folder) as store:
        put(store, [record(b"first")])
        held, go_on, waiting = threading.Event(), threading.Event(), threading.Semaphore(0)
        syncs: list[int] = []
        fdatasync, stage_one = os.fdatasync, store.writer.stage

        def slow(fd: int) -> None:
            syncs.append(fd)
            held.set()
            assert go_on.wait(60)
            fdatasync(fd)

        def announced(table: int, given: list[Record], session: Session) -> None:
            waiting.release()
            stage_one(table, given, session)

        monkeypatch.setattr(os, "fdatasync", slow)
        leader = threading.Thread(target=put, args=[store, [record(b"leader")]])
        leader.start()
        assert held.wait(60)
        monkeypatch.setattr(store.writer, "stage", announced)

        def follow(number: int) -> None:
            if number < 64:
                put(store, [record(b"%d" % number)])
                return
            for _ in range(64):
                assert waiting.acquire(timeout=60)
            go_on.set()

        all_at_once(follow, 65)
        leader.join()
        assert len(contents(store)) == 66
        assert len(syncs) <= 3


def test_records_staged_by_others_do_not_wait_for_ever(folder: Path) -> None:
    """A commit waits for those who are staging when it begins, not for those who come later."""
    stop = threading.Event()

    with opened(folder) as store:

        def work(number: int) -> None:
            if number < 3:
                while not stop.is_set():
                    stage(store, [record(os.urandom(200_000))])
                return
            for value in range(20):
                set_name(store, b"name", b"%d" % value)
            stop.set()

        all_at_once(work, 4)
        store.writer.commit()


# Locks.


def test_arrivals() -> None:
    arrivals = Arrivals()
    arrivals.gather()
    gathered, late = threading.Event(), arrivals.one()
    with arrivals.one():

        def lead() -> None:
            arrivals.gather()
            gathered.set()

        leader = threading.Thread(target=lead)
        leader.start()
        assert not gathered.wait(0.05)
        late.__enter__()
    assert gathered.wait(60)
    leader.join()
    late.__exit__(None, None, None)


def test_arrivals_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and patience, without a clock."""
    arrivals = Arrivals()
    now, pauses = [0.0], []
    coming = [True, True, False, True]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds
        if coming.pop(0):
            with arrivals.one():
                pass

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    arrivals.gather(2, 100)
    assert pauses == [2, 2, 2]
    coming[:] = [True] * 10
    pauses.clear()
    arrivals.gather(2, 7)
    assert pauses == [2, 2, 2, 2]
    pauses.clear()
    arrivals.gather()
    assert pauses == []


def test_shared_and_exclusive() -> None:
    lock = SharedLock()
    order: list[str] = []
    entered = threading.Event()

    def alone() -> None:
        entered.set()
        with lock.exclusive():
            order.append("exclusive")
            with lock:
                assert lock.held

    def together() -> None:
        with lock:
            order.append("shared")

    with lock:
        with lock:
            assert lock.held
        waiting = threading.Thread(target=alone)
        waiting.start()
        assert entered.wait(60)
        while not lock._waiting:
            pass
        late = threading.Thread(target=together)
        late.start()
        # Who holds it may take it again, whoever waits.
        with lock:
            order.append("held")
    waiting.join()
    late.join()
    assert order == ["held", "exclusive", "shared"]
    assert not lock.held


def test_the_shared_side_may_become_exclusive() -> None:
    lock = SharedLock()
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with lock:
            entered.set()
            assert left.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    with lock:
        left.set()
        with lock.exclusive(), lock:
            thread.join()
        assert lock.held
    assert not lock.held
