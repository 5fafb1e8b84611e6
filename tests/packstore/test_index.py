"""The index: reading and writing, growth, damaged data files, readers without a lock."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import lmdb
import pytest

from neve.errors import Corrupt, InvalidRequest, Unavailable
from neve.packstore import datafile, index
from neve.packstore.datafile import check_data_file
from neve.packstore.index import Index, MapFull
from neve.packstore.index_writer import IndexWriter
from neve.packstore.location import Location, make_place
from tests.packstore.helpers import flip


def location(number: int, tag: int = 1) -> Location:
    return Location(tag, make_place(1, number), 0, 10, 10, 20, 0, 10)


def key(number: int) -> bytes:
    return b"key %08d" % number


def put_absent(opened: Index, entries: list[tuple[bytes, Location]]) -> None:
    opened.run(lambda txn: txn.put_absent(1, entries))


def fill(opened: Index, numbers: range, tag: int = 1) -> None:
    put_absent(opened, [(key(n), location(n, tag)) for n in numbers])


def put(opened: Index, table: int, number: int) -> None:
    opened.run(lambda txn: txn.put(table, key(number), location(number)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def opened(folder: Path) -> Iterator[Index]:
    opened = Index(folder, create=True)
    yield opened
    opened.close()


def test_reading(opened: Index) -> None:
    fill(opened, range(100))
    assert opened.get_many(1, [key(5), b"other", key(7)]) == {key(5): location(5), key(7): location(7)}
    assert opened.get_many(2, [key(5)]) == {}
    assert opened.missing(1, iter([b"a", key(1), b"a"])) == [b"a", b"a"]
    assert opened.count(1) == 100
    assert opened.page(1, b"", 3) == [(key(n), location(n)) for n in range(3)]
    assert opened.page(1, key(97), 10) == [(key(98), location(98)), (key(99), location(99))]
    assert opened.page(1, key(97) + b"x", 1) == [(key(98), location(98))]
    assert opened.page(1, key(99), 10) == opened.page(1, b"", 0) == opened.page(2, b"", 10) == []


@pytest.mark.parametrize("wrong", [b"", b"x" * 600])
def test_keys_that_no_table_takes(opened: Index, wrong: bytes) -> None:
    fill(opened, range(1))
    if not wrong:
        with pytest.raises(InvalidRequest):
            opened.get_many(1, [wrong])
    with pytest.raises(InvalidRequest):
        opened.run(lambda txn: txn.put(1, wrong, location(1)))


def test_an_entry_stays_unless_the_new_tag_is_higher(opened: Index) -> None:
    fill(opened, range(5), tag=2)
    for tag, expected in ((1, 2), (2, 2), (3, 3)):
        later = [(key(n), location(n + 100, tag)) for n in range(10)]
        put_absent(opened, later)
        assert opened.get_many(1, [key(1)])[key(1)].tag == expected
    assert opened.get_many(1, [key(9)])[key(9)] == location(109, 3)


def test_nothing_remains_of_a_failed_transaction(opened: Index) -> None:
    def fail(txn: IndexWriter) -> None:
        txn.put(1, key(1), location(1))
        txn.set_pack_length(1, 100)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opened.run(fail)
    assert opened.count(1) == 0
    assert opened.pack_lengths() == {}


def test_numbers_of_transactions_grow(opened: Index, folder: Path) -> None:
    seqs = []
    for number in range(3):
        put(opened, 1, number)
        seqs.append(opened.last_seq())
    opened.run(lambda txn: txn.raise_seq_above(1000))
    opened.run(lambda txn: txn.raise_seq_above(10))
    opened.reopen()
    seqs.append(opened.run(lambda txn: txn.seq))
    assert seqs == sorted(set(seqs))
    assert seqs[-1] > 1000
    assert opened.last_seq() < seqs[-1]


def test_growth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "INITIAL_MAP", 256 * 1024)
    opened, other = Index(folder, create=True), None
    for start in range(0, 20_000, 1000):
        fill(opened, range(start, start + 1000))
        assert opened.count(1) == start + 1000
    with pytest.raises(MapFull), opened.write() as txn:
        txn.put_absent(1, [(key(n), location(n)) for n in range(1_000_000, 1_200_000)])
    opened.close()
    other = Index(folder)
    assert other.count(1) == 20_000
    other.close()


def test_readers_do_not_keep_the_map_from_growing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "INITIAL_MAP", 256 * 1024)
    opened = Index(folder, create=True)
    fill(opened, range(10))
    stop = threading.Event()

    def read() -> int:
        count = 0
        while not stop.is_set():
            assert len(opened.get_many(1, [key(n) for n in range(10)])) == 10
            count += 1
        return count

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read) for _ in range(6)]
        for start in range(10, 10_000, 500):
            fill(opened, range(start, start + 500))
        stop.set()
        assert all(reader.result() for reader in readers)
    opened.close()


def test_reopening_under_readers(opened: Index) -> None:
    fill(opened, range(1000))
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            assert len(opened.page(1, b"", 1000)) == 1000

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        for number in range(30):
            opened.reopen()
            put(opened, 2, number)
        stop.set()
        for reader in readers:
            reader.result()
    assert opened.count(2) == 30


def test_a_failed_commit_is_healed(opened: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed write of its meta page LMDB refuses everything until it is opened anew."""
    fill(opened, range(10))

    class Failing:
        def __init__(self, inner: lmdb.Environment) -> None:
            self._inner = inner

        def begin(self, **_: object) -> None:
            raise lmdb.PanicError("mdb_txn_begin")

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    monkeypatch.setattr(opened, "_env", Failing(opened._env))
    with pytest.raises(Unavailable, match="a write failed before"):
        fill(opened, range(20))
    assert opened.count(1) == 10
    fill(opened, range(20))
    assert opened.count(1) == 20
    # Who reads before whoever wrote has learned of it.
    monkeypatch.setattr(opened, "_env", Failing(opened._env))
    assert opened.count(1) == 20


def test_a_closed_index(opened: Index) -> None:
    opened.close()
    with pytest.raises(Unavailable):
        opened.count(1)


# Opening.


def test_a_missing_index(folder: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(Corrupt, match=r"the index is missing; run: neve verify --rebuild-index"):
            Index(folder, read_only=read_only)
    (folder / "data.mdb").touch()
    for read_only in (False, True):
        with pytest.raises(Corrupt, match="the index is missing"):
            Index(folder, read_only=read_only)
    assert (folder / "data.mdb").stat().st_size == 0
    Index(folder, create=True).close()
    Index(folder, read_only=True).close()


def test_a_creator_that_died(folder: Path) -> None:
    """It has made the file and its meta pages, and not yet the tables."""
    lmdb.open(str(folder), max_dbs=10).close()
    with pytest.raises(Corrupt, match="lacks a table"):
        Index(folder)
    opened = Index(folder, create=True)
    fill(opened, range(10))
    opened.close()
    # A store with an index never gets a new one, whatever is asked for.
    opened = Index(folder, create=True)
    assert opened.count(1) == 10
    opened.close()


def test_any_truncation_shows(opened: Index, folder: Path) -> None:
    fill(opened, range(5000))
    opened.close()
    data = (folder / "data.mdb").read_bytes()
    for size in (1, 100, 4095, 4096, 5000, 8191, 8192, 8193, 50_000, len(data) // 2, len(data) - 8192):
        (folder / "data.mdb").write_bytes(data[:size])
        for read_only in (False, True):
            with pytest.raises(Corrupt, match=r"run: neve verify --rebuild-index"):
                Index(folder, read_only=read_only)
    (folder / "data.mdb").write_bytes(data)
    Index(folder).close()


def outcome(folder: Path) -> str | list[tuple[bytes, Location]]:
    """All entries of table 1, or "corrupt"."""
    try:
        damaged = Index(folder, read_only=True)
    except Corrupt:
        return "corrupt"
    try:
        return damaged.page(1, b"", 5000)
    except Corrupt:
        return "corrupt"
    finally:
        damaged.close()


def test_no_bit_of_a_meta_page_goes_unnoticed_and_matters(folder: Path) -> None:
    """Either it is refused, or everything is as it was, or as it was one transaction ago."""
    opened = Index(folder, create=True)
    for start in range(0, 600, 100):
        fill(opened, range(start, start + 100))
    before = opened.page(1, b"", 5000)
    opened.run(lambda txn: delete(txn, range(50)))
    expected = opened.page(1, b"", 5000)
    opened.close()
    outcomes = []
    for page in (0, 4096):
        for bit in range(page * 8, (page + 16 + 136) * 8, 3):
            flip(folder / "data.mdb", bit)
            outcomes.append(outcome(folder))
            # Recovery repeats the last transaction from the packs.
            assert outcomes[-1] in ("corrupt", expected, before)
            flip(folder / "data.mdb", bit)
    assert outcomes.count("corrupt") > 100
    assert outcomes.count(before) < 5


def delete(txn: IndexWriter, numbers: range) -> None:
    for number in numbers:
        txn.delete(1, key(number))


def test_a_page_that_lmdb_would_die_of(opened: Index, folder: Path) -> None:
    """Numbers, flags, bounds and pointers of pages: LMDB fails assertions, or reads behind the file."""
    fill(opened, range(2000))
    opened.close()
    path = folder / "data.mdb"
    refused: dict[int, int] = {}
    for page in range(2, path.stat().st_size // 4096):
        for byte in (1, 10, 11, 13, 15, 17):
            flip(path, (page * 4096 + byte) * 8 + 5)
            try:
                check_data_file(folder)
            except Corrupt as error:
                refused[page] = refused.get(page, 0) + (f"page {page} is damaged" in str(error))
            flip(path, (page * 4096 + byte) * 8 + 5)
    # The rest of the pages is free, nobody looks at them.
    assert len(refused) > 25
    assert all(count >= 5 for count in refused.values())


def test_long_files_are_not_looked_through(
    opened: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(opened, range(5000))
    opened.close()
    flip(folder / "data.mdb", (60 * 4096 + 1) * 8)
    with pytest.raises(Corrupt, match="page 60 is damaged"):
        check_data_file(folder)
    monkeypatch.setattr(datafile, "PAGES_CHECKED_UP_TO", 10_000)
    check_data_file(folder)


def test_opening_while_others_commit(opened: Index, folder: Path) -> None:
    """The look at all pages must not take for damage what has been written anew meanwhile."""
    fill(opened, range(3000))
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            put(opened, 1, number % 3000)

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(write)
        for _ in range(200):
            check_data_file(folder)
        stop.set()
        writer.result()


@pytest.mark.parametrize("commits", [1, 2, 3, 4])
@pytest.mark.parametrize("look", [0, 1, 2])
def test_commits_between_two_looks(
    opened: Index, folder: Path, monkeypatch: pytest.MonkeyPatch, look: int, commits: int
) -> None:
    """Behind the look at the first meta page, at the second, or at all other pages."""
    fill(opened, range(3000))
    pread = os.pread
    looks: list[int] = []

    def held_up(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        if len(looks) == look:
            for number in range(commits):
                put(opened, 1, number)
        looks.append(offset)
        return data

    monkeypatch.setattr(os, "pread", held_up)
    check_data_file(folder)
    assert len(looks) >= 3


def test_a_page_that_is_being_written_anew(
    opened: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one commit frees the next one writes to: before the meta page tells of that."""
    fill(opened, range(3000))
    run, results = datafile._PageCheck.run, []

    def disturbed(check: datafile._PageCheck) -> int | None:
        results.append(run(check))
        if len(results) == 1:
            put(opened, 1, 1)
            return 5
        return results[-1]

    monkeypatch.setattr(datafile._PageCheck, "run", disturbed)
    check_data_file(folder)
    assert results == [None, None]


# Without a lock file that can be written.


def read_unregistered(folder: Path, ready: Event, stop: Event) -> None:
    """Reads as a process does that has no write permission. Runs in a process of its own."""
    access = os.access
    os.access = lambda path, mode: mode != os.W_OK and access(path, mode)  # type: ignore[assignment,misc]
    reading = Index(folder, read_only=True)
    assert reading._registered is False
    keys = [key(n) for n in range(1000)]
    ready.set()
    while not stop.is_set():
        found = reading.get_many(1, keys)
        assert found.keys() == set(keys)
        # Each transaction writes all entries with the same tag: no mixture may show.
        assert len({one.tag for one in found.values()}) == 1
        assert [one for one, _ in reading.page(1, b"", 2000)] == keys
        assert reading.count(1) == 1000
    reading.close()


def test_reading_without_a_lock(opened: Index, folder: Path) -> None:
    """LMDB may write anew what such a reader looks at: then it looks again."""
    fill(opened, range(1000))
    spawn = multiprocessing.get_context("spawn")
    ready, stop = spawn.Event(), spawn.Event()
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_share, initargs=(ready, stop)) as processes:
        reader = processes.submit(_read_shared, folder)
        assert ready.wait(60)
        for number in range(300):
            retag(opened, number % 100 + 2)
            if reader.done():
                break
        stop.set()
        reader.result(60)


def retag(opened: Index, tag: int) -> None:
    def change(txn: IndexWriter) -> None:
        for n in range(1000):
            txn.put(1, key(n), location(n, tag))

    opened.run(change)


_shared: list[Event] = []


def _share(*events: Event) -> None:
    _shared.extend(events)


def _read_shared(folder: Path) -> None:
    read_unregistered(folder, *_shared)
