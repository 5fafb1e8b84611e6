"""Moving records to another pack; ``compaction`` tells when and why."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from neve.errors import NeveError, NotFound
from neve.packstore import pack
from neve.packstore.appender import OpenPack, create_pack
from neve.packstore.frames import (
    FRAME_TARGET,
    MAX_FRAME_RECORDS,
    EncodedFrame,
    Record,
    decompress,
    encode_frame,
    group_records,
    locations,
)
from neve.packstore.index import Index, MapFull
from neve.packstore.index_writer import IndexWriter
from neve.packstore.layout import PACKS_DIR, os_errors, pack_ids, pack_name
from neve.packstore.location import Location, make_place, moved
from neve.packstore.recovery import recover

_BATCH_RECORDS = 20_000
"""Records that are put into the index by one transaction: others wait for it, some tens of milliseconds."""

_BATCH_BYTES = 128 * 1024 * 1024

_THREADS = min(4, os.cpu_count() or 1)
_FRAMES_AHEAD = 4 * _THREADS

Deletion = tuple[int, bytes]
"""A table and a key."""


class _Part(NamedTuple):
    """A frame of which some records are in use."""

    codec: int
    stored: bytes
    raw_len: int
    used: Sequence[tuple[pack.Entry, Location]]


class _Moved(NamedTuple):
    """A record that lies at a second place now."""

    table: int
    key: bytes
    old: Location
    new: Location


class _Change(NamedTuple):
    """A change that is to be made once more: a record as it is stored, and where."""

    table: int
    record: Record
    old: Location


class Mover:
    """Takes frames, and moves what is in use of them. ``commit`` before their packs are removed; then
    ``close``."""

    def __init__(self, path: Path, index: Index, key: bytes) -> None:
        self._path = path
        self._index = index
        self._key = key
        self._target: OpenPack | None = None
        self._committed_end = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="neve-move")
        self._parts: dict[int, list[_Part]] = {}
        self._part_sizes: dict[int, tuple[int, int]] = {}
        self._packing: deque[tuple[int, list[_Part], Future[tuple[list[Record], EncodedFrame]]]] = deque()
        self._moved: list[_Moved] = []
        self._changes: list[_Change] = []
        self._deleted: set[Deletion] = set()
        self._bytes = 0
        self._total = 0

    def move(
        self, fd: int, frame: pack.Frame, stored: bytes, used: Sequence[tuple[pack.Entry, Location]]
    ) -> None:
        """Takes the records ``used`` of an intact frame, whose payload is ``stored`` in the file ``fd``."""
        if frame.seq:
            raw = decompress(frame.codec, stored, frame.raw_len, used[0][1].place)
            for entry, old in used:
                data = raw[entry.start : entry.start + entry.length]
                self._changes.append(_Change(entry.table, Record(entry.tag, entry.key, data), old))
        elif len(used) == len(frame.entries):
            head = os.pread(fd, frame.payload_offset - frame.offset, frame.offset)
            place = self._append(head, b"", stored)
            self._note_moved(used, moved([old for _, old in used], place))
        else:
            self._take_part(frame, stored, used)
        if len(self._moved) + len(self._changes) >= _BATCH_RECORDS or self._bytes >= _BATCH_BYTES:
            self._commit()

    def _take_part(
        self, frame: pack.Frame, stored: bytes, used: Sequence[tuple[pack.Entry, Location]]
    ) -> None:
        by_table: dict[int, list[tuple[pack.Entry, Location]]] = {}
        for one in used:
            by_table.setdefault(one[0].table, []).append(one)
        for table, some in by_table.items():
            size, count = self._part_sizes.get(table, (0, 0))
            added = sum(entry.length for entry, _ in some)
            if size and (size + added > FRAME_TARGET * 5 // 4 or count + len(some) > MAX_FRAME_RECORDS):
                self._pack(table)
                size, count = 0, 0
            self._parts.setdefault(table, []).append(_Part(frame.codec, stored, frame.raw_len, some))
            self._part_sizes[table] = (size + added, count + len(some))
            if size + added >= FRAME_TARGET:
                self._pack(table)

    def _pack(self, table: int) -> None:
        """Has what was taken of a table compressed as one frame."""
        parts = self._parts.pop(table, [])
        self._part_sizes.pop(table, None)
        if parts:
            self._packing.append((table, parts, self._threads.submit(self._packed, table, parts)))
        while len(self._packing) > _FRAMES_AHEAD:
            self._append_packed()

    def _packed(self, table: int, parts: Sequence[_Part]) -> tuple[list[Record], EncodedFrame]:
        records: list[Record] = []
        for codec, stored, raw_len, used in parts:
            raw = memoryview(decompress(codec, stored, raw_len, used[0][1].place))
            records += [Record(e.tag, e.key, raw[e.start : e.start + e.length]) for e, _ in used]
        return records, encode_frame(table, records, self._key)

    def _append_packed(self) -> None:
        _, parts, future = self._packing.popleft()
        records, frame = future.result()
        place = self._append(frame.head, frame.entries, frame.payload)
        used = [one for part in parts for one in part.used]
        self._note_moved(used, locations(frame, records, place))

    def _append(self, head: bytes, entries: bytes, payload: bytes | memoryview) -> int:
        """Appends a frame; returns the place of its payload."""
        if self._target is not None and self._target.is_full:
            self._commit(everything=False)
            self._target.close()
            self._target = None
        if self._target is None:
            self._target = self._new_pack()
        offset = self._target.append(head, entries, payload)
        self._bytes += len(head) + len(entries) + len(payload)
        return make_place(self._target.id, offset + len(head) + len(entries))

    def _new_pack(self) -> OpenPack:
        with os_errors(f"cannot make a new pack of {self._path}"):
            created = create_pack(self._path, self._index, self._key)
        self._committed_end = created.end
        return created

    def _note_moved(self, used: Sequence[tuple[pack.Entry, Location]], places: Sequence[Location]) -> None:
        self._moved += [
            _Moved(entry.table, entry.key, old, new) for (entry, old), new in zip(used, places, strict=True)
        ]

    def commit(self) -> int:
        """Everything taken so far has moved, durably. Returns how many bytes that took, in all."""
        for table in list(self._parts):
            self._pack(table)
        self._commit()
        return self._total

    def _commit(self, *, everything: bool = True) -> None:
        while everything and self._packing:
            self._append_packed()
        if not self._moved and not self._changes:
            return
        if self._target is None:
            self._target = self._new_pack()
        # Most of it now, while nobody has to wait.
        self._target.sync()
        self._transact(self._moved, self._changes, ())
        self._total += self._bytes
        self._moved, self._changes, self._bytes = [], [], 0

    def _transact(
        self, relocated: Sequence[_Moved], changes: Sequence[_Change], deleted: Iterable[Deletion]
    ) -> None:
        assert self._target is not None
        before = self._target.end
        relocated = sorted(relocated, key=lambda one: (one.table, one.key))
        deleted = list(deleted)
        while True:
            try:
                with self._index.write() as txn:
                    self._write(txn, self._target, relocated, changes, deleted)
                break
            except MapFull:
                self._target.truncate(before)
                self._index.grow()
        self._committed_end = self._target.end

    def _write(
        self,
        txn: IndexWriter,
        target: OpenPack,
        relocated: Sequence[_Moved],
        changes: Sequence[_Change],
        deleted: Sequence[Deletion],
    ) -> None:
        records: dict[int, list[Record]] = {}
        for table, key, old, new in relocated:
            now = txn.get(table, key)
            if now == old:
                txn.put(table, key, new)
            elif now is None:
                # Deleted since: the copy must not come to life again with a new index.
                records.setdefault(table, []).append(Record(pack.TOMBSTONE, key, b""))
        for table, record, old in changes:
            if txn.get(table, record.key) == old:
                records.setdefault(table, []).append(record)
        for table, key in deleted:
            if txn.get(table, key) is None:
                records.setdefault(table, []).append(Record(pack.TOMBSTONE, key, b""))
        for table, some in records.items():
            for group in group_records(some):
                self._write_changes(txn, target, table, group)
        target.append(pack.commit_mark(txn.seq, self._key))
        target.sync()
        txn.set_pack_length(target.id, target.end)

    def _write_changes(self, txn: IndexWriter, target: OpenPack, table: int, group: list[Record]) -> None:
        frame = encode_frame(table, group, self._key, txn.seq)
        offset = target.append(frame.head, frame.entries, frame.payload)
        place = make_place(target.id, offset + len(frame.head) + len(frame.entries))
        for record, location in zip(group, locations(frame, group, place), strict=True):
            if record.tag != pack.TOMBSTONE:
                txn.put(table, record.key, location)

    # Deletions.

    def deleted(self, deletions: Iterable[Deletion]) -> None:
        """Notes deletions that an old pack tells of."""
        self._deleted.update(deletions)

    def repeat_deletions(self, old: set[int]) -> None:
        """Writes those deletions down again that delete something in a pack that is not one of ``old``."""
        deleted, self._deleted = self._deleted, set()
        if not deleted:
            return
        needed: set[Deletion] = set()
        own = self._target.id if self._target is not None else 0
        for pack_id in pack_ids(self._path):
            if pack_id not in old and pack_id != own:
                needed |= self._told_of(pack_id, deleted)
        if needed:
            if self._target is None:
                self._target = self._new_pack()
            self._transact((), (), sorted(needed))

    def _told_of(self, pack_id: int, deleted: set[Deletion]) -> set[Deletion]:
        """Those that are about records in this pack."""
        found: set[Deletion] = set()
        path = self._path / PACKS_DIR / pack_name(pack_id)
        with contextlib.suppress(NotFound), os_errors(f"cannot read {path}"), path.open("rb", 0) as file:
            for frame in pack.scan(file.fileno(), self._key):
                if isinstance(frame, pack.Frame):
                    named = [(e.table, e.key) for e in frame.entries if e.tag != pack.TOMBSTONE]
                    found.update(one for one in named if one in deleted)
        return found

    def close(self) -> None:
        """Gives up what was not committed, and its space back."""
        self._threads.shutdown(cancel_futures=True)
        if self._target is None:
            return
        target, self._target = self._target, None
        left = target.end > self._committed_end
        target.close()
        if left:
            # It knows what became of a transaction that failed at its end.
            with contextlib.suppress(NeveError):
                recover(self._path, self._index, self._key)
