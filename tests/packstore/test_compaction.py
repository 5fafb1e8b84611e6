"""Rewriting packs: what is not in use gives its space back, all else stays, whoever goes on meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from neve.errors import DiskFull, Unavailable
from neve.packstore import compaction, index, moving
from neve.packstore.appender import lock_pack
from neve.packstore.check import pack_bytes
from neve.packstore.compaction import Compacted, compact
from neve.packstore.index_writer import IndexWriter
from neve.packstore.layout import PACKS_DIR, pack_ids, pack_name
from neve.packstore.location import pack_of
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore
from neve.packstore.survey import survey
from tests.disks import fill_up, free_bytes, small_disk
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
    set_name,
)
from tests.packstore.steps import Steps, die_at, fail_at, in_a_child

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def data_of(number: int) -> bytes:
    """A kilobyte or ten, some of it compressible."""
    noise = random.Random(number)
    return noise.randbytes(noise.randrange(500, 5000)) + b"%d" % number * noise.randrange(1000)


def fill(store: PackStore, numbers: range, *, at_once: int = 100) -> None:
    for start in range(numbers.start, numbers.stop, at_once):
        put(store, [record(data_of(n)) for n in numbers if start <= n < start + at_once])


def forget(store: PackStore, numbers: Iterator[int] | range) -> None:
    """Drops records as a collection does: only the index forgets them."""
    keys = [record(data_of(number)).key for number in numbers]

    def drop(txn: IndexWriter) -> None:
        for key in keys:
            txn.delete(BLOBS.id, key)

    store.index.run(drop)


def compacted(store: PackStore) -> Compacted:
    return compact(store, survey(store.index))


def half_dead(folder: Path) -> dict[bytes, bytes | None]:
    """A store of which about half is not in use, of whole frames and of parts; what is in use."""
    with opened(folder) as store:
        fill(store, range(400))
        for number in range(30):
            set_name(store, b"name %d" % number, b"first")
        for number in range(20):
            set_name(store, b"name %d" % number, b"second" * 100)
        for number in range(10):
            set_name(store, b"name %d" % number, None)
        forget(store, range(200))
        forget(store, iter(range(200, 400, 3)))
        return contents(store)


def check(folder: Path, expected: dict[bytes, bytes | None]) -> None:
    """All that is in use is there, also for who makes the index anew."""
    with opened(folder) as store:
        assert contents(store) == expected
        assert problems(store) == []
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        found = contents(store)
        assert {key: found.get(key) for key in expected} == expected
        # What only the index had forgotten may be back; what was deleted may not.
        assert {key for key in found if len(key) < 32} == {key for key in expected if len(key) < 32}
        assert problems(store) == []


def test_space_is_given_back(folder: Path) -> None:
    expected = half_dead(folder)
    with opened(folder) as store:
        before = pack_bytes(folder)
        dead = sum(survey(store.index).dead(store.index.pack_lengths()).values())
        assert dead > before / 3
        done = compacted(store)
        assert done.problems == []
        assert done.packs_removed == 1
        assert done.busy == 0
        assert before - pack_bytes(folder) > 0.95 * dead
        assert pack_bytes(folder) == sum(store.index.pack_lengths().values())
        assert contents(store) == expected
        # Nothing is left to do.
        again = compacted(store)
        assert (again.packs_removed, again.moved) == (0, 0)
    check(folder, expected)


def test_the_writer_goes_on(folder: Path) -> None:
    """Its pack is parked, and gone when it comes back to it."""
    with opened(folder) as store:
        fill(store, range(100))
        old = pack_ids(folder)
        forget(store, range(90))
        assert compacted(store).packs_removed == 1
        fill(store, range(200, 210))
        assert not set(old) & set(pack_ids(folder))
        expected = contents(store)
        assert len(expected) == 20
    check(folder, expected)


def test_what_somebody_stages_is_left_alone(folder: Path) -> None:
    with opened(folder) as store:
        fill(store, range(100))
        forget(store, range(90))
        with store.writer.session() as session:
            store.stage(BLOBS, [record(b"staged")], session)
            store.writer._staging.join()
            done = compacted(store)
            assert done.packs_removed == 0
            assert done.busy > 0
            store.writer.commit(session)
        assert compacted(store).packs_removed == 1
        assert len(contents(store)) == 11


def test_a_pack_that_is_hardly_dead_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as store:
        fill(store, range(200))
        forget(store, range(6))
        assert compacted(store).packs_removed == 0
        monkeypatch.setattr(compaction, "MIN_DEAD_SHARE", 0.001)
        assert compacted(store).packs_removed == 1
        assert len(contents(store)) == 194


def test_after_a_rebuild_no_name_of_a_pack_is_used_again(folder: Path) -> None:
    """The newest pack is removed first, and what is then moved must not go where it was."""
    with opened(folder) as store:
        fill(store, range(100))
        with lock_pack_of(folder, 0):
            fill(store, range(100, 200))
        assert pack_ids(folder) == [1, 2]
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        forget(store, iter((*range(50), *range(100, 200))))
        expected = contents(store)
        assert compacted(store).packs_removed == 2
        assert pack_ids(folder) == [3]
        assert contents(store) == expected
    check(folder, expected)


@pytest.mark.parametrize("bound", ["_REMOVE_EVERY", "_HELD_PACKS"])
def test_many_batches_and_packs(folder: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(moving, "_BATCH_RECORDS", 37)
    monkeypatch.setattr(compaction, bound, 300_000 if bound == "_REMOVE_EVERY" else 2)
    monkeypatch.setattr("neve.packstore.appender.PACK_LIMIT", 200_000)
    expected = half_dead(folder)
    assert len(pack_paths(folder)) > 4
    with opened(folder) as store:
        done = compacted(store)
        assert done.problems == []
        assert done.packs_removed > 3
    check(folder, expected)


def test_the_index_grows_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = half_dead(folder)
    monkeypatch.setattr(index, "INITIAL_MAP", 128 * 1024)
    with opened(folder) as store:
        assert compacted(store).packs_removed == 1
    check(folder, expected)


def test_deletions_are_repeated_as_long_as_they_delete_something(folder: Path) -> None:
    """The deletion lies in another pack than what it deletes, and that one is not worth rewriting."""
    with opened(folder) as store:
        fill(store, range(200))
        set_name(store, b"deleted", b"value")
        with lock_pack_of(folder, 0):
            set_name(store, b"deleted", None)
            fill(store, range(200, 220))
        forget(store, range(200, 218))
        assert compacted(store).packs_removed == 1
        expected = contents(store)
        assert b"deleted" not in expected
    check(folder, expected)


class lock_pack_of:  # noqa: N801 - reads like a function
    """Somebody else's process holds a pack for the time of the block."""

    def __init__(self, folder: Path, number: int) -> None:
        self._id = pack_ids(folder)[number]
        self._path = folder / PACKS_DIR / pack_name(self._id)

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def test_a_record_that_is_deleted_while_it_moves_stays_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = half_dead(folder)
    victims = [key for key in expected if len(key) == 32][:5]
    for key in [*victims, b"name 25"]:
        del expected[key]
    write = moving.Mover._commit

    def delete_first(self: moving.Mover, **arguments: Any) -> None:
        store.delete_many(BLOBS, victims)
        store.delete_many(NAMES, [b"name 25"])
        write(self, **arguments)

    with opened(folder) as store:
        monkeypatch.setattr(moving.Mover, "_commit", delete_first)
        assert compacted(store).problems == []
        assert contents(store) == expected
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert not set(victims) & contents(store).keys()
        assert b"name 25" not in contents(store)


# Readers.


def test_who_holds_a_pack_open_finds_what_moved(folder: Path) -> None:
    expected = half_dead(folder)
    with opened(folder) as store:
        located = store.find(BLOBS, list(expected))
        first = min(located, key=lambda key: located[key].place)
        store.read(BLOBS, first, located[first])
        descriptors = len(os.listdir("/proc/self/fd"))
        assert compacted(store).packs_removed == 1
        store._reader._frames._items.clear()
        for key, location in located.items():
            assert store.read(BLOBS, key, location) == expected[key]
        # The old pack was let go of, and the new one opened.
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


def test_what_moves_again_while_it_is_looked_for_is_found(folder: Path) -> None:
    """Two collections, one right after the other, each between a look at the index and one at the pack."""
    half_dead(folder)
    with opened(folder) as store:
        key, data = min(contents(store).items())
        places = [store.find(BLOBS, [key])[key]]
        for round_ in range(2):
            compacted(store)
            places.append(store.find(BLOBS, [key])[key])
            others = [one for one in contents(store) if one != key]
            store.delete_many(BLOBS, others[round_ % 2 :: 2])
        compacted(store)
        places.append(store.find(BLOBS, [key])[key])
        assert len({place.place for place in places}) == len(places)
        found = iter(places[1:])
        store._reader._frames._items.clear()
        again = store._reader.record_retrying(key, places[0], lambda: {key: next(found)})
        assert again == data
        assert next(found, None) is None


def read_until(folder: Path, keys: dict[bytes, bytes], stop: Path) -> int:
    rounds = 0
    with opened(folder) as store:
        while True:
            done = stop.exists()
            store._reader._frames._items.clear()
            for key, data in keys.items():
                assert store.get(BLOBS, key) == data
            assert problems(store) == []
            rounds += 1
            if done:
                return rounds


def write_until(folder: Path, writer: int, stop: Path) -> int:
    written = 0
    with opened(folder) as store:
        while not stop.exists():
            fill(store, range(10_000 * writer + written, 10_000 * writer + written + 20))
            written += 20
    return written


def test_readers_and_writers_in_other_processes_go_on(folder: Path, tmp_path: Path) -> None:
    """Rounds of storing and forgetting, each with a compaction; others read, verify and write throughout."""
    stop = tmp_path / "stop"
    with opened(folder) as store:
        fill(store, range(100))
        kept = {key: data for key, data in contents(store).items() if data is not None}
        with ProcessPoolExecutor(3, mp_context=SPAWN) as processes:
            reading = processes.submit(read_until, folder, kept, stop)
            writing = [processes.submit(write_until, folder, writer, stop) for writer in (1, 2)]
            removed = 0
            try:
                for turn in range(12):
                    fill(store, range(1000 + 100 * turn, 1100 + 100 * turn))
                    forget(store, range(1000 + 100 * turn, 1100 + 100 * turn))
                    done = compacted(store)
                    assert done.problems == []
                    removed += done.packs_removed
            finally:
                stop.touch()
            assert reading.result()
            written = [future.result() for future in writing]
        assert removed > 3
        found = contents(store)
        for writer, count in zip((1, 2), written, strict=True):
            for number in range(10_000 * writer, 10_000 * writer + count):
                assert record(data_of(number)).key in found
        assert kept.items() <= found.items()
        assert problems(store) == []


# Damage.


@pytest.mark.parametrize("where", ["head", "payload"])
def test_a_damaged_frame_keeps_its_pack(folder: Path, where: str) -> None:
    expected = half_dead(folder)
    with opened(folder) as store:
        located = store.find(BLOBS, [key for key in expected if len(key) == 32])
        victim = max(located.values(), key=lambda location: location.place)
        lost = {key for key, location in located.items() if location.place == victim.place}
        path = pack_paths(folder)[0]
        offset = victim.place & (1 << 40) - 1
        flip(path, 8 * (offset + 5 if where == "payload" else offset - victim.entries_len - 10))
        size = path.stat().st_size
        done = compacted(store)
        assert done.packs_removed == 0
        assert len(done.problems) == 1
        assert path.name in done.problems[0]
        if where == "payload":
            assert any(key.hex() in done.problems[0] for key in lost)
        # Those of the damaged frame still point to it, the others have moved.
        assert path.stat().st_size == size
        for key in located:
            assert (pack_of(store.find(BLOBS, [key])[key].place) == pack_of(victim.place)) == (key in lost)
            if key not in lost:
                assert store.get(BLOBS, key) == expected[key]
        # Once it is whole again, nothing was lost.
        flip(path, 8 * (offset + 5 if where == "payload" else offset - victim.entries_len - 10))
        assert compacted(store).packs_removed == 1
    check(folder, expected)


def test_damage_where_nothing_is_in_use_matters_to_nobody(folder: Path) -> None:
    expected = half_dead(folder)
    with opened(folder) as store:
        flip(pack_paths(folder)[0], 8 * 2000)
        assert compacted(store).problems == []
        assert len(pack_paths(folder)) == 1
    check(folder, expected)


# Full disks.


@pytest.mark.root
def test_a_disk_without_room_to_move_anything(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 20_000_000) as disk:
        expected = half_dead(disk / "store")
        with opened(disk / "store") as store:
            before = pack_bytes(disk / "store")
            fill_up(disk / "full", leave=0)
            done = compacted(store)
            assert done.packs_removed == 0
            assert len(done.problems) == 1
            assert "disk full" in done.problems[0]
            assert contents(store) == expected
            (disk / "full").unlink()
            assert pack_bytes(disk / "store") <= before + 64
            assert compacted(store).packs_removed == 1
        check(disk / "store", expected)


@pytest.mark.root
def test_what_takes_no_room_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pack is dead as a whole, others in part; there is room for less than has to be moved."""
    monkeypatch.setattr("neve.packstore.appender.PACK_LIMIT", 400_000)
    with small_disk(tmp_path / "disk", 20_000_000) as disk:
        folder = disk / "store"
        with opened(folder) as store:
            fill(store, range(600), at_once=50)
            forget(store, range(150))
            forget(store, iter(range(150, 600, 2)))
            expected = contents(store)
            packs = len(pack_paths(folder))
            fill_up(disk / "full", leave=0)
            with (disk / "full").open("r+b") as file:
                file.truncate((disk / "full").stat().st_size - 120_000)
            assert free_bytes(disk) < 200_000
            done = compacted(store)
            assert done.problems == []
            assert done.packs_removed >= packs - 2
            assert contents(store) == expected
        check(folder, expected)


# Killed, and failing, at any step.


def run_compaction(folder: Path, act: Callable[[int], None]) -> None:
    with pytest.MonkeyPatch.context() as patch, opened(folder) as store:
        patch.setattr(moving, "_BATCH_RECORDS", 30)
        Steps(patch, act, index_too=True)
        compacted(store)


def check_lengths(folder: Path, store: PackStore) -> None:
    """Nothing is left in the packs that the index does not know of."""
    lengths = store.index.pack_lengths()
    for path in pack_paths(folder):
        assert path.stat().st_size == lengths.get(int(path.stem, 16), 64)


def test_killed_at_every_step(folder: Path, tmp_path: Path) -> None:
    expected = half_dead(folder)
    step = 0
    while True:
        step += 1
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        status = in_a_child(lambda: run_compaction(copy, die_at(step)))  # noqa: B023
        with opened(copy) as store:
            assert contents(store) == expected, step
            assert problems(store) == [], step
            # Whoever comes next ends what was begun.
            assert compacted(store).problems == []
            assert contents(store) == expected, step
            assert sum(survey(store.index).dead(store.index.pack_lengths()).values()) < 20_000, step
            check_lengths(copy, store)
        if step % 5 == 0:
            check(copy, expected)
        shutil.rmtree(copy)
        if status == 0:
            break
        assert status == -9
    assert step > 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failing_at_every_step(folder: Path, tmp_path: Path, number: int) -> None:
    expected = half_dead(folder)
    step, failed = 0, True
    while failed:
        step += 1
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        with opened(copy) as store:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(moving, "_BATCH_RECORDS", 30)
                steps = Steps(patch, fail_at(step, number))
                with contextlib.suppress(DiskFull if number == errno.ENOSPC else Unavailable):
                    compacted(store)
                failed = steps.count >= step
            # The same process goes on.
            assert contents(store) == expected, step
            assert compacted(store).problems == []
            assert contents(store) == expected, step
            put(store, [record(b"more")])
            assert problems(store) == [], step
        shutil.rmtree(copy)
    assert step > 10


def test_a_pack_that_is_parked_can_be_had_by_nobody_else(folder: Path) -> None:
    with opened(folder) as store:
        put(store, [record(b"x")])
        path = pack_paths(folder)[0]
        assert lock_pack(path, 1) is None
        size = path.stat().st_size
        put(store, [record(b"y")])
        assert path.stat().st_size > size
        assert pack_ids(folder) == [1]
        # Somebody shares it: then another one is used.
        with lock_pack_of(folder, 0):
            size = path.stat().st_size
            put(store, [record(b"z")])
            assert path.stat().st_size == size
            assert len(pack_ids(folder)) == 2
        assert problems(store) == []
