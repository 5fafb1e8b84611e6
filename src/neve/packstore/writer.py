"""Writing: frames are staged in this process's pack, and commits make them durable and visible.

*Staged* records are in the pack but not in the index: this process knows them (so that it does not
store them twice), nobody else sees them, and a crash drops them. A *commit* syncs the pack, adds
the records to the index and only then returns. Concurrent commits share one sync: whoever comes
first leads, the others wait for a commit that covers what they staged (group commit).

*Updates* read and replace records inside the index's write transaction, which only one process
holds at a time; that is how records that can change (path infos) are compared and swapped.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from neve.errors import Unavailable
from neve.packstore import pack
from neve.packstore.appender import PACK_LIMIT, OpenPack, open_pack
from neve.packstore.frames import EncodedFrame, Record, encode_frame, locations
from neve.packstore.index import Index, IndexWriter, Location, MapFull, make_place

T = TypeVar("T")

MAX_STAGED_RECORDS = 100_000
MAX_STAGED_BYTES = 512 * 1024 * 1024
"""Whoever stages beyond one of these commits first, which bounds memory and the size of a commit."""

_SYNC_BEFORE_LOCK = 4 * 1024 * 1024
"""With more unsynced bytes than this the pack is synced before the index's write lock is taken, so
that other processes wait for a small sync only."""

_Staged = dict[int, dict[bytes, Location]]


class _Change(NamedTuple):
    record: Record
    """As the update sees it."""
    stored: bytes | memoryview
    """Its data as it goes to the disk."""


_Changes = dict[tuple[int, bytes], _Change | None]


class Transaction:
    """What an update sees and changes. Its function may run more than once; only the last run counts."""

    def __init__(self, txn: IndexWriter) -> None:
        self._txn = txn
        self._changes: _Changes = {}

    def get(self, table: int, key: bytes, read: Callable[[bytes, Location], bytes]) -> bytes | None:
        """The record as this transaction would leave it; ``read`` reads a committed one."""
        if (table, key) in self._changes:
            change = self._changes[table, key]
            return None if change is None else bytes(change.record.data)
        location = self._txn.get(table, key)
        return None if location is None else read(key, location)

    def put(self, table: int, record: Record, stored: bytes | memoryview) -> None:
        self._changes[table, record.key] = _Change(record, stored)

    def delete(self, table: int, key: bytes) -> bool:
        """Returns whether the record was there."""
        if (table, key) in self._changes:
            there = self._changes[table, key] is not None
        else:
            there = self._txn.get(table, key) is not None
        if there:
            self._changes[table, key] = None
        return there

    def savepoint(self) -> _Changes:
        return dict(self._changes)

    def rollback(self, savepoint: _Changes) -> None:
        self._changes = savepoint

    def by_table(self) -> dict[int, list[Record]]:
        """The changes as records to append; a deletion is a record with the tombstone's tag."""
        result: dict[int, list[Record]] = {}
        for (table, key), change in self._changes.items():
            record = (
                Record(pack.TOMBSTONE, key, b"")
                if change is None
                else change.record._replace(data=change.stored)
            )
            result.setdefault(table, []).append(record)
        return result


class _Update:
    def __init__(self, function: Callable[[Transaction], Any]) -> None:
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False

    def run(self, transaction: Transaction) -> None:
        savepoint = transaction.savepoint()
        try:
            self.result, self.error = self.function(transaction), None
        except Exception as error:
            transaction.rollback(savepoint)
            self.error = error


class Writer:
    """The one writer of a store in this process. Thread-safe."""

    def __init__(self, path: Path, index: Index) -> None:
        self._path = path
        self._index = index
        self._pid = os.getpid()
        self._append_lock = threading.Lock()
        self._open_lock = threading.Lock()
        self._pack: OpenPack | None = None
        self._full: list[OpenPack] = []
        self._state = threading.Condition()
        self._staged: _Staged = {}
        self._staged_records = 0
        self._staged_bytes = 0
        self._committing: _Staged = {}
        self._updates: list[_Update] = []
        self._leading = False
        self._staged_count = 0
        self._committed_count = 0
        self._epoch = 0
        self._failure: BaseException | None = None

    @property
    def epoch(self) -> int:
        """Changes when staged records had to be given up; see ``commit``."""
        return self._epoch

    def staged(self, table: int, key: bytes) -> Location | None:
        """The location of a record that is staged here and not committed yet."""
        for source in (self._staged, self._committing):
            if (records := source.get(table)) and (location := records.get(key)):
                return location
        return None

    def stage(self, table: int, records: Sequence[Record]) -> None:
        """Appends ``records`` as one frame. Visible to this process's ``staged`` only until ``commit``."""
        if not records:
            return
        frame = encode_frame(table, records)
        while True:
            self._ensure_pack()
            with self._append_lock:
                if (target := self._pack) is None:
                    continue
                offset = target.append(frame.head, frame.entries, frame.payload)
                place = make_place(target.id, offset + len(frame.head) + len(frame.entries))
                too_much = self._register(table, records, locations(frame, records, place), frame.size)
                break
        if too_much:
            self.commit()

    def _register(self, table: int, records: Sequence[Record], placed: list[Location], size: int) -> bool:
        """Notes staged records; returns whether it is time to commit."""
        with self._state:
            staged = self._staged.setdefault(table, {})
            for record, location in zip(records, placed, strict=True):
                staged[record.key] = location
            self._staged_records += len(records)
            self._staged_bytes += size
            self._staged_count += 1
            return self._staged_records >= MAX_STAGED_RECORDS or self._staged_bytes >= MAX_STAGED_BYTES

    def _ensure_pack(self) -> None:
        """Sees to it that there is a pack with room.

        Never called inside an index transaction: opening a pack may need one. The append lock is not
        held meanwhile either, because the leader of a commit takes it inside its transaction.
        """
        if os.getpid() != self._pid:
            raise Unavailable("this store was opened before a fork; open it in the child instead")
        with self._append_lock:
            if self._pack is not None and self._pack.end >= PACK_LIMIT:
                self._full.append(self._pack)
                self._pack = None
            if self._pack is not None:
                return
        with self._open_lock:
            if self._pack is None:
                opened = open_pack(self._path, self._index)
                with self._append_lock:
                    self._pack = opened

    def update(self, function: Callable[[Transaction], T]) -> T:
        """Runs ``function`` in the index's write transaction and returns its result once it is durable.

        Raises what ``function`` raises; then nothing of it happened. Records staged before are
        committed along.
        """
        update = _Update(function)
        with self._state:
            self._updates.append(update)
            self._staged_count += 1
        self.commit(waiting_for=update)
        if update.error is not None:
            raise update.error
        result: T = update.result
        return result

    def commit(self, epoch: int | None = None, *, waiting_for: _Update | None = None) -> None:
        """Returns when everything that was staged before the call is durable and visible.

        ``epoch`` is what ``epoch`` was when the caller began to stage: if staged records had to be
        given up since (a failed sync), this raises instead of promising what is lost.
        """
        with self._state:
            goal = self._staged_count
            while True:
                if waiting_for is not None and waiting_for.done:
                    return
                if epoch is not None and epoch != self._epoch:
                    raise Unavailable(f"writing to the store failed before: {self._failure}")
                if waiting_for is None and self._committed_count >= goal:
                    return
                if not self._leading:
                    break
                self._state.wait()
            self._leading = True
            covered = self._staged_count
            self._committing, self._staged = self._staged, {}
            self._staged_records = self._staged_bytes = 0
            updates, self._updates = self._updates, []
        self._lead(covered, updates)

    def _lead(self, covered: int, updates: list[_Update]) -> None:
        failure: BaseException | None = None
        try:
            while True:
                try:
                    self._commit_once(updates)
                    break
                except MapFull:
                    self._index.grow()
        except BaseException as error:
            failure = error
            self._give_up(error)
            for update in updates:
                update.error = error
        with self._state:
            self._committing = {}
            self._committed_count = max(self._committed_count, covered)
            for update in updates:
                update.done = True
            self._leading = False
            self._state.notify_all()
        if failure is not None:
            self._index.reopen()
            raise failure

    def _give_up(self, failure: BaseException) -> None:
        """After a failed commit: whether staged bytes are on the disk is unknown, so all are dropped.

        Sessions that counted on them learn it from the changed epoch. The packs are let go (a sync
        that has failed once must not be believed later) and, with their commit marks cut off, hold
        nothing that recovery would take for acknowledged.
        """
        with self._append_lock:
            for held in self._held():
                with contextlib.suppress(OSError):
                    if held.before_mark is not None:
                        held.truncate(held.before_mark)
                held.close()
            self._full, self._pack = [], None
            with self._state:
                self._epoch += 1
                self._failure = failure
                self._staged = {}
                self._staged_records = self._staged_bytes = 0

    def _held(self) -> list[OpenPack]:
        """All packs this process holds the lock of. Called with the append lock held."""
        return [*self._full, *([self._pack] if self._pack else [])]

    def _commit_once(self, updates: list[_Update]) -> None:
        self._ensure_pack()
        self._sync_packs(_SYNC_BEFORE_LOCK)
        with self._index.write() as txn:
            transaction = Transaction(txn)
            for update in updates:
                update.run(transaction)
            changes = transaction.by_table()
            if not changes and not any(self._committing.values()):
                return
            placed, ends = self._append_changes(changes, txn.seq)
            for table, records in self._committing.items():
                txn.put_absent(table, sorted(records.items()))
            for table, key, location in placed:
                if location is None:
                    txn.delete(table, key)
                else:
                    txn.put(table, key, location)
            for held, end in ends:
                txn.set_pack_length(held.id, end)
        with self._append_lock:
            done = [held for held, _ in ends if held in self._full]
            for held in done:
                held.close()
                self._full.remove(held)
            for held, _ in ends:
                held.before_mark = None

    def _sync_packs(self, threshold: int) -> None:
        """Syncs those packs that have more unsynced bytes than ``threshold``."""
        with self._append_lock:
            dirty = [held for held in self._held() if held.dirty > threshold]
            for held in dirty:
                held.dirty = 0
        for held in dirty:
            held.sync()

    def _append_changes(
        self, changes: dict[int, list[Record]], seq: int
    ) -> tuple[list[tuple[int, bytes, Location | None]], list[tuple[OpenPack, int]]]:
        """Appends the updates' records and the commit marks, and syncs.

        Returns the records' locations (None: deleted) and each pack with its committed end.
        """
        frames: list[tuple[int, list[Record], EncodedFrame]] = [
            (table, records, encode_frame(table, records)) for table, records in changes.items()
        ]
        placed: list[tuple[int, bytes, Location | None]] = []
        marked: list[tuple[OpenPack, int]] = []
        with self._append_lock:
            held_packs = self._held()
            target = held_packs[-1]
            for held in held_packs:
                held.before_mark = held.end
            for table, records, frame in frames:
                offset = target.append(frame.head, frame.entries, frame.payload)
                place = make_place(target.id, offset + len(frame.head) + len(frame.entries))
                for record, location in zip(records, locations(frame, records, place), strict=True):
                    placed.append((table, record.key, None if record.tag == pack.TOMBSTONE else location))
            mark = pack.commit_mark(seq)
            for held in held_packs:
                held.append(mark)
                held.dirty = 0
                marked.append((held, held.end))
        for held, _ in marked:
            held.sync()
        return placed, marked

    def close(self) -> None:
        """Commits what is staged and lets go of the packs."""
        try:
            if self._staged_count > self._committed_count and os.getpid() == self._pid:
                self.commit()
        finally:
            with self._append_lock:
                for held in self._held():
                    held.close()
                self._full, self._pack = [], None
