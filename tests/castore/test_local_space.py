"""Blobs that are given up on their way into the embedded store give back the space that they took."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neve.castore.blobs.bundle import Bundle
from neve.castore.blobs.local import LocalBlobService
from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import b3_digest
from neve.errors import DiskFull, InvalidRequest
from neve.packstore.check import verify
from neve.packstore.store import PackStore
from neve.testing.blob_reading import KIB, MIB, incompressible, put
from tests.disks import free_bytes, small_disk
from tests.server.raw import soon

SIZE = 12 * MIB
PAGES = 64 * KIB
"""The index, and packs that were begun."""


class Store:
    """A blob service with something in it, from below."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = LocalBlobService(PackStore.open(folder))
        self.kept = {put(self.blobs, b"kept")}

    def packs(self) -> int:
        """What the packs take of the disk, in bytes."""
        return sum(path.stat().st_blocks * 512 for path in (self.folder / "packs").iterdir())

    def check(self) -> None:
        """Just what was kept is there, and nothing is damaged."""
        assert set(self.blobs.list()) == self.kept
        store = self.blobs.store
        assert verify(store, [BLOBS]).problems == []
        length = sum(store.index.pack_lengths().values())
        assert self.packs() <= length + PAGES


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.blobs.close()


def abandoned(store: Store, contents: bytes) -> None:
    with store.blobs.open_write() as writer:
        for start in range(0, len(contents), MIB):
            writer.write(contents[start : start + MIB])
        assert soon(lambda: store.packs() > SIZE // 2)  # Other threads write it.


def not_committed(store: Store, contents: bytes) -> None:
    with store.blobs.batch() as batch:
        batch.put_many([contents[start : start + 300 * KIB] for start in range(0, len(contents), 300 * KIB)])
        with batch.open_write() as writer:
            writer.write(contents[::-1])
            writer.close()
        assert batch.keep_many([b3_digest(b"kept")]) == []
        assert store.packs() > SIZE // 2


def refused(store: Store, contents: bytes) -> None:
    """Chunks that come packed, the last of which is not what it is said to be."""
    chunks = [contents[start : start + MIB // 2] for start in range(0, len(contents), MIB // 2)]
    with store.blobs.open_write() as writer:
        for chunk in chunks:
            writer.write_bundle(Bundle([b3_digest(chunk)], [len(chunk)], chunk))
        assert store.packs() > SIZE // 2
        with pytest.raises(InvalidRequest):
            writer.write_bundle(Bundle([b3_digest(b"another")], [len(chunks[0])], chunks[0]))


@pytest.mark.parametrize("give_up", [abandoned, not_committed, refused])
def test_what_is_given_up(store: Store, give_up: Callable[[Store, bytes], None]) -> None:
    contents = incompressible(SIZE)
    for _ in range(2):
        give_up(store, contents)
        store.check()
    store.kept.add(put(store.blobs, contents))
    assert store.blobs.read(b3_digest(contents)) == contents
    store.check()


def test_one_gives_up_while_another_stores_the_same(store: Store) -> None:
    """The chunks that both have stay, whoever was first; what only the one had goes."""
    shared, own = incompressible(6 * MIB, 1), incompressible(8 * MIB, 2)
    with store.blobs.open_write() as other:
        with store.blobs.open_write() as writer:
            for start in range(0, len(shared), MIB):
                writer.write(shared[start : start + MIB])
            for start in range(0, len(shared), MIB):
                other.write(shared[start : start + MIB])
            writer.write(own)
        store.kept.add(other.close())
    assert store.blobs.read(b3_digest(shared)) == shared
    store.check()
    length = sum(store.blobs.store.index.pack_lengths().values())
    assert len(shared) < length < len(shared) + len(own)


def test_many_at_once(store: Store) -> None:
    """Half of them give up."""

    def work(number: int) -> None:
        contents = incompressible(5 * MIB + number, number)
        with store.blobs.open_write() as writer:
            for start in range(0, len(contents), MIB):
                writer.write(contents[start : start + MIB])
            if number % 2:
                store.kept.add(writer.close())

    threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.kept) == 4
    store.check()
    assert sum(store.blobs.store.index.pack_lengths().values()) < 16 * MIB


def test_a_commit_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = incompressible(SIZE)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            with pytest.raises(DiskFull):
                put(store.blobs, contents)
        store.check()
    store.kept.add(put(store.blobs, contents))
    store.check()


@pytest.mark.root
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", SIZE) as disk:
        store = Store(disk / "store")
        contents = incompressible(2 * SIZE)
        parts = [contents[start : start + 300 * KIB] for start in range(0, len(contents), 300 * KIB)]
        for turn in range(3):
            free = free_bytes(disk)
            with pytest.raises(DiskFull, match="disk full"):
                put(store.blobs, contents)
            assert free_bytes(disk) > free - PAGES
            with pytest.raises(DiskFull, match="disk full"):
                store.blobs.put_many(parts)
            assert free_bytes(disk) > free - PAGES
            store.kept.add(put(store.blobs, incompressible(MIB, turn)))
            store.check()
        store.blobs.close()
