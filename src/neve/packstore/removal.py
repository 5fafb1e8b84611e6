"""Removing packs that the index does not point to any more, safe against a crash at any moment.

First the index notes, in a transaction after the last one that has moved records away, that the pack is to be
removed; then its file goes. The older of LMDB's two states knows no entry in that pack either, by then. Who
finds a file that is to be removed, removes it: it must not be appended to, for its places have been used.

The file is emptied once it has no name: those who have it open would keep its space.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from neve.packstore.index import Index
from neve.packstore.index_writer import IndexWriter
from neve.packstore.layout import PACKS_DIR, os_errors, pack_ids, pack_name, sync_directory

_PREFIX = b"removed:"


def remove_packs(store: Path, index: Index, ids: Iterable[int]) -> None:
    """Removes packs that nothing points to, and that the caller keeps others from appending to."""
    ids = list(ids)
    if not ids:
        return

    def condemn(txn: IndexWriter) -> None:
        for pack_id in ids:
            txn.drop_pack(pack_id)
            txn.set_counter(_name(pack_id), 1)

    index.run(condemn)
    finish_removals(store, index)


def finish_removals(store: Path, index: Index) -> None:
    """Removes the files of packs that are to be removed."""
    condemned = [int.from_bytes(name[len(_PREFIX) :], "big") for name in index.counters(_PREFIX)]
    if not condemned:
        return
    with os_errors(f"cannot remove packs of {store}"):
        for pack_id in set(condemned) & set(pack_ids(store)):
            _remove(store / PACKS_DIR / pack_name(pack_id))
        sync_directory(store / PACKS_DIR)


def forget_removals(store: Path, index: Index) -> None:
    """Drops the notes about files that are gone."""

    def forget(txn: IndexWriter) -> None:
        for pack_id in gone:
            txn.drop_counter(_name(pack_id))

    there = set(pack_ids(store))
    condemned = {int.from_bytes(name[len(_PREFIX) :], "big") for name in index.counters(_PREFIX)}
    if gone := condemned - there:
        with os_errors(f"cannot remove packs of {store}"):
            sync_directory(store / PACKS_DIR)
        index.run(forget)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            path.unlink()
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)


def _name(pack_id: int) -> bytes:
    return _PREFIX + pack_id.to_bytes(4, "big")
