"""The write side of the index: what a transaction may look up and change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from neve.packstore.location import Location, decode_location, decode_number, encode_location, encode_number

Txn: TypeAlias = Any  # lmdb.Transaction; the binding's stubs differ between versions
_Errors: TypeAlias = Callable[[str], contextlib.AbstractContextManager[None]]

_SEQ_BASE = b"seq-base"
TRANSACTION = b"transaction"


class IndexWriter:
    """An open transaction of ``Index.write``."""

    def __init__(self, errors: _Errors, txn: Txn, dbs: Mapping[int, Any], packs: Any, meta: Any) -> None:
        self._errors = errors
        self._txn = txn
        self._dbs = dbs
        self._packs = packs
        self._meta = meta
        self.changed = False
        """Whether there is anything to commit."""

    @property
    def seq(self) -> int:
        """The number of this transaction: grows with each commit, across all processes and rebuilds."""
        return int(self._txn.id()) + self.counter(_SEQ_BASE)

    def raise_seq_above(self, seq: int) -> None:
        """Makes all later transactions have greater numbers than ``seq``."""
        if seq > self.seq:
            self.set_counter(_SEQ_BASE, seq - int(self._txn.id()))

    def get(self, table: int, key: bytes) -> Location | None:
        with self._errors("cannot read the index"):
            value = self._txn.get(key, db=self._dbs[table])
        return None if value is None else decode_location(key, value)

    def put_absent(self, table: int, entries: Sequence[tuple[bytes, Location]]) -> None:
        """Adds entries; a key that has one keeps it, unless the new one's tag is higher.

        Sorted keys are faster.
        """
        db = self._dbs[table]
        self.changed = True
        items = [(key, encode_location(key, location)) for key, location in entries]
        with self._txn.cursor(db=db) as cursor:
            _, added = cursor.putmulti(items, dupdata=False, overwrite=False)
        if added == len(items):
            return
        for key, location in entries:
            found = self.get(table, key)
            if found is None or found.tag < location.tag:
                self.put(table, key, location)

    def put(self, table: int, key: bytes, location: Location) -> None:
        self.changed = True
        self._txn.put(key, encode_location(key, location), db=self._dbs[table])

    def delete(self, table: int, key: bytes) -> None:
        self.changed = True
        self._txn.delete(key, db=self._dbs[table])

    def set_pack_length(self, pack_id: int, length: int) -> None:
        key = pack_id.to_bytes(4, "big")
        self.changed = True
        self._txn.put(key, encode_number(key, length), db=self._packs)

    def counter(self, name: bytes) -> int:
        value = self._txn.get(name, db=self._meta)
        return 0 if value is None else decode_number(name, value)

    def set_counter(self, name: bytes, value: int) -> None:
        self.changed = True
        self._txn.put(name, encode_number(name, value), db=self._meta)

    def drop_counter(self, name: bytes) -> None:
        """Makes it 0."""
        self.changed = True
        self._txn.delete(name, db=self._meta)

    def drop_pack(self, pack_id: int) -> None:
        """Forgets the length of a pack that is to be removed."""
        self.changed = True
        self._txn.delete(pack_id.to_bytes(4, "big"), db=self._packs)

    def note_transaction(self) -> None:
        """Writes down the number of this transaction; the last thing before it is committed."""
        self.set_counter(TRANSACTION, int(self._txn.id()))
