"""Making the index anew, from nothing but the packs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neve.errors import Corrupt
from neve.packstore import layout, pack
from neve.packstore.datafile import DATA_FILE, LOCK_FILE
from neve.packstore.index import Index
from neve.packstore.index_writer import IndexWriter
from neve.packstore.location import Location
from neve.packstore.recovery import frame_location
from neve.packstore.report import Problem, Progress, ignore_progress
from neve.packstore.store import Table

_BATCH = 10_000


@dataclass
class Rebuilt:
    """What a rebuild did: records found by table, and what of the packs could not be used."""

    records: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def rebuild_index(path: Path, tables: Iterable[Table], progress: Progress = ignore_progress) -> Rebuilt:
    """Makes a new index from the packs of the store in ``path`` and puts it in the old one's place.

    Needs the store for itself: raises ``Unavailable`` if a process has it open. The old index stays
    until the new one is complete and durable.
    """
    key = layout.read_description(path).key
    lock = layout.StoreLock(path, exclusive=True, read_only=False)
    scratch = path / layout.REBUILD_DIR
    try:
        with layout.os_errors(f"cannot rebuild the index of {path}"):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o755)
            index = Index(scratch, create=True)
            try:
                result = _Rebuild(path, key, index, tables, progress).run()
            finally:
                index.close()
            for folder in (layout.INDEX_DIR, layout.TMP_DIR):  # A backup may have neither.
                (path / folder).mkdir(mode=0o755, exist_ok=True)
            (path / layout.INDEX_DIR / LOCK_FILE).unlink(missing_ok=True)
            (scratch / DATA_FILE).replace(path / layout.INDEX_DIR / DATA_FILE)
            layout.sync_directory(path / layout.INDEX_DIR)
            layout.sync_directory(path)
        return result
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.close()


class _Found(NamedTuple):
    """A data frame, and the number of the transaction that committed it."""

    pack_id: int
    frame: pack.Frame
    seq: int
    marked: bool
    """Whether a commit mark follows."""


class _Change(NamedTuple):
    """The newest change of a key, by the order of these fields."""

    seq: int
    pack_id: int
    offset: int
    deletes: bool


class _Rebuild:
    """Two passes over the packs: the newest change of each key, then the entries.

    A key's record is the newest change, or, if it never had one or was last deleted, what was staged
    after that.
    """

    def __init__(
        self, path: Path, key: bytes, index: Index, tables: Iterable[Table], progress: Progress
    ) -> None:
        self._path = path
        self._key = key
        self._index = index
        self._tables = {table.id: table for table in tables}
        self._progress = progress
        self._changes: dict[tuple[int, bytes], _Change] = {}
        self._ends: dict[int, int] = {}
        self._highest = 0
        self._result = Rebuilt()

    def run(self) -> Rebuilt:
        ids = layout.pack_ids(self._path)
        for pack_id in ids:
            for found in self._frames(pack_id, first_pass=True):
                self._note_changes(found)
        damaged: list[_Found] = []
        for pack_id in ids:
            damaged += self._index_pack(pack_id)
        self._index.run(lambda txn: self._finish(txn, damaged))
        for found in damaged:
            pack_name = layout.pack_name(found.pack_id)
            self._report(f"pack {pack_name}: the frame at byte {found.frame.offset} is damaged")
        for table in self._tables.values():
            self._result.records[table.name] = self._index.count(table.id)
        return self._result

    def _frames(self, pack_id: int, *, first_pass: bool) -> Iterator[_Found]:
        """The data frames of a pack.

        Intact frames behind the last mark are taken too: they were not acknowledged, or their mark
        is damaged, and keeping too much is the smaller harm.
        """
        path = self._pack_path(pack_id)
        waiting: list[pack.Frame] = []
        with path.open("rb", buffering=0) as file:
            if first_pass:
                self._check_header(file.fileno(), pack_id)
            for found in pack.scan(file.fileno(), self._key):
                if isinstance(found, pack.Damage):
                    if first_pass:
                        self._report(f"{path}: no intact frame from byte {found.start} to {found.end}")
                    continue
                self._ends[pack_id] = found.end
                if found.kind == pack.DATA:
                    waiting.append(found)
                    continue
                self._highest = max(self._highest, found.seq)
                yield from (_Found(pack_id, frame, frame.seq or found.seq, True) for frame in waiting)
                waiting = []
        yield from (_Found(pack_id, frame, frame.seq or self._highest + 1, False) for frame in waiting)

    def _check_header(self, fd: int, pack_id: int) -> None:
        try:
            header = os.pread(fd, pack.HEADER_SIZE, 0)
            pack.check_header(header, pack_id, self._key, str(self._pack_path(pack_id)))
        except Corrupt as error:
            self._report(str(error))

    def _note_changes(self, found: _Found) -> None:
        if not found.frame.seq:
            return
        self._highest = max(self._highest, found.seq)
        for entry in found.frame.entries:
            deletes = entry.tag == pack.TOMBSTONE
            if deletes and not found.marked:
                continue
            change = _Change(found.seq, found.pack_id, found.frame.offset, deletes)
            newest = self._changes.setdefault((entry.table, entry.key), change)
            if change > newest:
                self._changes[entry.table, entry.key] = change

    def _wanted(self, found: _Found, entry: pack.Entry) -> bool:
        if entry.table not in self._tables or entry.tag == pack.TOMBSTONE:
            return False
        newest = self._changes.get((entry.table, entry.key))
        if newest is None:
            return True
        if found.frame.seq:
            return newest[:3] == (found.seq, found.pack_id, found.frame.offset)
        return newest.deletes and found.seq > newest.seq

    def _index_pack(self, pack_id: int) -> Iterator[_Found]:
        """Adds a pack's records; yields the frames whose payload is damaged instead of adding them."""
        batch: list[_Found] = []
        pending = 0
        with self._pack_path(pack_id).open("rb", buffering=0) as file:
            for found in self._frames(pack_id, first_pass=False):
                self._progress(found.frame.end - found.frame.offset)
                if not pack.payload_intact(file.fileno(), found.frame):
                    yield found
                    continue
                batch.append(found)
                pending += len(found.frame.entries)
                if pending >= _BATCH:
                    self._add(batch)
                    batch, pending = [], 0
        self._add(batch)

    def _add(self, batch: list[_Found]) -> None:
        by_table: dict[int, list[tuple[bytes, Location]]] = {}
        for found in batch:
            for entry in found.frame.entries:
                if self._wanted(found, entry):
                    location = frame_location(found.pack_id, found.frame, entry)
                    by_table.setdefault(entry.table, []).append((entry.key, location))

        def add(txn: IndexWriter) -> None:
            for table_id, located in by_table.items():
                txn.put_absent(table_id, located)

        self._index.run(add)

    def _finish(self, txn: IndexWriter, damaged: list[_Found]) -> None:
        """Damaged frames last: where a good copy exists it has won, else a read says "corrupt"."""
        for found in damaged:
            for entry in found.frame.entries:
                if self._wanted(found, entry) and txn.get(entry.table, entry.key) is None:
                    location = frame_location(found.pack_id, found.frame, entry)
                    txn.put(entry.table, entry.key, location)
        for pack_id, end in self._ends.items():
            # What follows the last intact frame is of no use, and cut off by whoever writes next.
            txn.set_pack_length(pack_id, end)
        txn.raise_seq_above(self._highest + 1)

    def _pack_path(self, pack_id: int) -> Path:
        return self._path / layout.PACKS_DIR / layout.pack_name(pack_id)

    def _report(self, what: str) -> None:
        self._result.problems.append(Problem("", b"", what))
