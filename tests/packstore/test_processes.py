"""Several processes with one store at once, and processes that are killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from neve.packstore import index
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore
from tests.packstore.doomed_writers import COUNTER
from tests.packstore.helpers import (
    BLOBS,
    NAMES,
    TABLES,
    committed_lengths,
    contents,
    opened,
    pack_paths,
    problems,
    put,
    record,
    set_name,
)

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


# All alive.


def data_of(writer: int, number: int) -> bytes:
    return random.Random(writer * 1000 + number).randbytes(number % 7 * 500 + 20)


def write_some(folder: Path, writer: int, count: int) -> None:
    with opened(folder) as store:
        for number in range(count):
            put(store, [record(data_of(writer, number)), record(b"shared %d" % number)])
            set_name(store, b"name of %d" % writer, b"%d" % number)


def read_until_done(folder: Path, read_only: bool, writers: int, count: int) -> int:
    """Whatever is listed can be read, and verifying finds nothing, whatever others do meanwhile."""
    rounds = 0
    with opened(folder, read_only=read_only) as store:
        while True:
            done = all(store.get(NAMES, b"name of %d" % n) == b"%d" % (count - 1) for n in range(writers))
            found = contents(store)
            assert all(data is not None for data in found.values())
            assert problems(store) == []
            rounds += 1
            if done:
                return rounds


def test_writers_and_readers_at_once(folder: Path) -> None:
    writers, count = 3, 40
    PackStore.open(folder).close()
    with ProcessPoolExecutor(writers + 2, mp_context=SPAWN) as processes:
        writing = [processes.submit(write_some, folder, writer, count) for writer in range(writers)]
        reading = [processes.submit(read_until_done, folder, ro, writers, count) for ro in (False, True)]
        for future in writing:
            future.result()
        assert all(future.result() for future in reading)
    with opened(folder) as store:
        found = contents(store)
        for number in range(count):
            assert record(b"shared %d" % number).key in found
            for writer in range(writers):
                assert record(data_of(writer, number)).key in found
        assert len(found) == writers * count + count + writers
        assert problems(store) == []
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == found


def use_small_map() -> None:
    index.INITIAL_MAP = 128 * 1024


def write_many(folder: Path, writer: int) -> int:
    with opened(folder) as store:
        for start in range(0, 3000, 100):
            put(store, [record(b"%d by %d" % (number, writer)) for number in range(start, start + 100)])
            assert len(store.find(BLOBS, [record(b"%d by %d" % (start, writer)).key])) == 1
        return store.index._map_size()


def test_the_map_grows_under_all_of_them(folder: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=SPAWN, initializer=use_small_map) as processes:
        sizes = [future.result() for future in [processes.submit(write_many, folder, n) for n in range(2)]]
    assert all(size > 128 * 1024 for size in sizes)
    with opened(folder) as store:
        assert store.index.count(BLOBS.id) == 6000
        assert problems(store) == []


def test_reading_what_others_have_grown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "INITIAL_MAP", 128 * 1024)
    with opened(folder, read_only=False) as store:
        with ProcessPoolExecutor(1, mp_context=SPAWN, initializer=use_small_map) as processes:
            processes.submit(write_many, folder, 0).result()
        assert store.index.count(BLOBS.id) == 3000
        assert len(contents(store)) == 3000
        put(store, [record(b"x")])
        assert problems(store) == []


# Killed.


class Writers:
    """Writers started by a process that has imported everything already."""

    def __init__(self, folder: Path, diaries: Path) -> None:
        diaries.mkdir()
        self._diaries = diaries
        self._count = 0
        self._pids: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.packstore.doomed_writers", str(folder), str(diaries)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def start(self, seed: int) -> tuple[int, Path]:
        """Process id and diary of a new writer, once it has begun to write."""
        self._count += 1
        diary = self._diaries / str(self._count)
        self._input.write(f"{self._count} {seed}\n")
        self._input.flush()
        assert self._process.stdout is not None
        pid = int(self._process.stdout.readline())
        self._pids.append(pid)
        while not diary.exists() or not diary.stat().st_size:
            os.kill(pid, 0)  # Fails if it has ended.
            time.sleep(0.002)
        return pid, diary

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def close(self) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._input.close()
        assert self._process.wait(60) == 0
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def writers(folder: Path, tmp_path: Path) -> Iterator[Writers]:
    writers = Writers(folder, tmp_path / "diaries")
    yield writers
    writers.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.001)


class Promises:
    """What the diaries say was acknowledged, and what may or may not have happened."""

    def __init__(self) -> None:
        self.there: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.names: dict[bytes, set[int]] = {}
        self.counted = 0
        self.perhaps_counted = 0

    def read(self, diary: Path) -> None:
        # What comes after the last end of a line was being written when the writer was killed.
        for line in diary.read_text().split("\n")[:-1]:
            intended, what = line.startswith("? "), line.removeprefix("? ")
            if what.startswith("count"):
                self.perhaps_counted += intended
                self.counted += not intended
            elif what.startswith("= "):
                _, name, value = what.split()
                values = self.names.setdefault(bytes.fromhex(name), {0})
                if not intended:
                    values.clear()
                values.add(int(value))
            else:
                self._blob(what[0], bytes.fromhex(what[2:]), intended=intended)

    def _blob(self, sign: str, key: bytes, *, intended: bool) -> None:
        if intended:
            self.there.discard(key)
            self.gone.discard(key)
        else:
            (self.there if sign == "+" else self.gone).add(key)

    def check(self, store: PackStore) -> None:
        found = contents(store)
        assert self.there <= found.keys()
        assert not self.gone & found.keys()
        for name, values in self.names.items():
            assert int(found.get(name) or b"0") in values
        assert self.counted <= int(found.get(COUNTER) or b"0") <= self.perhaps_counted


def check_tails(folder: Path) -> None:
    """The store was opened for writing since, so nothing is left of what was not acknowledged."""
    lengths = committed_lengths(folder)
    for path in pack_paths(folder):
        assert path.stat().st_size == lengths.get(int(path.stem, 16), 64)


@pytest.mark.slow
def test_kill_9(folder: Path, writers: Writers) -> None:
    noise = random.Random(9)
    promises = Promises()
    for turn in range(24):
        running = [writers.start(100 * turn + number) for number in range(1 + turn % 3)]
        time.sleep(noise.random() ** 2 * 0.3)
        for pid, diary in running:
            kill(pid)
            promises.read(diary)
        if turn % 6 == 5:
            rebuild_index(folder, TABLES)
        with opened(folder) as store:
            promises.check(store)
            assert problems(store) == []
        check_tails(folder)
    assert len(promises.there) > 500
    assert promises.counted > 5
    # Each of three has one in use, and one for what it stages apart.
    assert len(pack_paths(folder)) <= 7


def test_one_is_killed_and_the_others_go_on(folder: Path, writers: Writers) -> None:
    promises = Promises()
    survivor, diary = writers.start(1)
    for seed in (2, 3, 4):
        pid, dead = writers.start(seed)
        time.sleep(0.05)
        kill(pid)
        promises.read(dead)
        with opened(folder) as store:
            assert problems(store) == []
            put(store, [record(b"%d" % seed)])
    os.kill(survivor, 0)
    before = diary.stat().st_size
    while diary.stat().st_size == before:
        time.sleep(0.01)
    kill(survivor)
    promises.read(diary)
    with opened(folder) as store:
        promises.check(store)
        assert problems(store) == []
    check_tails(folder)
