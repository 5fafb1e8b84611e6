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
from neve.packstore.frames import Record
from neve.packstore.layout import INDEX_DIR
from neve.packstore.rebuild import rebuild_index
from neve.packstore.store import PackStore
from neve.testing.blob_reading import put as put_blob
from neve.testing.directories import leaf, put_closure, tree
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
    mounted: list[Path] = []

    def mount(path: Path, size: int) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
        mounted.append(path)
        return path

    yield mount
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", path], check=True)


def fill_up(path: Path) -> None:
    """Writes a file until there is no room for another byte."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


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
