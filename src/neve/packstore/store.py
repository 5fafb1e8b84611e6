"""PackStore: the embedded engine behind one object.

The owner of a table says how its records prove themselves: by a ``check`` of its own (content
addressed records: the digest), or, without one, by a seal that the engine adds and removes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from neve.errors import (
    Corrupt,
    DiskFull,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unsupported,
)
from neve.packstore import layout, pack
from neve.packstore.dates import note_used
from neve.packstore.frames import Packed, Record, group_records
from neve.packstore.index import Index
from neve.packstore.location import Location
from neve.packstore.reader import Reader
from neve.packstore.recovery import recover
from neve.packstore.sessions import Session
from neve.packstore.updates import Transaction
from neve.packstore.uses import Uses
from neve.packstore.writer import Writer

T = TypeVar("T")

_SEAL_SIZE = 16
_USELESS_NEIGHBOURS = 8

Near: TypeAlias = tuple[Location, int, int, int]
"""A record by its neighbour: the location of any record of its frame; its own tag, start, length."""


@dataclass(frozen=True)
class Table:
    """One kind of record. Its owner picks an ``id`` from 1 to 8 that no other table has.

    ``check`` tells whether ``(tag, key, data)`` belong together, for records that prove themselves
    (by being addressed by their content); without it the engine seals what it stores.
    """

    id: int
    name: str
    check: Callable[[int, bytes, bytes | memoryview], bool] | None = None
    collected: bool = False
    """Whether its records are dropped by a collection when nothing refers to them, so that it matters who was
    told that they are there (see ``uses``). Their keys have 32 bytes at most."""
    dated: bool = False
    """Whether the time of their last use is kept. Only for one table, with keys of up to 200 bytes."""


def seal(table: int, key: bytes, data: bytes | memoryview) -> bytes:
    """``data`` with a 16-byte checksum over table, key and data behind it."""
    return b"".join((data, pack.check16(bytes([table]), key, data)))


def unseal(table: int, key: bytes, sealed: bytes) -> bytes:
    """Takes the seal off. Raises ``Corrupt`` naming the key if it does not fit."""
    data = sealed[:-_SEAL_SIZE]
    if len(sealed) < _SEAL_SIZE or sealed[-_SEAL_SIZE:] != pack.check16(bytes([table]), key, data):
        raise Corrupt(f"the record of {key.hex()} does not match its seal")
    return data


class PackStore:
    """A folder of packs with its index. Thread-safe; any number of processes may have it open.

    Use ``PackStore.open``; each ``open`` needs its ``close``. Opening a folder twice in one process
    gives the same object.
    """

    _opened: ClassVar[dict[tuple[int, int], PackStore]] = {}
    _opened_lock = threading.RLock()
    # Reentrant: a finalizer may close a store whenever the garbage collector runs, also inside `open`.

    def __init__(self, path: Path, *, read_only: bool) -> None:
        description = layout.read_description(path)
        self.path = path
        self.read_only = read_only
        self.key = description.key
        """What the frames of this store's packs are known by (32 bytes)."""
        self.settings: Mapping[str, Any] = description.settings
        self._users = 1
        self._pid = os.getpid()
        self._identity = _identity(path)
        self._looking = threading.local()
        with contextlib.ExitStack() as opened:
            lock = layout.StoreLock(path, exclusive=False, read_only=read_only)
            opened.callback(lock.close)
            # Packs come after an index that gives them their numbers: with them it must not be made anew.
            with layout.os_errors(f"cannot open the store in {path}"):
                create = not read_only and not layout.pack_ids(path)
            self.index = Index(path / layout.INDEX_DIR, read_only=read_only, create=create)
            opened.callback(self.index.close)
            self._reader = Reader(path)
            opened.callback(self._reader.close)
            self._writer: Writer | None = None
            self._uses: Uses | None = None
            if not read_only:
                # On a full disk it can still be read, and recovery has another turn before writing.
                with contextlib.suppress(DiskFull):
                    recover(path, self.index, self.key)
                self._writer = Writer(path, self.index, self.key)
                opened.callback(self._writer.close)
                self._uses = Uses(path, lambda keys, now: note_used(self.index, keys, now))
                opened.callback(self._uses.close)
                self._writer.before_commit = self._uses.flush
            self._opened_parts = opened.pop_all()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        create: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> PackStore:
        """Opens the store in ``path``; with ``create``, makes it if the folder is missing or empty.

        ``settings`` are those of a new store. Raises ``NotFound`` (no store), ``InvalidRequest`` (a
        folder of something else, or of a newer version), ``Corrupt``, ``PermissionDenied``,
        ``Unavailable`` (being rebuilt).
        """
        with cls._opened_lock:
            if create and not read_only and not layout.is_store(path):
                layout.create(path, dict(settings or {}), _make_index)
            layout.read_description(path)
            key = _identity(path)
            while (found := cls._opened.get(key)) is not None and found._pid == os.getpid():
                if found.read_only and not read_only:
                    raise Unsupported(f"{path} is open read-only in this process; close it before writing")
                found._users += 1
                if cls._opened.get(key) is found:
                    return found
            if found is not None:
                # The parent's, from before a fork: LMDB would take it for open in this process.
                found.index.abandon()
            store = cls(path, read_only=read_only)
            cls._opened[key] = store
            return store

    def close(self) -> None:
        """The last close of a folder releases it. What was staged and not committed is given up."""
        # The lock is kept to the end: LMDB refuses to open in one process what is still open there.
        with self._opened_lock:
            self._users -= 1
            if self._users == 0:
                if self._opened.get(self._identity) is self:
                    del self._opened[self._identity]
                self._opened_parts.close()

    @property
    def writer(self) -> Writer:
        """Raises ``PermissionDenied`` if the store is open read-only."""
        if self._writer is None:
            raise PermissionDenied(f"the store in {self.path} is open read-only")
        return self._writer

    @property
    def uses(self) -> Uses:
        """Raises ``PermissionDenied`` if the store is open read-only."""
        if self._uses is None:
            raise PermissionDenied(f"the store in {self.path} is open read-only")
        return self._uses

    @property
    def is_swept(self) -> bool:
        """Whether a collection is just sweeping: whoever asks what is there, waits for the end of that."""
        return self._uses is not None and self._uses.is_swept

    def temporary_folder(self) -> Path:
        """For spool files; lies on the store's own file system."""
        return self.path / layout.TMP_DIR

    def missing(self, table: Table, keys: Iterable[bytes]) -> list[bytes]:
        """Those ``keys`` that no committed record has, in the given order. The others stay for now."""
        keys = list(keys)
        return self._promised(
            table, lambda: self.index.missing(table.id, keys), lambda absent: set(keys).difference(absent)
        )

    def find(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, Location]:
        """Where the committed records of ``keys`` lie. For who only reads them: see ``promise``."""
        return self.index.get_many(table.id, keys)

    def promise(self, table: Table, keys: Sequence[bytes], *, reading: bool = False) -> dict[bytes, Location]:
        """Like ``find``, for who tells others what is there: no collection takes it for now.

        ``reading``: on a disk without any room that is not promised, but found all the same.
        """
        return self._promised(
            table, lambda: self.index.get_many(table.id, keys), lambda found: found, reading=reading
        )

    def _promised(
        self,
        table: Table,
        look_up: Callable[[], T],
        found: Callable[[T], Iterable[bytes]],
        *,
        reading: bool = False,
    ) -> T:
        if self._uses is None or not table.collected or getattr(self._looking, "only", False):
            return look_up()
        if self._uses.only_dated and not table.dated:
            return look_up()
        return self._uses.promise(table.id, look_up, found, dated=table.dated, reading=reading)

    @contextlib.contextmanager
    def only_looking(self) -> Iterator[None]:
        """Within the block this thread asks for itself only, so that nothing stays because of it."""
        before = getattr(self._looking, "only", False)
        self._looking.only = True
        try:
            yield
        finally:
            self._looking.only = before

    def note(self, table: Table, keys: Iterable[bytes]) -> None:
        """Says that records are about to be stored; they stay for now."""
        if table.collected:
            self.uses.note(table.id, keys, dated=table.dated)

    def find_near(self, table: Table, keys: Iterable[bytes]) -> dict[bytes, Near]:
        """Like ``find``, for keys of which many lie in the same frames.

        One key is looked up in the index, its neighbours are learned from the frame's own entry
        table: a tenth of the cost. For content-addressed records only: a neighbour may have been
        deleted, or moved, since its frame was written, but what is read is proven anyway. Where the
        neighbours of several keys were of no use, each key is looked up instead.
        """
        found: dict[bytes, Near] = {}
        frame: Location | None = None
        near: dict[bytes, tuple[int, int, int]] = {}
        useless = 0
        for key in keys:
            if frame is not None and (place := near.get(key)) is not None:
                useless = 0
            else:
                if key in found or not (hit := self.index.get_many(table.id, [key])):
                    continue
                frame = hit[key]
                useless += 1
                near = {} if useless > _USELESS_NEIGHBOURS else self._reader.neighbours(frame, table.id)
                place = near.get(key, (frame.tag, frame.start, frame.length))
            found[key] = (frame, *place)
        return found

    def locate(
        self, table: Table, keys: Sequence[bytes], session: Session | None = None
    ) -> dict[bytes, Location]:
        """Like ``find``, and also those only staged by this process: what need not be stored again."""
        found = self.promise(table, keys)
        if self._writer is not None and len(found) < len(keys):
            found.update(self._writer.staged(table.id, [key for key in keys if key not in found], session))
        return found

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The record's data, proven by the table's check or the seal; it stays for now.

        Raises ``Corrupt``.
        """
        location = self.promise(table, [key], reading=True).get(key)
        try:
            return None if location is None else self.read(table, key, location)
        except NotFound:
            return None

    def read(self, table: Table, key: bytes, location: Location) -> bytes:
        """The data of a located record, proven. Raises ``Corrupt`` naming table and key."""
        try:
            data = self.read_unproven(table, key, location)
            if table.check is None:
                return unseal(table.id, key, data)
            if table.check(location.tag, key, data):
                return data
        except Corrupt as error:
            raise Corrupt(f"{table.name}: {key.hex()} is damaged: {error}") from error
        raise Corrupt(f"{table.name}: the stored bytes of {key.hex()} do not match it")

    def read_unproven(self, table: Table, key: bytes, location: Location) -> bytes:
        """The bytes of a located record as they are, for a caller who checks them itself.

        Raises ``Corrupt`` when there is nothing to be checked, ``NotFound`` if the record was deleted
        and its pack is gone.
        """
        return self._reader.record_retrying(key, location, lambda: self.index.get_many(table.id, [key]))

    def frame(self, location: Location) -> bytes:
        """The decompressed frame that ``location`` lies in. Raises ``NotFound`` if its pack is gone."""
        return self._reader.frame(location)

    def page(self, table: Table, after: bytes, limit: int) -> list[tuple[bytes, Location]]:
        """Up to ``limit`` committed entries with keys above ``after``, in key order."""
        return self.index.page(table.id, after, limit)

    def stage(self, table: Table, records: Sequence[Record], session: Session) -> None:
        """Appends records, in frames of about ``FRAME_TARGET`` bytes, to be committed later.

        ``session`` is the writer's from before the caller looked up what it need not stage; see there.
        """
        self.note(table, [record.key for record in records])
        if table.check is None:
            records = [r._replace(data=seal(table.id, r.key, r.data)) for r in records]
        for group in group_records(records):
            self.writer.stage(table.id, group, session)

    def stage_packed(self, table: Table, records: Sequence[Record], packed: Packed, session: Session) -> None:
        """Appends records as one frame, with the contents as they were compressed elsewhere.

        The caller has checked that ``packed`` holds the records' contents, and nothing else.
        """
        assert table.check is not None
        self.note(table, [record.key for record in records])
        self.writer.stage(table.id, records, session, packed)

    def stored(self, location: Location) -> bytes:
        """The frame that ``location`` lies in, as it is stored. Raises ``NotFound`` if its pack is gone."""
        return self._reader.stored(location)

    def update(self, function: Callable[[TableTransaction], T]) -> T:
        """Runs ``function`` while nobody else can write; returns once its changes are durable.

        It may be run more than once, so it must not have effects of its own. What it raises is
        raised here, and nothing of it happened.
        """
        return self.writer.update(lambda transaction: function(TableTransaction(self, transaction)))

    def one_commit(self) -> contextlib.AbstractContextManager[None]:
        """What this thread commits within the block is durable and visible at its end, by one commit.
        See ``Writer.one_commit``."""
        return self.writer.one_commit()

    def delete_many(self, table: Table, keys: Sequence[bytes]) -> int:
        """Deletes those records that are there; returns how many. Durable on return."""
        return self.update(lambda t: sum(t.delete(table, key) for key in keys))


def _identity(path: Path) -> tuple[int, int]:
    with layout.os_errors(f"cannot open the store in {path}"):
        stat = path.stat()
    return stat.st_dev, stat.st_ino


class TableTransaction:
    """The view of an update: records by table, proven and sealed like everywhere else."""

    def __init__(self, store: PackStore, transaction: Transaction) -> None:
        self._store = store
        self._transaction = transaction

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._transaction.get(table.id, key, lambda k, location: self._store.read(table, k, location))

    def put(self, table: Table, record: Record) -> None:
        self._store.note(table, [record.key])
        stored = seal(table.id, record.key, record.data) if table.check is None else record.data
        self._transaction.put(table.id, record, stored)

    def delete(self, table: Table, key: bytes) -> bool:
        return self._transaction.delete(table.id, key)


def _make_index(folder: Path) -> None:
    Index(folder, create=True).close()


def check_path(path: str) -> Path:
    """The folder an address names; refuses the file system's root and relative paths."""
    if not path.startswith("/"):
        raise InvalidRequest(f"the store folder must be an absolute path, not {path!r}")
    if not os.path.normpath(path).strip("/"):
        raise InvalidRequest("the file system's root cannot be a store; name a folder")
    if len(os.fsencode(path)) > 4000:
        raise LimitExceeded(f"the store folder's path has {len(os.fsencode(path))} bytes, the limit is 4000")
    return Path(path)
