"""Stores to try things on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neve.castore.digest import b3_digest
from neve.packstore.check import verify
from neve.packstore.frames import Record
from neve.packstore.index import Index
from neve.packstore.layout import INDEX_DIR, PACKS_DIR, pack_ids, pack_name
from neve.packstore.store import PackStore, Table, TableTransaction

BLOBS = Table(1, "blobs", lambda tag, key, data: b3_digest(data) == key)
NAMES = Table(3, "names")
TABLES = (BLOBS, NAMES)

KEY = bytes(range(32))
"""The key of packs that belong to no store."""


def record(data: bytes, tag: int = 1) -> Record:
    """A record of ``BLOBS``."""
    return Record(tag, b3_digest(data), data)


def records(*numbers: int) -> list[Record]:
    return [record(b"record %d " % number * 20) for number in numbers]


def stage(store: PackStore, given: Iterable[Record]) -> None:
    """Stages records of ``BLOBS`` that belong to none before them."""
    store.stage(BLOBS, list(given), store.writer.begin())


def put(store: PackStore, given: Iterable[Record]) -> None:
    """Stores records of ``BLOBS``, durable on return."""
    with store.writer.session() as session:
        store.stage(BLOBS, list(given), session)
        store.writer.commit(session)


def set_name(store: PackStore, name: bytes, value: bytes | None) -> None:
    """Puts or deletes a record of ``NAMES``."""

    def change(transaction: TableTransaction) -> None:
        if value is None:
            transaction.delete(NAMES, name)
        else:
            transaction.put(NAMES, Record(1, name, value))

    store.update(change)


def contents(store: PackStore) -> dict[bytes, bytes | None]:
    """Every record of the store that can be listed, proven."""
    found: dict[bytes, bytes | None] = {}
    for table in TABLES:
        for key, _ in store.page(table, b"", 1_000_000):
            found[key] = store.get(table, key)
    return found


def problems(store: PackStore) -> list[str]:
    """What ``verify`` reports."""
    return [problem.what for problem in verify(store, TABLES).problems]


def pack_paths(folder: Path) -> list[Path]:
    return [folder / PACKS_DIR / pack_name(pack_id) for pack_id in pack_ids(folder)]


def data_file(folder: Path) -> Path:
    return folder / INDEX_DIR / "data.mdb"


def flip(path: Path, bit: int) -> None:
    """Changes one bit of a file."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@contextmanager
def opened(folder: Path, *, read_only: bool = False) -> Iterator[PackStore]:
    store = PackStore.open(folder, read_only=read_only)
    try:
        yield store
    finally:
        store.close()


def committed_lengths(folder: Path) -> dict[int, int]:
    """What the index says of the packs' lengths; the store must not be open."""
    index = Index(folder / INDEX_DIR, read_only=True)
    try:
        return index.pack_lengths()
    finally:
        index.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
