"""The index: one LMDB environment that says where each record lies.

A sub-database per table maps key to a checksummed location; ``packs`` maps a pack's id to its
committed length; ``meta`` holds counters. LMDB has no checksums of its own, so every value carries
one over key and value: a flipped bit shows as ``Corrupt``, not as a wrong answer. Opening compares
the data file's length with what its meta pages claim, because LMDB would die of SIGBUS later.

Only this module calls ``lmdb``. Foreign errors leave it translated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import lmdb

from neve.errors import Corrupt, DiskFull, NeveError, Unavailable
from neve.packstore.layout import translate_os_error

TABLES = range(1, 9)
"""The numbers of the tables; every store has all of them, in use or not."""

MAX_READERS = 4096
INITIAL_MAP = 1 << 30
_LOW_SPACE = 8 * 1024 * 1024
_PAGE_SIZE_RANGE = (512, 65536)
_META_MAGIC = 0xBEEFC0DE

_SEQ_BASE = b"seq-base"

_VALUE = struct.Struct("<BQIIIIII")
_BODY = struct.Struct("<BQIIIII")
_PACK_VALUE = struct.Struct("<QI")
_OFFSET_BITS = 40

Txn: TypeAlias = Any  # lmdb.Transaction; the binding's stubs differ between versions


class Location(NamedTuple):
    """Where a record lies. ``place`` is pack id and payload offset in one number (see ``pack_of``)."""

    tag: int
    place: int
    codec: int
    stored_len: int
    raw_len: int
    entries_len: int
    """Bytes of the frame's entry table, which lies right before ``place``."""
    start: int
    length: int


def make_place(pack_id: int, offset: int) -> int:
    return pack_id << _OFFSET_BITS | offset


def pack_of(place: int) -> int:
    return place >> _OFFSET_BITS


def offset_of(place: int) -> int:
    return place & ((1 << _OFFSET_BITS) - 1)


def encode_location(key: bytes, location: Location) -> bytes:
    tag, place, codec, stored_len, raw_len, entries_len, start, length = location
    body = _BODY.pack(tag, place, stored_len | codec << 30, raw_len, entries_len, start, length)
    return body + zlib.crc32(key + body).to_bytes(4, "little")


def decode_location(key: bytes, value: bytes) -> Location:
    """Raises ``Corrupt`` naming the key if the value's checksum does not fit."""
    if len(value) != _VALUE.size or zlib.crc32(key + value[:-4]) != int.from_bytes(value[-4:], "little"):
        raise Corrupt(f"the index entry of {key.hex()} is damaged; run: neve verify --rebuild-index")
    tag, place, stored, raw_len, entries_len, start, length, _ = _VALUE.unpack(value)
    return Location(tag, place, stored >> 30, stored & 0x3FFFFFFF, raw_len, entries_len, start, length)


def check_data_file(path: Path) -> None:
    """Refuses an index whose data file is shorter than its meta pages say, or has no meta page.

    The layout is LMDB's (``MDB_meta`` in mdb.c, 64 bit): after a 16-byte page header magic,
    version, address, map size, two 48-byte database records, the last used page and the
    transaction number. The page size is kept in the first database record.
    """
    data_file = path / "data.mdb"
    try:
        size = data_file.stat().st_size
        with data_file.open("rb") as file:
            first = file.read(4096)
            if len(first) < 160:
                raise Corrupt(f"{data_file} is truncated ({size} bytes)")
            page_size = struct.unpack_from("<I", first, 40)[0]
            if not _PAGE_SIZE_RANGE[0] <= page_size <= _PAGE_SIZE_RANGE[1] or page_size & (page_size - 1):
                raise Corrupt(f"{data_file}: the first meta page is damaged")
            file.seek(page_size)
            second = file.read(160)
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate_os_error(error, f"cannot read {data_file}") from error
    metas = [_read_meta(page) for page in (first, second)]
    valid = [meta for meta in metas if meta is not None]
    if not valid:
        raise Corrupt(f"{data_file} has no intact meta page; run: neve verify --rebuild-index")
    last_page = max(valid)[1]
    if size < (last_page + 1) * page_size:
        raise Corrupt(
            f"{data_file} is truncated: {size} bytes, its meta page says {(last_page + 1) * page_size}; "
            "run: neve verify --rebuild-index"
        )


def _read_meta(page: bytes) -> tuple[int, int] | None:
    """(transaction, last page) of a meta page, or None if it is not one."""
    if len(page) < 152 or struct.unpack_from("<I", page, 16)[0] != _META_MAGIC:
        return None
    last_page, transaction = struct.unpack_from("<QQ", page, 16 + 24 + 96)
    return transaction, last_page


class Index:
    """The environment of one store in one process. Thread-safe; not to be used after a fork.

    No transaction is held across anything slow: look up, close, then read packs.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._path = path
        self._read_only = read_only
        self._map_lock = _SharedLock()
        self._pid = os.getpid()
        self._open()

    def _open(self) -> None:
        check_data_file(self._path)
        data_file = self._path / "data.mdb"
        size = data_file.stat().st_size if data_file.exists() else 0
        with self._errors("cannot open the index"):
            self._env = lmdb.open(
                str(self._path),
                map_size=max(INITIAL_MAP, size * 2),
                max_dbs=len(TABLES) + 2,
                max_readers=MAX_READERS,
                readonly=self._read_only,
                lock=not self._read_only or os.access(self._path / "lock.mdb", os.W_OK),
                readahead=False,
                meminit=False,
                mode=0o644,
            )
            try:
                if not self._read_only:
                    self._env.reader_check()
                self._dbs = {number: self._open_db(f"table-{number}") for number in TABLES}
                self._packs = self._open_db("packs")
                self._meta = self._open_db("meta")
            except BaseException:
                self._env.close()
                raise

    def _open_db(self, name: str) -> Any:
        try:
            return self._env.open_db(name.encode(), create=not self._read_only)
        except lmdb.NotFoundError as error:
            raise Corrupt(f"{self._path}: the index has no table {name!r}") from error

    def reopen(self) -> None:
        """Closes and opens the environment: the cure after LMDB has given up on a failed write."""
        with self._map_lock.exclusive():
            self._env.close()
            self._open()

    def close(self) -> None:
        with self._map_lock.exclusive():
            self._env.close()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except NeveError:
            raise
        except lmdb.CorruptedError as error:
            raise Corrupt(f"{self._path}: {what}: {error}; run: neve verify --rebuild-index") from error
        except lmdb.PanicError as error:
            raise Unavailable(f"{self._path}: {what}: a write failed before; open the store again") from error
        except (lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
            raise Corrupt(f"{self._path}: {what}: {error}; run: neve verify --rebuild-index") from error
        except lmdb.ReadersFullError as error:
            raise Unavailable(f"{self._path}: {what}: more than {MAX_READERS} readers at once") from error
        except lmdb.Error as error:
            raise self._translate(what, error) from error
        except OSError as error:
            raise translate_os_error(error, f"{self._path}: {what}") from error

    def _translate(self, what: str, error: lmdb.Error) -> NeveError:
        # LMDB reports a full disk as EIO when it writes a page short.
        free = shutil.disk_usage(self._path).free
        text = str(error)
        if os.strerror(errno.ENOSPC) in text or (free < _LOW_SPACE and os.strerror(errno.EIO) in text):
            return DiskFull(f"{self._path}: {what}: disk full; free some space and try again")
        return Unavailable(f"{self._path}: {what}: {text}")

    @contextlib.contextmanager
    def _read(self) -> Iterator[Txn]:
        """A short read transaction; grows the map first if another process has grown it."""
        if os.getpid() != self._pid:
            raise Unavailable("this store was opened before a fork; open it in the child instead")
        for attempt in (1, 2):
            with self._map_lock.shared(), self._errors("cannot read the index"):
                try:
                    txn = self._env.begin()
                except lmdb.MapResizedError:
                    if attempt == 2:
                        raise
                else:
                    with txn:
                        yield txn
                    return
            self._grow(to_others=True)

    def _grow(self, *, to_others: bool) -> None:
        with self._map_lock.exclusive(), self._errors("cannot grow the index"):
            self._env.set_mapsize(0 if to_others else self._env.info()["map_size"] * 2)

    def get_many(self, table: int, keys: Iterable[bytes]) -> dict[bytes, Location]:
        """The locations of those ``keys`` that are there."""
        found: dict[bytes, Location] = {}
        with self._read() as txn:
            get, db = txn.get, self._dbs[table]
            if not txn.stat(db)["entries"]:
                return found  # a new store: spares an import one call for each file
            for key in keys:
                if (value := get(key, db=db)) is not None:
                    found[key] = decode_location(key, value)
        return found

    def missing(self, table: int, keys: Iterable[bytes]) -> list[bytes]:
        """Those ``keys`` that are not there, in the given order."""
        with self._read() as txn:
            get, db = txn.get, self._dbs[table]
            absent = []
            for key in keys:
                if (value := get(key, db=db)) is None:
                    absent.append(key)
                else:
                    decode_location(key, value)
            return absent

    def page(self, table: int, after: bytes, limit: int) -> list[tuple[bytes, Location]]:
        """Up to ``limit`` entries whose key is greater than ``after``, in key order."""
        result: list[tuple[bytes, Location]] = []
        with self._read() as txn, txn.cursor(db=self._dbs[table]) as cursor:
            if not cursor.set_range(after + b"\0" if after else b"\0"):
                return result
            for key, value in cursor:
                if len(result) >= limit:
                    break
                result.append((bytes(key), decode_location(bytes(key), value)))
        return result

    def raw_page(self, table: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Like ``page``, without decoding: for a check that must go on behind a damaged entry."""
        with self._read() as txn, txn.cursor(db=self._dbs[table]) as cursor:
            if not cursor.set_range(after + b"\0" if after else b"\0"):
                return []
            return [(bytes(k), bytes(v)) for (k, v), _ in zip(cursor, range(limit), strict=False)]

    def count(self, table: int) -> int:
        with self._read() as txn:
            return int(txn.stat(self._dbs[table])["entries"])

    def pack_lengths(self) -> dict[int, int]:
        """The committed length in bytes of each pack, by id."""
        with self._read() as txn, txn.cursor(db=self._packs) as cursor:
            return {int.from_bytes(k, "big"): self._decode_length(bytes(k), v) for k, v in cursor}

    @staticmethod
    def _decode_length(key: bytes, value: bytes) -> int:
        length, check = _PACK_VALUE.unpack(value) if len(value) == _PACK_VALUE.size else (0, -1)
        if check != zlib.crc32(key + value[:8]):
            raise Corrupt(f"the index entry of pack {key.hex()} is damaged; run: neve verify --rebuild-index")
        return int(length)

    def copy_to(self, folder: Path) -> None:
        """Writes a consistent copy of the data file into ``folder``, which must be empty."""
        with self._map_lock.shared(), self._errors("cannot copy the index"):
            self._env.copy(str(folder))

    @contextlib.contextmanager
    def write(self) -> Iterator[IndexWriter]:
        """A write transaction, committed (durably) if the block ends without an error.

        Only one exists at a time among all processes. If the map is full when the block ends or
        within it, ``MapFull`` is raised: call ``grow`` and run the block again.
        """
        with self._map_lock.shared(), self._errors("cannot write the index"):
            try:
                with self._env.begin(write=True) as txn:
                    yield IndexWriter(txn, self._dbs, self._packs, self._meta)
            except (lmdb.MapFullError, lmdb.MapResizedError) as error:
                raise MapFull from error

    def grow(self) -> None:
        """Makes room after ``MapFull``."""
        self._grow(to_others=True)
        self._grow(to_others=False)


class MapFull(Exception):  # noqa: N818 - a signal between two modules, never seen by users
    """The index has reached its map size; grow it and repeat."""


class IndexWriter:
    """The open write transaction of ``Index.write``."""

    def __init__(self, txn: Txn, dbs: Mapping[int, Any], packs: Any, meta: Any) -> None:
        self._txn = txn
        self._dbs = dbs
        self._packs = packs
        self._meta = meta

    @property
    def seq(self) -> int:
        """The number of this transaction: grows with each commit, across all processes and rebuilds."""
        return int(self._txn.id()) + self.counter(_SEQ_BASE)

    def raise_seq_above(self, seq: int) -> None:
        """Makes all later transactions have greater numbers than ``seq``."""
        self.set_counter(_SEQ_BASE, max(0, seq + 1 - int(self._txn.id())))

    def get(self, table: int, key: bytes) -> Location | None:
        value = self._txn.get(key, db=self._dbs[table])
        return None if value is None else decode_location(key, value)

    def put_absent(self, table: int, entries: Sequence[tuple[bytes, Location]]) -> None:
        """Adds entries; a key that has one keeps it, unless the new one's tag is higher.

        Sorted keys are faster.
        """
        db = self._dbs[table]
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
        self._txn.put(key, encode_location(key, location), db=self._dbs[table])

    def delete(self, table: int, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._dbs[table]))

    def set_pack_length(self, pack_id: int, length: int) -> None:
        key = pack_id.to_bytes(4, "big")
        body = length.to_bytes(8, "little")
        self._txn.put(key, body + zlib.crc32(key + body).to_bytes(4, "little"), db=self._packs)

    def counter(self, name: bytes) -> int:
        value = self._txn.get(name, db=self._meta)
        return 0 if value is None else int.from_bytes(value, "big")

    def set_counter(self, name: bytes, value: int) -> None:
        self._txn.put(name, value.to_bytes(8, "big"), db=self._meta)


class _SharedLock:
    """Many hold it shared or one exclusively: changing the map size needs no transaction running.

    Waiting for the exclusive side does not block new shared holders of the same thread chain; the
    sections are short, so starvation is no concern.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holders = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._holders += 1
        try:
            yield
        finally:
            with self._condition:
                self._holders -= 1
                if not self._holders:
                    self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._condition:
            while self._holders:
                self._condition.wait()
            yield
