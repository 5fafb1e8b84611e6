"""Disks that are full, and disks that cannot be written: real ones, in memory."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.local import LocalBlobService
from neve.castore.directories import spool
from neve.castore.directories.local import LocalDirectoryService
from neve.errors import DiskFull, PermissionDenied
from neve.packstore import index
from neve.packstore.check import pack_bytes
from neve.packstore.frames import Record
from neve.packstore.layout import INDEX_DIR
from neve.packstore.rebuild import rebuild_index
from neve.packstore.sessions import Session
from neve.packstore.store import PackStore
from neve.testing.blob_reading import put as put_blob
from neve.testing.directories import leaf, put_closure, tree
from tests.disks import fill_up, free_bytes, small_disk
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

pytestmark = pytest.mark.root

Disk = Callable[[Path, int], Path]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Mounts a disk of so many bytes on a folder."""
    with contextlib.ExitStack() as mounted:
        yield lambda path, size: mounted.enter_context(small_disk(path, size))


def put_until_full(store: PackStore, size: int) -> tuple[list[Record], list[Record]]:
    """What was acknowledged, and what the failing put was about."""
    noise = random.Random(size)
    acknowledged: list[Record] = []
    while True:
        several = [record(noise.randbytes(size)) for _ in range(3)]
        try:
            put(store, several)
        except DiskFull:
            return acknowledged, several
        acknowledged += several


@pytest.mark.parametrize("size", [100, 5_000, 200_000])
def test_a_full_disk(tmp_path: Path, disk: Disk, size: int) -> None:
    root = disk(tmp_path / "disk", 2_500_000)
    (root / "ballast").write_bytes(bytes(1_000_000))
    folder = root / "store"
    with opened(folder) as store:
        set_name(store, b"name", b"value")
        if size == 100:
            fill_up(root / "filling")
        acknowledged, failed = put_until_full(store, size)
        expected = {one.key: bytes(one.data) for one in acknowledged} | {b"name": b"value"}
        # Nothing more fits, nothing is half there, and reading goes on.
        for _ in range(3):
            with pytest.raises(DiskFull, match="disk full"):
                put(store, [record(os.urandom(1_500_000))])
        assert contents(store) == expected
        assert len(store.missing(BLOBS, [one.key for one in failed])) == len(failed)
    with opened(folder, read_only=True) as store:
        assert contents(store) == expected
    with opened(folder) as store:
        assert contents(store) == expected
        (root / "ballast").unlink()
        assert problems(store) == []
        put(store, failed)
        set_name(store, b"name", b"changed")
        expected |= {one.key: bytes(one.data) for one in failed} | {b"name": b"changed"}
        assert contents(store) == expected
        assert problems(store) == []
    rebuild_index(folder, TABLES)
    with opened(folder) as store:
        assert contents(store) == expected


def test_the_index_is_what_does_not_fit(tmp_path: Path, disk: Disk) -> None:
    """The packs have room, LMDB's commit fails."""
    folder = tmp_path / "store"
    disk(folder / INDEX_DIR, 1_000_000)
    with opened(folder) as store:
        acknowledged: list[Record] = []
        failures = 0
        for turn in range(3):
            if turn < 2:
                fill_up(folder / INDEX_DIR / "filling")
            else:
                (folder / INDEX_DIR / "filling").unlink()
            for number in range(60):
                several = records(*range(turn * 10_000 + number * 30, turn * 10_000 + number * 30 + 30))
                size = pack_paths(folder)[-1].stat().st_size if pack_paths(folder) else 0
                try:
                    put(store, several)
                    acknowledged += several
                except DiskFull:
                    failures += 1
                    assert store.missing(BLOBS, [one.key for one in several])
                    if size:
                        assert pack_paths(folder)[-1].stat().st_size == size
        assert failures > 50
        assert len(acknowledged) >= 60 * 30
        expected = {one.key: bytes(one.data) for one in acknowledged}
        assert contents(store) == expected
        assert problems(store) == []
    with opened(folder) as store:
        assert contents(store) == expected


def test_an_update_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    folder = tmp_path / "store"
    disk(folder / INDEX_DIR, 1_000_000)
    with opened(folder) as store:
        for number in range(20):
            set_name(store, b"%d" % number, b"before")
        fill_up(folder / INDEX_DIR / "filling")
        before = contents(store)
        failed = 0
        for number in range(400):
            try:
                set_name(store, b"%d" % number, b"after")
                before[b"%d" % number] = b"after"
            except DiskFull:
                failed += 1
        assert failed > 10
        assert contents(store) == before
        (folder / INDEX_DIR / "filling").unlink()
        set_name(store, b"new", b"value")
        assert contents(store) == before | {b"new": b"value"}


def test_a_tail_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    """What the index has lost cannot be put back now; reading goes on, and later it is."""
    folder = tmp_path / "store"
    disk(folder / INDEX_DIR, 1_000_000)
    with opened(folder) as store:
        put(store, records(*range(1000)))
        index = data_file(folder).read_bytes()
        before = contents(store)
    with opened(folder) as store:
        put(store, records(*range(1000, 2000)))
        after = contents(store)
    data_file(folder).write_bytes(index)
    fill_up(folder / INDEX_DIR / "filling")
    with opened(folder) as store:
        assert contents(store) == before
        with pytest.raises(DiskFull):
            put(store, records(9999))
        (folder / INDEX_DIR / "filling").unlink()
        put(store, records(9999))
        assert contents(store) == after | {records(9999)[0].key: records(9999)[0].data}
        assert problems(store) == []


def test_rebuilding_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    root = disk(tmp_path / "disk", 2_500_000)
    with opened(root / "store") as store:
        put(store, records(*range(2000)))
        expected = contents(store)
    fill_up(root / "filling")
    with pytest.raises(DiskFull, match="disk full"):
        rebuild_index(root / "store", TABLES)
    with opened(root / "store", read_only=True) as store:
        assert contents(store) == expected
    (root / "filling").unlink()
    rebuild_index(root / "store", TABLES)
    with opened(root / "store") as store:
        assert contents(store) == expected


def test_creating_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    root = disk(tmp_path / "disk", 1_000_000)
    fill_up(root / "filling")
    with pytest.raises(DiskFull, match="disk full"):
        PackStore.open(root / "store")
    (root / "filling").unlink()
    with opened(root / "store") as store:
        put(store, records(1))
        assert problems(store) == []


def test_services_on_a_full_disk(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    root = disk(tmp_path / "disk", 3_000_000)
    blobs = LocalBlobService(PackStore.open(root / "store"))
    directories = LocalDirectoryService(PackStore.open(root / "store"))
    kept = blobs.put_many([b"kept"])
    fill_up(root / "filling")
    contents = os.urandom(2_000_000)
    with pytest.raises(DiskFull, match="disk full"):
        blobs.put_many([contents])
    with pytest.raises(DiskFull, match="disk full"):
        put_blob(blobs, contents, 100_000)
    many = [leaf(str(number)) for number in range(500)]
    with pytest.raises(DiskFull, match="disk full"):
        put_closure(directories, many)
    assert blobs.list() == kept
    assert directories.list() == []
    (root / "filling").unlink()
    digests = blobs.put_many([contents])
    assert blobs.read(digests[0]) == contents
    assert put_closure(directories, tree()) == tree()[-1].digest
    blobs.close()
    directories.close()


def test_read_only_media(tmp_path: Path, disk: Disk) -> None:
    root = disk(tmp_path / "disk", 2_000_000)
    with opened(root / "store") as store:
        put(store, records(*range(100)))
        expected = contents(store)
    for lock_files in (True, False):
        if not lock_files:
            (root / "store" / "lock").unlink()
            (root / "store" / INDEX_DIR / "lock.mdb").unlink()
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        with pytest.raises(PermissionDenied):
            PackStore.open(root / "store")
        with opened(root / "store", read_only=True) as store:
            assert contents(store) == expected
            assert problems(store) == []
        subprocess.run(["mount", "-o", "remount,rw", root], check=True)


def test_down_to_the_last_pages(tmp_path: Path, disk: Disk) -> None:
    """Each write of a commit is once the first that has no room: what fails has not happened, what has
    happened is there, and with room again all goes on at once."""
    root = disk(tmp_path / "disk", 8_000_000)
    noise = random.Random(4)
    failed = 0
    with opened(root / "store") as store:
        put(store, records(1))
        expected = contents(store)
        for pages in range(24):
            fill_up(root / "filling", pages * 4096)
            for number in range(4):
                several = [record(noise.randbytes(noise.choice([100, 5000, 9000]))) for _ in range(3)]
                name, value = b"%d" % noise.randrange(50), noise.randbytes(1000)
                try:
                    put(store, several)
                    expected |= {one.key: bytes(one.data) for one in several}
                    set_name(store, name, value)
                    expected[name] = value
                except DiskFull:
                    failed += 1
                if number == 3:
                    assert contents(store) == expected
            (root / "filling").unlink()
            put(store, records(1000 + pages))
            expected |= {one.key: bytes(one.data) for one in records(1000 + pages)}
            assert contents(store) == expected
            assert pack_bytes(root / "store") == sum(store.index.pack_lengths().values())
        assert failed > 20
        assert problems(store) == []
    rebuild_index(root / "store", TABLES)
    with opened(root / "store") as store:
        assert contents(store) == expected


def stage_without_end(store: PackStore, session: Session, noise: random.Random) -> None:
    while True:
        store.stage(BLOBS, [record(noise.randbytes(300_000))], session)


def test_room_for_others_while_a_large_one_fails(tmp_path: Path, disk: Disk) -> None:
    """One fills the disk and is given up; another, which was on its way, is not hurt."""
    root = disk(tmp_path / "disk", 16_000_000)
    noise = random.Random(5)
    with opened(root / "store") as store:
        put(store, records(1))
        with store.writer.session() as other:
            mine = [record(noise.randbytes(200_000)) for _ in range(30)]
            for one in mine[:25]:
                store.stage(BLOBS, [one], other)
            for _ in range(3):
                free = free_bytes(root)
                with store.writer.session() as large, pytest.raises(DiskFull, match="disk full"):
                    stage_without_end(store, large, noise)
                assert free_bytes(root) > free - 16 * 4096
            for one in mine[25:]:
                store.stage(BLOBS, [one], other)
            store.writer.commit(other)
        assert contents(store).keys() == {one.key for one in mine + records(1)}
        assert problems(store) == []


def test_the_map_grows_on_a_full_disk(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index needs a larger map and has no room for it: a clear error, and later it goes on."""
    monkeypatch.setattr(index, "INITIAL_MAP", 256 * 1024)
    folder = tmp_path / "store"
    disk(folder / INDEX_DIR, 1_500_000)
    with opened(folder) as store:
        put(store, records(1))
        fill_up(folder / INDEX_DIR / "filling", 300_000)
        acknowledged = records(1)
        with pytest.raises(DiskFull, match="disk full"):  # noqa: PT012
            for number in range(100):
                several = [record(b"%d of %d" % (one, number)) for one in range(100)]
                put(store, several)
                acknowledged += several
        assert len(acknowledged) > 100
        assert store.index._map_size() > 256 * 1024
        assert contents(store).keys() == {one.key for one in acknowledged}
        assert pack_bytes(folder) == sum(store.index.pack_lengths().values())
        (folder / INDEX_DIR / "filling").unlink()
        put(store, records(2, 3))
        assert contents(store).keys() == {one.key for one in acknowledged + records(2, 3)}
        assert problems(store) == []
