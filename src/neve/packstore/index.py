"""The index: one LMDB environment that says where each record lies.

A sub-database per table maps key to a checksummed location; ``packs`` maps a pack's id to its
committed length; ``meta`` holds counters. LMDB has no checksums of its own, so every value carries
one over key and value: a flipped bit shows as ``Corrupt``, not as a wrong answer. Every transaction
also notes its own number, which shows a damaged meta page that leads back to an older state.

Only this module calls ``lmdb``. Foreign errors leave it translated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from neve.errors import Corrupt, DiskFull, InvalidRequest, NeveError, Unavailable
from neve.packstore.datafile import DATA_FILE, LOCK_FILE, check_data_file, make_lock_file
from neve.packstore.index_writer import TRANSACTION, IndexWriter, Txn
from neve.packstore.layout import translate_os_error
from neve.packstore.location import REPAIR, Location, check_location, decode_location, decode_number
from neve.packstore.locks import SharedLock
from neve.packstore.pack import TABLES

T = TypeVar("T")

MAX_READERS = 4096
INITIAL_MAP = 1 << 30
_LOW_SPACE = 8 * 1024 * 1024
_READ_ATTEMPTS = 20


class MapFull(Exception):  # noqa: N818 - a signal between two modules, never seen by users
    """The index has reached its map size; grow it and repeat."""


class Index:
    """The environment of one store in one process. Thread-safe; not to be used after a fork.

    No transaction is held across anything slow: look up, close, then read packs.
    """

    def __init__(self, path: Path, *, read_only: bool = False, create: bool = False) -> None:
        """Opens the index in the folder ``path``; ``create``: a new one if there is none."""
        self._path = path
        self._read_only = read_only
        self._create = create
        self._map_lock = SharedLock()
        self._write_lock = threading.Lock()
        self._pid = os.getpid()
        self._broken = False
        self._open()

    def _open(self) -> None:
        check_data_file(self._path)
        data_file = self._path / DATA_FILE
        lock_file = self._path / LOCK_FILE
        with self._errors("cannot open the index"):
            size = data_file.stat().st_size if data_file.exists() else 0
            if not size and not self._create:
                raise Corrupt(f"{self._path}: the index is missing; {REPAIR}")
            # Without write permission there is no place to register a reader: see _overtaken.
            lockable = lock_file if lock_file.exists() else self._path
            self._registered = not self._read_only or os.access(lockable, os.W_OK)
            if self._registered:
                self._path.mkdir(mode=0o755, exist_ok=True)
                make_lock_file(self._path, MAX_READERS)
            self._env = lmdb.open(
                str(self._path),
                map_size=max(INITIAL_MAP, size * 2),
                max_dbs=len(TABLES) + 2,
                max_readers=MAX_READERS,
                readonly=self._read_only,
                lock=self._registered,
                readahead=False,
                meminit=False,
                mode=0o644,
            )
        try:
            # Before its first transaction a data file holds nothing but the meta pages.
            self._open_tables(new=self._create and not self._env.info()["last_txnid"])
            self._check_transaction()
        except BaseException:
            self._env.close()
            raise

    def _open_tables(self, *, new: bool) -> None:
        names = [b"table-%d" % number for number in TABLES] + [b"packs", b"meta"]
        with self._errors("cannot open the index"):
            try:
                if self._read_only:
                    self._keep_tables([self._env.open_db(name, create=False) for name in names])
                else:
                    self._env.reader_check()
                    # Handles that a reading transaction opens end with it.
                    with self._env.begin(write=True) as txn:
                        self._keep_tables([self._env.open_db(name, txn, create=new) for name in names])
                        if new:
                            self._writer(txn).note_transaction()
            except lmdb.NotFoundError as error:
                raise Corrupt(f"{self._path}: the index lacks a table; {REPAIR}") from error

    def _keep_tables(self, opened: list[Any]) -> None:
        *tables, self._packs, self._meta = opened
        self._dbs = dict(zip(TABLES, tables, strict=True))

    def _check_transaction(self) -> None:
        noted, actual = self._read(lambda txn: (self._writer(txn).counter(TRANSACTION), txn.id()))
        if noted != actual:
            raise Corrupt(
                f"{self._path}: a meta page of the index is damaged: "
                f"transaction {actual} is really {noted}; {REPAIR}"
            )

    def reopen(self) -> None:
        """Closes and opens the environment: the cure after LMDB has given up on a failed write."""
        with self._map_lock.exclusive():
            self._broken = True
            self._env.close()
            self._open()
            self._broken = False

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise Unavailable("this store was opened before a fork; open it in the child instead")
        if self._broken and not self._map_lock.held:
            self.reopen()

    def close(self) -> None:
        if os.getpid() != self._pid:
            self.abandon()
            return
        with self._map_lock.exclusive():
            self._env.close()

    def abandon(self) -> None:
        """Closes the child's copy of an environment after a fork. The parent's goes on."""
        self._env.close()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except NeveError:
            raise
        except (
            lmdb.CorruptedError,
            lmdb.InvalidError,
            lmdb.PageNotFoundError,
            lmdb.VersionMismatchError,
            lmdb.IncompatibleError,
        ) as error:
            raise Corrupt(f"{self._path}: {what}: {error}; {REPAIR}") from error
        except lmdb.PanicError as error:
            raise Unavailable(f"{self._path}: {what}: a write failed before; open the store again") from error
        except lmdb.ReadersFullError as error:
            raise Unavailable(f"{self._path}: {what}: more than {MAX_READERS} readers at once") from error
        except lmdb.BadValsizeError as error:
            raise InvalidRequest(f"{self._path}: {what}: a key is empty or too long") from error
        except lmdb.Error as error:
            raise self._translate(what, error) from error
        except OSError as error:
            raise translate_os_error(error, f"{self._path}: {what}") from error

    def _translate(self, what: str, error: lmdb.Error) -> NeveError:
        text = str(error)
        full = os.strerror(errno.ENOSPC) in text
        if os.strerror(errno.EIO) in text:
            # LMDB reports a full disk as EIO when it writes a page short.
            with contextlib.suppress(OSError):
                full = shutil.disk_usage(self._path).free < _LOW_SPACE
        if full:
            return DiskFull(f"{self._path}: {what}: disk full; free some space and try again")
        return Unavailable(f"{self._path}: {what}: {text}")

    def _read(self, function: Callable[[Txn], T]) -> T:
        """Runs ``function`` in a short read transaction, more than once if need be."""
        self._check_usable()
        within = self._map_lock.held
        for _ in range(_READ_ATTEMPTS):
            with self._map_lock, self._errors("cannot read the index"):
                try:
                    with self._env.begin() as txn:
                        if self._registered:
                            return function(txn)
                        try:
                            result = function(txn)
                        except (NeveError, lmdb.Error):
                            if not self._overtaken(txn):
                                raise
                            continue
                        if not self._overtaken(txn):
                            return result
                        continue
                except lmdb.MapResizedError:
                    cure = self._adopt_size
                except lmdb.PanicError:
                    # A write has just failed, of which somebody else is told.
                    if within:
                        raise
                    cure = self.reopen
            cure()
        raise Unavailable(f"{self._path}: the index changes too fast to be read without its lock file")

    def _overtaken(self, txn: Txn) -> bool:
        """Whether pages that ``txn`` sees may have been written anew, as it is not registered.

        What a transaction frees, the second one after it may use again.
        """
        return bool(self._env.info()["last_txnid"] >= txn.id() + 2)

    def _adopt_size(self) -> None:
        self._resize(0)

    def _resize(self, size: int) -> None:
        """Changes the map size in bytes; 0: adopts what another process has made it."""
        with self._map_lock.exclusive(), self._errors("cannot grow the index"):
            self._env.set_mapsize(size)

    def get_many(self, table: int, keys: Iterable[bytes]) -> dict[bytes, Location]:
        """The locations of those ``keys`` that are there."""
        keys = list(keys)

        def look_up(txn: Txn) -> dict[bytes, Location]:
            found: dict[bytes, Location] = {}
            get, db = txn.get, self._dbs[table]
            if not txn.stat(db)["entries"]:
                return found  # a new store: spares its first import a call for each file
            for key in keys:
                if (value := get(key, db=db)) is not None:
                    found[key] = decode_location(key, value)
            return found

        return self._read(look_up)

    def raw_many(self, table: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys`` as they are, None of those that are not there: for a check that knows what
        to expect."""

        def look_up(txn: Txn) -> list[bytes | None]:
            get, db = txn.get, self._dbs[table]
            return [get(key, None, db) for key in keys]

        return self._read(look_up)

    def missing(self, table: int, keys: Iterable[bytes]) -> list[bytes]:
        """Those ``keys`` that are not there, in the given order."""
        keys = list(keys)

        def look_up(txn: Txn) -> list[bytes]:
            absent = []
            get, db = txn.get, self._dbs[table]
            for key in keys:
                if (value := get(key, db=db)) is None:
                    absent.append(key)
                else:
                    check_location(key, value)
            return absent

        return self._read(look_up)

    def page(self, table: int, after: bytes, limit: int) -> list[tuple[bytes, Location]]:
        """Up to ``limit`` entries whose key is greater than ``after``, in key order."""
        return [(key, decode_location(key, value)) for key, value in self.raw_page(table, after, limit)]

    def raw_page(self, table: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Like ``page``, without decoding: for a check that must go on behind a damaged entry."""

        def scan(txn: Txn) -> list[tuple[bytes, bytes]]:
            with txn.cursor(db=self._dbs[table]) as cursor:
                if limit <= 0 or not cursor.set_range(after + b"\0"):
                    return []
                return [(bytes(k), bytes(v)) for _, (k, v) in zip(range(limit), cursor, strict=False)]

        return self._read(scan)

    def audit_page(self, table: int, after: bytes, limit: int) -> list[tuple[bytes, bytes, bool]]:
        """Like ``raw_page``, and whether looking up the key finds the same."""

        def scan(txn: Txn) -> list[tuple[bytes, bytes, bool]]:
            db = self._dbs[table]
            with txn.cursor(db=db) as cursor:
                if not cursor.set_range(after + b"\0"):
                    return []
                listed = [(bytes(k), bytes(v)) for _, (k, v) in zip(range(limit), cursor, strict=False)]
            return [(key, value, txn.get(key, db=db) == value) for key, value in listed]

        return self._read(scan)

    def count(self, table: int) -> int:
        return self._read(lambda txn: int(txn.stat(self._dbs[table])["entries"]))

    def last_seq(self) -> int:
        """The number of the last transaction, see ``IndexWriter.seq``."""
        return self._read(lambda txn: self._writer(txn).seq)

    def pack_lengths(self) -> dict[int, int]:
        """The committed length in bytes of each pack, by id."""

        def scan(txn: Txn) -> dict[int, int]:
            with txn.cursor(db=self._packs) as cursor:
                return {int.from_bytes(k, "big"): decode_number(bytes(k), bytes(v)) for k, v in cursor}

        return self._read(scan)

    def counters(self, prefix: bytes) -> dict[bytes, int]:
        """The counters whose names begin so."""

        def scan(txn: Txn) -> dict[bytes, int]:
            found: dict[bytes, int] = {}
            with txn.cursor(db=self._meta) as cursor:
                if cursor.set_range(prefix):
                    for key, value in cursor:
                        if not bytes(key).startswith(prefix):
                            break
                        found[bytes(key)] = decode_number(bytes(key), bytes(value))
            return found

        return self._read(scan)

    def copy_to(self, folder: Path) -> None:
        """Writes a consistent copy of the data file into ``folder``, which must be empty."""
        self._read(lambda _: self._env.copy(str(folder)))

    @contextlib.contextmanager
    def write(self) -> Iterator[IndexWriter]:
        """A write transaction, committed (durably) if the block ends without an error.

        Only one exists at a time among all processes. If the map is full when the block ends or
        within it, ``MapFull`` is raised: call ``grow`` and run the block again.
        """
        self._check_usable()
        with self._write_lock, self._map_lock, self._errors("cannot write the index"):
            try:
                txn = self._env.begin(write=True)
                try:
                    writer = self._writer(txn)
                    yield writer
                    if writer.changed:
                        writer.note_transaction()
                    txn.commit()
                except BaseException:
                    # The binding's abort waits for a moment without readers; many would keep it for ever.
                    with self._map_lock.exclusive():
                        txn.abort()
                    raise
            except (lmdb.MapFullError, lmdb.MapResizedError) as error:
                raise MapFull from error
            except lmdb.Error:
                self._broken = True
                raise

    def run(self, function: Callable[[IndexWriter], T]) -> T:
        """Runs ``function`` in a write transaction, again whenever the map has to grow first."""
        while True:
            try:
                with self.write() as txn:
                    return function(txn)
            except MapFull:
                self.grow()

    def grow(self) -> None:
        """Makes room after ``MapFull``."""
        before = self._map_size()
        self._resize(0)
        if (size := self._map_size()) <= before:
            self._resize(size * 2)

    def _map_size(self) -> int:
        with self._map_lock, self._errors("cannot grow the index"):
            return int(self._env.info()["map_size"])

    def _writer(self, txn: Txn) -> IndexWriter:
        return IndexWriter(self._errors, txn, self._dbs, self._packs, self._meta)
