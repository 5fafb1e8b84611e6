"""Files that cannot be written for whatever reason: what fails has not happened, and all goes on after it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import NeveError, Unavailable
from neve.packstore.check import pack_bytes
from neve.packstore.index import Index
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore
from tests.packstore.helpers import (
    BLOBS,
    TABLES,
    contents,
    data_file,
    opened,
    pack_paths,
    problems,
    put,
    record,
    records,
    set_name,
)
from tests.packstore.many_puts import all_at_once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses to make any file longer, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def make_long(store: PackStore, size: int) -> None:
    """Fills the pack up to about ``size`` bytes."""
    length = pack_paths(store.path)[0].stat().st_size
    put(store, [record(random.Random(size).randbytes(size - length - 1000))])


@pytest.mark.parametrize("step", [1, 40, 81, 200, 1000])
def test_a_pack_that_must_not_grow(folder: Path, step: int) -> None:
    """Its frames, and its marks, end at different bytes each time."""
    noise = random.Random(step)
    with opened(folder) as store:
        put(store, records(1))
        # The index is shorter by far, so it has no part in this.
        make_long(store, data_file(folder).stat().st_size + 200_000)
        expected = contents(store)
        failed = 0
        for turn in range(30):
            length = pack_paths(folder)[-1].stat().st_size
            one, name = record(noise.randbytes(300)), b"%d" % turn
            with no_file_longer_than(length + turn * step):
                try:
                    put(store, [one])
                    expected[one.key] = bytes(one.data)
                    set_name(store, name, b"value")
                    expected[name] = b"value"
                except Unavailable as error:
                    failed += "File too large" in str(error)
                assert contents(store) == expected
            assert pack_bytes(folder) == sum(store.index.pack_lengths().values())
        assert failed
        put(store, records(2))
        assert len(contents(store)) == len(expected) + 1
        assert problems(store) == []
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store).keys() == {*expected, records(2)[0].key}


def test_an_index_that_must_not_grow(folder: Path) -> None:
    """LMDB's pages are written one after the other; each is once the first that cannot be."""
    with opened(folder) as store:
        put(store, records(*range(500)))
        expected = contents(store)
        failed = 0
        for turn in range(20):
            # The pack is shorter, so it has no part in this.
            length = data_file(folder).stat().st_size
            assert pack_paths(folder)[-1].stat().st_size < length
            several = records(*range(1000 + 40 * turn, 1040 + 40 * turn))
            with no_file_longer_than(length + 4096 * (turn % 7)):
                try:
                    put(store, several)
                    expected |= {one.key: bytes(one.data) for one in several}
                except Unavailable:
                    failed += 1
                assert contents(store) == expected
            assert pack_bytes(folder) == sum(store.index.pack_lengths().values())
        assert failed > 2
        put(store, records(2))
        assert problems(store) == []
    with opened(folder) as store:
        assert contents(store) == expected


def replaced(fd: int, path: str, flags: int) -> None:
    """Makes ``fd`` another file behind its owner's back."""
    other = os.open(path, flags)
    os.dup2(other, fd)
    os.close(other)


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_pack_that_became_another_file(folder: Path, what: str) -> None:
    """Not even cutting it off works: that is left to recovery, and the next commit gets another pack."""
    with opened(folder) as store:
        store.writer.begin()  # As long as anybody stages, the pack is not parked.
        put(store, records(1))
        [path] = pack_paths(folder)
        [held] = store.writer._staging.held()
        if what == "full":
            replaced(held.fd, "/dev/full", os.O_RDWR)
        else:
            replaced(held.fd, str(path), os.O_RDONLY)
        with pytest.raises(NeveError):
            set_name(store, b"name", b"value")
        assert contents(store).keys() == {records(1)[0].key}
        put(store, records(2))
        set_name(store, b"name", b"value")
        assert contents(store).keys() == {one.key for one in records(1, 2)} | {b"name"}
        assert problems(store) == []


def test_a_sessions_pack_that_became_another_file(folder: Path) -> None:
    """What it cannot cut off, the next one who opens a pack does."""
    big = [record(random.Random(n).randbytes(400_000)) for n in range(20)]
    with opened(folder) as store:
        put(store, records(1))
        with store.writer.session() as session:
            for one in big:
                store.stage(BLOBS, [one], session)
            replaced(session.packs[-1].fd, "/dev/full", os.O_RDWR)
            with pytest.raises(NeveError, match="disk full"):
                store.stage(BLOBS, big[:1], session)
        assert pack_bytes(folder) > 4_000_000
        with store.writer.session() as session:
            for one in big:
                store.stage(BLOBS, [one], session)
            store.writer.commit(session)
        assert pack_bytes(folder) == sum(store.index.pack_lengths().values()) < 9_000_000
        assert contents(store).keys() == {one.key for one in big + records(1)}
        assert problems(store) == []


def test_a_closed_pack_is_nobodys_file(folder: Path, tmp_path: Path) -> None:
    """What could not be cut off before closing is not cut off later: the descriptor may be another file's."""
    stranger = tmp_path / "stranger"
    with opened(folder) as store:
        put(store, records(1))
        session = store.writer.begin()
        store.stage(BLOBS, records(2), session)
        assert store.locate(BLOBS, [records(2)[0].key])
        [held] = store.writer._staging.held()
        number = held.fd
        replaced(number, str(pack_paths(folder)[0]), os.O_RDONLY)
    stranger.write_bytes(bytes(1000))
    other = os.open(stranger, os.O_RDWR)
    if other != number:
        os.dup2(other, number)
        os.close(other)
    store.writer.end(session)
    with pytest.raises(Unavailable):
        held.truncate(0)
    with pytest.raises(Unavailable):
        held.append(b"x")
    held.close()
    assert os.fstat(number).st_size == stranger.stat().st_size == 1000
    os.close(number)
    with opened(folder) as store:
        assert contents(store).keys() == {records(1)[0].key}
        assert problems(store) == []


def test_nobody_waits_for_one_that_failed_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit fails, and then asking the index what has become of it fails in a way nobody thought of."""
    with opened(folder) as store:
        put(store, records(1))
        errors: list[BaseException] = []
        started = threading.Barrier(4)

        def full(_: int) -> None:
            raise OSError(5, os.strerror(5))

        def unthought_of(_: Index) -> None:
            raise RuntimeError("unthought of")

        def work(number: int) -> None:
            started.wait(60)
            try:
                put(store, records(100 + number))
            except (NeveError, RuntimeError) as error:
                errors.append(error)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            patch.setattr(Index, "reopen", unthought_of)
            all_at_once(work, 4)
        assert len(errors) == 4
        # With its mark in the pack, and nobody to cut it off, a commit may have happened nevertheless.
        put(store, records(2))
        found = contents(store).keys()
        assert {one.key for one in records(1, 2)} <= found
        assert found <= {one.key for one in records(1, 2, 100, 101, 102, 103)}
        assert problems(store) == []
