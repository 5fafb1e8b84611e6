"""Reading: locations to bytes.

Frames are read and decompressed whole, because neighbours are wanted together far more often than
not; a bounded cache keeps the last ones. What comes out is checked against the index only (lengths,
the frame's own header); whether it is the right bytes, the caller tells by digest or checksum.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from neve.errors import Corrupt, NeveError, NotFound
from neve.packstore.frames import decompress
from neve.packstore.layout import PACKS_DIR, os_errors, pack_name, translate_os_error
from neve.packstore.location import Location, offset_of, pack_of
from neve.packstore.pack import entry_places

FRAME_CACHE_BYTES = 24 * 1024 * 1024
"""Decompressed frames kept, in bytes."""

_MAX_OPEN_PACKS = 64


class _Lru:
    """A dict with a bound on the sum of its values' weights; the least recently used go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: OrderedDict[int, bytes] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: int) -> bytes | None:
        with self._lock:
            value = self._items.get(key)
            if value is not None:
                self._items.move_to_end(key)
            return value

    def put(self, key: int, value: bytes) -> None:
        if len(value) > self._capacity // 4:
            return
        with self._lock:
            old = self._items.pop(key, b"")
            self._items[key] = value
            self._weight += len(value) - len(old)
            while self._weight > self._capacity:
                _, gone = self._items.popitem(last=False)
                self._weight -= len(gone)


class PackFiles:
    """File descriptors of packs for reading, a bounded number of them.

    A descriptor is only closed when no read is using it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._open: OrderedDict[int, tuple[int, list[int]]] = OrderedDict()

    def pread(self, pack_id: int, size: int, offset: int) -> bytes:
        with self._lock:
            if pack_id not in self._open:
                with os_errors(f"cannot open {self._pack_path(pack_id)}"):
                    fd = os.open(self._pack_path(pack_id), os.O_RDONLY | os.O_CLOEXEC)
                self._open[pack_id] = (fd, [0])
            self._open.move_to_end(pack_id)
            fd, users = self._open[pack_id]
            users[0] += 1
            self._evict()
        try:
            data = os.pread(fd, size, offset)
        except OSError as error:
            raise translate_os_error(error, f"cannot read {self._pack_path(pack_id)}") from error
        finally:
            with self._lock:
                users[0] -= 1
        if len(data) != size:
            self._check_there(pack_id)
            raise Corrupt(
                f"{self._pack_path(pack_id)} is truncated: "
                f"{size} bytes expected at {offset}, {len(data)} are there"
            )
        return data

    def _check_there(self, pack_id: int) -> None:
        """Raises ``NotFound`` if a pack that is open has been removed: it has been emptied then."""
        with self._lock:
            fd, users = self._open.get(pack_id, (-1, [0]))
            if fd < 0 or os.fstat(fd).st_nlink:
                return
            if not users[0]:
                del self._open[pack_id]
                os.close(fd)
        raise NotFound(f"{self._pack_path(pack_id)} has been removed")

    def _pack_path(self, pack_id: int) -> Path:
        return self._path / PACKS_DIR / pack_name(pack_id)

    def _evict(self) -> None:
        if len(self._open) <= _MAX_OPEN_PACKS:
            return
        idle = [pack_id for pack_id, (_, users) in self._open.items() if not users[0]]
        for pack_id in idle[: len(self._open) - _MAX_OPEN_PACKS]:
            os.close(self._open.pop(pack_id)[0])

    def close(self) -> None:
        with self._lock:
            for fd, _ in self._open.values():
                os.close(fd)
            self._open.clear()


class Reader:
    """Reads records by location. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._files = PackFiles(path)
        self._frames = _Lru(FRAME_CACHE_BYTES)

    def frame(self, location: Location, *, keep: bool = True) -> bytes:
        """The decompressed frame around ``location``; ``keep``: in the cache, for its neighbours."""
        raw = self._frames.get(location.place)
        if raw is None:
            stored = self.stored(location)
            raw = decompress(location.codec, stored, location.raw_len, location.place)
            if keep:
                self._frames.put(location.place, raw)
        return raw

    def stored(self, location: Location) -> bytes:
        """The frame's payload as it lies in the pack."""
        return self._files.pread(pack_of(location.place), location.stored_len, offset_of(location.place))

    def neighbours(self, location: Location, table: int) -> dict[bytes, tuple[int, int, int]]:
        """Tag, start and length of all records of ``table`` in the frame around ``location``, by key.

        Empty if the frame's entry table cannot be read.
        """
        size = location.entries_len
        try:
            entries = self._files.pread(pack_of(location.place), size, offset_of(location.place) - size)
            return entry_places(entries, table)
        except (NeveError, struct.error):
            return {}

    def record(self, location: Location) -> bytes:
        # A frame of one large record (a chunk) is not kept: whoever wants it again reads far ahead.
        alone = location.length == location.raw_len
        raw = self.frame(location, keep=not alone)
        if alone:
            return raw
        if location.start + location.length > len(raw):
            raise Corrupt(f"pack {pack_name(pack_of(location.place))}: a record passes the end of its frame")
        return raw[location.start : location.start + location.length]

    def record_retrying(
        self, key: bytes, location: Location, again: Callable[[], Mapping[bytes, Location]]
    ) -> bytes:
        """Like ``record``; if the pack is gone, its records have moved: ``again`` looks up where.

        Raises ``NotFound`` if the record was deleted.
        """
        while True:
            try:
                return self.record(location)
            except NotFound:
                moved = again().get(key)
                if moved is None:
                    raise NotFound(f"{key.hex()} has been deleted") from None
                if moved.place == location.place:
                    raise Corrupt(
                        f"{key.hex()} lies in pack {pack_name(pack_of(location.place))}, which is missing"
                    ) from None
                location = moved  # Never to where it was before: collections may come one after the other.

    def close(self) -> None:
        self._files.close()
