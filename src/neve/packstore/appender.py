"""One process's pack files: appending, syncing, and what a crash left at the end of a pack.

Only the holder of a pack's lock (``flock``) appends to it or truncates it. Pack ids come from a
counter in the index and are never given out twice, so a name never means something else later.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from neve.errors import Corrupt
from neve.packstore import pack
from neve.packstore.index import Index, Location, make_place
from neve.packstore.layout import PACKS_DIR, os_errors, pack_ids, pack_name, sync_directory

PACK_LIMIT = 512 * 1024 * 1024
"""A pack that has reached this many bytes is not appended to any more."""

_NEXT_ID = b"next-pack-id"


class OpenPack:
    """A pack that this process holds the lock of. Not thread-safe: the writer's lock guards it."""

    def __init__(self, fd: int, pack_id: int, end: int, path: Path) -> None:
        self.fd = fd
        self.id = pack_id
        self.end = end
        self.path = path
        self.dirty = 0
        """Bytes appended since the last sync that the writer knows of."""
        self.before_mark: int | None = None
        """While a commit is under way: the end of the pack before the commit's own frames."""

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
            except OSError:
                self.truncate(offset)
                raise
        self.end = offset + size
        self.dirty += size
        return offset

    def truncate(self, end: int) -> None:
        os.ftruncate(self.fd, end)
        self.end = end

    def sync(self) -> None:
        with os_errors(f"cannot sync {self.path}"):
            os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def open_pack(store: Path, index: Index) -> OpenPack:
    """A pack to append to: one that no process holds and that has room, else a new one."""
    committed = index.pack_lengths()
    with os_errors(f"cannot open a pack of {store}"):
        for pack_id in pack_ids(store):
            if (found := _try_adopt(store, index, pack_id, committed.get(pack_id, 0))) is None:
                continue
            if found.end < PACK_LIMIT:
                return found
            found.close()
        return _create(store, index)


def _try_adopt(store: Path, index: Index, pack_id: int, committed: int) -> OpenPack | None:
    """Takes the lock of a pack that is free and needs it: it has room, or a tail to be reclaimed."""
    path = store / PACKS_DIR / pack_name(pack_id)
    size = path.stat().st_size
    if size >= PACK_LIMIT and size == committed:
        return None
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What was read before the lock may be old: its holder may have committed meanwhile.
        committed = index.pack_lengths().get(pack_id, 0)
        end = _recover(fd, path, index, pack_id, committed)
    except BlockingIOError:
        os.close(fd)
        return None
    except Corrupt:
        # Left as it is for `verify` to report; another pack is appended to.
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return OpenPack(fd, pack_id, end, path)


def _recover(fd: int, path: Path, index: Index, pack_id: int, committed: int) -> int:
    """Brings a pack whose writer died into order; returns its end.

    Frames behind the committed length that a commit mark covers are put into the index (the writer
    died between the two, or the index is older than the pack); what lies behind the last mark was
    never acknowledged and is cut off.
    """
    size = os.fstat(fd).st_size
    if size < committed:
        raise Corrupt(f"{path} is truncated: {size} bytes, {committed} were committed")
    if size < pack.HEADER_SIZE and not committed:
        os.ftruncate(fd, 0)
        os.pwrite(fd, pack.encode_header(pack_id), 0)
        return pack.HEADER_SIZE
    pack.check_header(os.pread(fd, pack.HEADER_SIZE, 0), pack_id, str(path))
    end = max(committed, pack.HEADER_SIZE)
    if size == end:
        return end
    waiting: list[pack.Frame] = []
    for frame in pack.scan(fd, end):
        if isinstance(frame, pack.Damage):
            break
        if frame.kind == pack.COMMIT:
            _index_frames(index, pack_id, waiting, frame.end)
            waiting, end = [], frame.end
        else:
            waiting.append(frame)
    os.ftruncate(fd, end)
    return end


def _index_frames(index: Index, pack_id: int, frames: list[pack.Frame], end: int) -> None:
    """Adds the records of ``frames`` that the index does not have. What it has is newer or equal."""
    with index.write() as txn:
        for frame in frames:
            for entry in frame.entries:
                if entry.tag != pack.TOMBSTONE:
                    txn.put_absent(entry.table, [(entry.key, frame_location(pack_id, frame, entry))])
        txn.set_pack_length(pack_id, end)


def frame_location(pack_id: int, frame: pack.Frame, entry: pack.Entry) -> Location:
    """Where ``entry`` of ``frame`` lies, as the index keeps it."""
    return Location(
        entry.tag,
        make_place(pack_id, frame.payload_offset),
        frame.codec,
        frame.stored_len,
        frame.raw_len,
        frame.payload_offset - frame.offset - pack.HEAD_SIZE,
        entry.start,
        entry.length,
    )


def _create(store: Path, index: Index) -> OpenPack:
    while True:
        with index.write() as txn:
            on_disk = pack_ids(store)
            pack_id = max(txn.counter(_NEXT_ID), on_disk[-1] + 1 if on_disk else 1)
            txn.set_counter(_NEXT_ID, pack_id + 1)
        path = store / PACKS_DIR / pack_name(pack_id)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, pack.encode_header(pack_id), 0)
        except BlockingIOError:
            # Another process has adopted the empty file in between; it is theirs.
            os.close(fd)
            continue
        except BaseException:
            os.close(fd)
            raise
        sync_directory(store / PACKS_DIR)
        return OpenPack(fd, pack_id, pack.HEADER_SIZE, path)
