"""Updates: functions that read and change records while nobody else can write.

All that run in one transaction of the index see each other's changes, in the order they came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from neve.errors import Corrupt
from neve.packstore import pack
from neve.packstore.frames import Record
from neve.packstore.index_writer import IndexWriter
from neve.packstore.location import Location


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
        """Returns whether the record was there; one whose entry in the index is damaged was."""
        if (table, key) in self._changes:
            there = self._changes[table, key] is not None
        else:
            try:
                there = self._txn.get(table, key) is not None
            except Corrupt:
                there = True
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


class Update:
    """A function that waits for its transaction, and then what came of it."""

    def __init__(self, function: Callable[[Transaction], Any]) -> None:
        self._function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False

    def run(self, transaction: Transaction) -> None:
        """Runs the function; what it raises is kept, and undoes what it changed."""
        savepoint = transaction.savepoint()
        try:
            self.result, self.error = self._function(transaction), None
        except Exception as error:
            transaction.rollback(savepoint)
            self.error = error
