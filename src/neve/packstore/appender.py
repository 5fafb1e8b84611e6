"""One process's pack files: appending, syncing, and which pack to append to.

Only the holder of a pack's lock (``flock``) appends to it or truncates it. Who has nothing to append for now
*parks* his pack: he shares the lock, which keeps others from appending too, but lets a collection share it;
then the pack stays as it is until that has moved what is worth it elsewhere. Pack ids come from a
counter in the index and are never given out twice, so a name never means something else later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from neve.errors import Corrupt
from neve.packstore import pack
from neve.packstore.index import Index
from neve.packstore.index_writer import IndexWriter
from neve.packstore.layout import PACKS_DIR, os_errors, pack_ids, pack_name, sync_directory
from neve.packstore.reserve import make_reserve

PACK_LIMIT = 512 * 1024 * 1024
"""A pack that has reached this many bytes is not appended to any more."""

NEXT_ID = b"next-pack-id"
"""The counter for the ids of packs; in a new index it has not begun, and the packs that are there count."""

_WRITE_BACK = 8 * 1024 * 1024
"""After so many bytes the kernel is asked to begin writing them, so that a sync finds little left."""


class OpenPack:
    """A pack that this process holds the lock of. Not thread-safe: the writer's lock guards it."""

    def __init__(self, fd: int, pack_id: int, end: int, path: Path) -> None:
        self.fd = fd
        self.id = pack_id
        self.end = end
        self.path = path
        self.dirty = 0
        """Bytes appended since the last sync that the writer knows of."""
        self._writing_back = end

    @property
    def is_full(self) -> bool:
        """Whether it is not to be appended to any more."""
        return self.end >= PACK_LIMIT

    def append(self, *parts: bytes | memoryview) -> int:
        """Appends ``parts``; returns the offset. On failure the file is as it was."""
        offset = self.end
        size = sum(map(len, parts))
        with os_errors(f"cannot append to {self.path}"):
            try:
                written = os.pwritev(self.fd, parts, offset)
                if written < size:
                    rest = b"".join(parts)
                    while written < size:
                        count = os.pwrite(self.fd, memoryview(rest)[written:], offset + written)
                        if not count:
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                        written += count
            except BaseException:
                # What cannot be cut off is overwritten by the next append.
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, offset)
                raise
        self.end = offset + size
        self.dirty += size
        if self.end - self._writing_back >= _WRITE_BACK:
            self._write_back()
        return offset

    def _write_back(self) -> None:
        """Has the kernel begin to write what was appended. What is being written stays in its cache."""
        with contextlib.suppress(OSError):
            start = self._writing_back
            os.posix_fadvise(self.fd, start, self.end - start, os.POSIX_FADV_DONTNEED)
        self._writing_back = self.end

    def truncate(self, end: int) -> None:
        with os_errors(f"cannot truncate {self.path}"):
            os.ftruncate(self.fd, end)
        self.end = end
        self._writing_back = min(self._writing_back, end)

    def sync(self) -> None:
        with os_errors(f"cannot sync {self.path}"):
            os.fdatasync(self.fd)

    def park(self) -> bool:
        """Shares the lock; returns whether that worked. Nothing may be appended before ``resume``."""
        return self._lock(fcntl.LOCK_SH)

    def resume(self) -> bool:
        """Takes the lock alone again; returns whether the pack can be appended to. If not, it is lost."""
        # A lock that is changed is let go of for a moment; who has got it then has appended.
        if not self._lock(fcntl.LOCK_EX):
            return False
        with os_errors(f"cannot look at {self.path}"):
            stat = os.fstat(self.fd)
        return stat.st_size == self.end and stat.st_nlink > 0

    def _lock(self, kind: int) -> bool:
        with os_errors(f"cannot lock {self.path}"):
            try:
                fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        """Lets go of the file and its lock. It never fails: what was to be kept, a sync has made sure of."""
        # The number may soon be another file's: whatever is done with this pack from now on must fail.
        fd, self.fd = self.fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)


def lock_pack(path: Path, pack_id: int) -> OpenPack | None:
    """Takes the lock of a pack; None if another process holds it, or the pack is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stat = os.fstat(fd)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    if not stat.st_nlink:
        os.close(fd)
        return None
    return OpenPack(fd, pack_id, stat.st_size, path)


def open_pack(store: Path, index: Index, key: bytes) -> OpenPack:
    """A pack to append to: one that no process holds and that has room, else a new one."""
    committed = index.pack_lengths()
    with os_errors(f"cannot open a pack of {store}"):
        for pack_id in pack_ids(store):
            path = store / PACKS_DIR / pack_name(pack_id)
            if committed.get(pack_id, 0) >= PACK_LIMIT or not (found := lock_pack(path, pack_id)):
                continue
            try:
                if _is_clean(found, index, key):
                    if found.end <= pack.HEADER_SIZE:
                        # Whoever made it may have died before its name was durable.
                        sync_directory(store / PACKS_DIR)
                    return found
            except BaseException:
                found.close()
                raise
            found.close()
        return create_pack(store, index, key)


def _is_clean(found: OpenPack, index: Index, key: bytes) -> bool:
    """Whether a pack can be appended to: it has room and ends where the index says.

    Recovery has had its turn, so a longer or shorter one is for ``verify`` to report.
    """
    # Looked up under the lock: before, its holder may have gone on committing.
    committed = index.pack_lengths().get(found.id, 0)
    if found.is_full or found.end != max(committed, pack.HEADER_SIZE):
        return False
    try:
        pack.check_header(os.pread(found.fd, pack.HEADER_SIZE, 0), found.id, key, str(found.path))
    except Corrupt:
        return False
    return True


def create_pack(store: Path, index: Index, key: bytes) -> OpenPack:
    """A new pack, which this process holds the lock of."""
    if sum(index.pack_lengths().values()) >= PACK_LIMIT // 2:
        make_reserve(store)

    def next_id(txn: IndexWriter) -> int:
        on_disk = pack_ids(store)
        pack_id = max(txn.counter(NEXT_ID), on_disk[-1] + 1 if on_disk else 1)
        txn.set_counter(NEXT_ID, pack_id + 1)
        return pack_id

    while True:
        pack_id = index.run(next_id)
        path = store / PACKS_DIR / pack_name(pack_id)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        # In between another process may have found the empty file and adopted it.
        if (created := lock_pack(path, pack_id)) is None:
            continue
        try:
            if created.end == 0:
                created.append(pack.encode_header(pack_id, key))
                sync_directory(store / PACKS_DIR)
                return created
        except BaseException:
            created.close()
            raise
        created.close()
