"""Updates: reading and writing while nobody else can, from threads and processes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from neve.errors import Conflict, Corrupt
from neve.packstore.frames import Record
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore, TableTransaction
from tests.packstore.helpers import (
    BLOBS,
    NAMES,
    TABLES,
    contents,
    flip,
    opened,
    pack_paths,
    problems,
    put,
    record,
    records,
    set_name,
    stage,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[PackStore]:
    with opened(folder) as store:
        yield store


def test_an_update_sees_its_own_changes(store: PackStore) -> None:
    set_name(store, b"there", b"before")
    seen: list[object] = []

    def change(t: TableTransaction) -> str:
        seen.append([t.get(NAMES, b"there"), t.get(NAMES, b"new")])
        t.put(NAMES, Record(1, b"there", b"after"))
        t.put(NAMES, Record(1, b"new", b"value"))
        seen.append([t.get(NAMES, b"there"), t.get(NAMES, b"new")])
        assert t.delete(NAMES, b"new")
        assert not t.delete(NAMES, b"new")
        assert not t.delete(NAMES, b"never there")
        seen.append(t.get(NAMES, b"new"))
        return "result"

    assert store.update(change) == "result"
    assert seen == [[b"before", None], [b"after", b"value"], None]
    assert contents(store) == {b"there": b"after"}


def test_an_update_that_raises_changes_nothing(store: PackStore) -> None:
    set_name(store, b"name", b"before")

    def change(t: TableTransaction) -> None:
        t.put(NAMES, Record(1, b"name", b"after"))
        t.put(NAMES, Record(1, b"other", b"value"))
        t.delete(NAMES, b"name")
        raise Conflict("somebody else was first")

    with pytest.raises(Conflict, match="somebody else was first"):
        store.update(change)
    assert contents(store) == {b"name": b"before"}


def test_updates_of_one_commit_do_not_harm_each_other(store: PackStore) -> None:
    """They share a transaction, and one of them fails."""
    set_name(store, b"name", b"0")
    started, go_on = threading.Event(), threading.Event()

    def slow(t: TableTransaction) -> None:
        started.set()
        assert go_on.wait(60)

    def add(t: TableTransaction) -> None:
        t.put(NAMES, Record(1, b"name", b"%d" % (int(t.get(NAMES, b"name") or b"") + 1)))

    def spoil(t: TableTransaction) -> None:
        t.put(NAMES, Record(1, b"name", b"spoiled"))
        raise Conflict("no")

    with ThreadPoolExecutor(9) as threads:
        threads.submit(store.update, slow)
        assert started.wait(60)
        adding = [threads.submit(store.update, change) for change in (add, spoil) * 4]
        go_on.set()
        errors = [future.exception() for future in adding]
    assert [type(error) for error in errors] == [type(None), Conflict] * 4
    assert store.get(NAMES, b"name") == b"4"


def test_an_update_that_changes_nothing_writes_nothing(folder: Path, store: PackStore) -> None:
    set_name(store, b"name", b"value")
    before = [path.stat().st_size for path in pack_paths(folder)], store.index.last_seq()
    assert store.update(lambda t: t.get(NAMES, b"name")) == b"value"
    assert store.delete_many(NAMES, [b"absent"]) == store.delete_many(NAMES, []) == 0
    assert ([path.stat().st_size for path in pack_paths(folder)], store.index.last_seq()) == before


def test_staged_records_go_along(store: PackStore) -> None:
    """Those of whom a commit is wanted, be it later."""
    stage(store, records(2))
    with store.one_commit():
        put(store, records(1))
        assert store.missing(BLOBS, [records(1)[0].key])
        set_name(store, b"name", b"value")
        assert store.missing(BLOBS, [one.key for one in records(1, 2)]) == [records(2)[0].key]


def test_what_is_damaged_can_be_replaced_and_deleted(folder: Path) -> None:
    with opened(folder) as store:
        for name in (b"one", b"two"):
            set_name(store, name, b"value" * 10)
    with opened(folder) as store:
        for name in (b"one", b"two"):
            place = store.find(NAMES, [name])[name].place & 0xFFFF
            flip(pack_paths(folder)[0], place * 8 + 30)
            with pytest.raises(Corrupt, match=name.hex()):
                store.get(NAMES, name)
            with pytest.raises(Corrupt, match=name.hex()):
                increment(store, name)
        set_name(store, b"one", b"new")
        assert store.delete_many(NAMES, [b"two"]) == 1
        assert contents(store) == {b"one": b"new"}


def increment(store: PackStore, name: bytes) -> None:
    def change(t: TableTransaction) -> None:
        t.put(NAMES, Record(1, name, b"%d" % (int(t.get(NAMES, name) or b"0") + 1)))

    store.update(change)


def increment_many(folder: Path, count: int, threads: int) -> None:
    with opened(folder) as store, ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(increment, store, b"%d" % (n % 2)) for n in range(count)]:
            future.result()


def test_no_update_is_lost_between_threads(folder: Path) -> None:
    increment_many(folder, 200, 16)
    with opened(folder) as store:
        assert contents(store) == {b"0": b"100", b"1": b"100"}


def test_no_update_is_lost_between_processes(folder: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
        for future in [processes.submit(increment_many, folder, 40, 4) for _ in range(3)]:
            future.result()
    with opened(folder) as store:
        assert contents(store) == {b"0": b"60", b"1": b"60"}
        assert problems(store) == []
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == {b"0": b"60", b"1": b"60"}


def check_rebuilt(folder: Path) -> None:
    """Rebuilding the index gives the state that there was."""
    with opened(folder) as store:
        before = contents(store)
        assert problems(store) == []
    assert rebuild_index(folder, TABLES).problems == []
    with opened(folder) as store:
        assert contents(store) == before
        assert problems(store) == []


def test_deleted_and_added_again(folder: Path) -> None:
    one, two, three = records(1, 2, 3)
    with opened(folder) as store:
        put(store, [one, two, three])
        set_name(store, b"a", b"1")
        set_name(store, b"b", b"1")
        assert store.delete_many(BLOBS, [one.key, two.key]) == 2
        set_name(store, b"a", None)
    check_rebuilt(folder)
    with opened(folder) as store:
        assert contents(store) == {three.key: three.data, b"b": b"1"}
        put(store, [one])
        set_name(store, b"a", b"2")
        set_name(store, b"b", b"2")
        assert store.delete_many(BLOBS, [three.key]) == 1
    check_rebuilt(folder)
    with opened(folder) as store:
        assert contents(store) == {one.key: one.data, b"a": b"2", b"b": b"2"}
        set_name(store, b"a", None)
        put(store, [three])
        store.delete_many(BLOBS, [one.key])
    check_rebuilt(folder)
    with opened(folder) as store:
        assert contents(store) == {three.key: three.data, b"b": b"2"}


def test_deleted_while_somebody_stores_it_again(folder: Path) -> None:
    """The second copy is in the pack before the deletion is, and committed after it."""
    [one] = records(1)
    staged = PackStore.stage
    with opened(folder) as store:
        put(store, [one])
        running, go_on = threading.Event(), threading.Event()

        def delete(t: TableTransaction) -> None:
            t.delete(BLOBS, one.key)
            running.set()
            assert go_on.wait(60)

        with ThreadPoolExecutor(1) as threads:
            deleting = threads.submit(store.update, delete)
            assert running.wait(60)
            staged(store, BLOBS, [one, record(b"another")], store.writer.begin())
            go_on.set()
            deleting.result()
        store.writer.commit()
    check_rebuilt(folder)


Step = Callable[[PackStore], None]

STEPS: list[Step] = [
    lambda store: set_name(store, b"name", b"by one"),
    lambda store: put(store, records(1)),
    lambda store: set_name(store, b"name", None),
    lambda store: (store.delete_many(BLOBS, [records(1)[0].key]), None)[1],
]


def run_step(folder: Path, number: int) -> None:
    with opened(folder) as store:
        STEPS[number](store)


def take_turns(folder: Path, turns: list[tuple[int, int]]) -> None:
    """Runs steps in two processes that both have the store open all the time, so each has its pack."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, context, initializer=keep_open, initargs=(folder,)) for _ in range(2)]
    try:
        for process, step in turns:
            pools[process].submit(run_step, folder, step).result()
    finally:
        for pool in pools:
            pool.shutdown()


_kept: list[PackStore] = []


def keep_open(folder: Path) -> None:
    _kept.append(PackStore.open(folder))
    set_name(_kept[0], b"%d" % id(_kept), b"so that there is a pack")


@pytest.mark.parametrize(
    "turns",
    [
        [(0, 0), (1, 2), (0, 1), (1, 3)],
        [(0, 1), (1, 3), (0, 1), (1, 0), (0, 2), (1, 0)],
        [(1, 0), (0, 2), (1, 1), (0, 3), (0, 1), (1, 3)],
        [(1, 1), (0, 3), (1, 1), (1, 3), (0, 1)],
    ],
)
def test_the_order_of_commits_counts_across_packs(folder: Path, turns: list[tuple[int, int]]) -> None:
    take_turns(folder, turns)
    assert len(pack_paths(folder)) == 2
    check_rebuilt(folder)
