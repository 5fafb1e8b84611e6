"""The files of notes: what they look like, and reading those of all processes; ``uses`` tells what for.

::

    uses/NAME.uses       head (64 bytes): "neve-use" version:u8 lasting:u8 boot:36 zero:2 begun:u64 (seconds
                         since the boot) zero:8; then notes of 33 bytes: table:u8 key, filled up with zeros.
                         flock: exclusive for as long as it is in use

How old a file is, two clocks tell: that of the machine, which may be put forward or back, and what the kernel
counts since it was started. A file counts for as long as either says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from neve.errors import NeveError
from neve.packstore.gate import removal_lock
from neve.packstore.layout import USES_DIR, os_errors

SUFFIX = ".uses"

PERIOD = 900.0
"""Seconds after which a server begins a new file. What a file names may have been used so much later than
its last note."""

MAX_LASTING = 48 * 3600.0
"""Seconds for which the files of servers are kept: the most that a collection can grant."""

_HEAD = struct.Struct("<8sBB36s2xQ8x")
_MAGIC, _VERSION = b"neve-use", 1
_KEY_SIZE = 32
_NOTE_SIZE = 1 + _KEY_SIZE
END_NOTE = bytes((255,)) + bytes(_KEY_SIZE)
"""The last note of a server's file that is complete, and on the disk."""

_BLOCK = _NOTE_SIZE * 30_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Note = tuple[int, bytes]
"""A table and a key, of at most 32 bytes."""


def boot_id() -> bytes:
    """What names the time since the machine was started; empty where that is not known."""
    try:
        return _BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return b""


def seconds_since_boot() -> float:
    """Goes on while the machine sleeps, and is never put forward or back."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def encode_head(*, lasting: bool, begun: float = 0) -> bytes:
    """``begun``: when the file's period began, in seconds since the boot; 0: not known."""
    return _HEAD.pack(_MAGIC, _VERSION, lasting, boot_id(), int(begun))


def encode_notes(notes: Iterable[Note]) -> bytes:
    return b"".join([bytes((table,)) + key.ljust(_KEY_SIZE, b"\0") for table, key in notes])


def end_of_notes(size: int) -> int:
    """Where the last whole note ends in a file of ``size`` bytes."""
    return size - (size - _HEAD.size) % _NOTE_SIZE


class _Head(NamedTuple):
    lasting: bool
    boot: bytes
    begun: int

    def age(self, stat: os.stat_result) -> float:
        """Seconds since the file was begun or written to, whichever is less."""
        age = time.time() - stat.st_mtime
        if self.begun and self.boot == boot_id():
            age = min(age, seconds_since_boot() - self.begun)
        return age


def _read_head(fd: int) -> _Head | None:
    """None if there is none: its maker has died, or is about to write it."""
    data = os.pread(fd, _HEAD.size, 0)
    if len(data) < _HEAD.size:
        return None
    magic, version, lasting, boot, begun = _HEAD.unpack(data)
    if magic != _MAGIC or version != _VERSION:
        return None
    return _Head(bool(lasting), boot.rstrip(b"\0"), begun)


def remove_left(folder: Path) -> None:
    """Removes the files of processes that have ended, but for lasting ones that are not old. Does nothing
    while a collection is under way."""
    with contextlib.suppress(BlockingIOError, NeveError), removal_lock(folder):
        _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    """The same for who holds one of the locks."""
    for path in folder.glob("*" + SUFFIX):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                head = _read_head(fd)
                if head is None or not head.lasting or head.age(os.fstat(fd)) > MAX_LASTING + PERIOD:
                    path.unlink()
            finally:
                os.close(fd)


class NotesReader:
    """Reads what all processes note, a part at a time. For who holds the lock of a collection.

    ``grace``: for how many seconds an answer of a server counts. Of what is noted from now on, everything
    counts.
    """

    def __init__(self, store: Path, grace: float) -> None:
        """To be made in the sweep with which the collection begins."""
        self._folder = store / USES_DIR
        self._read: dict[str, int] = {}
        self.is_certain = True
        """False if the machine went down while a server's notes that count were being written."""
        with os_errors(f"cannot read {self._folder}"):
            _remove_unused(self._folder)
            oldest = grace + PERIOD if grace else -1
            for path in self._paths():
                with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                    self._begin(path.name, file.fileno(), oldest)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*" + SUFFIX))

    def _begin(self, name: str, fd: int, oldest: float) -> None:
        """Decides where reading a file begins; ``oldest``: the age of one that just counts; -1: none does."""
        head, stat = _read_head(fd), os.fstat(fd)
        if head is None or not head.lasting:
            return
        if oldest < 0 or head.age(stat) > oldest:
            self._read[name] = end_of_notes(stat.st_size)
        elif head.boot != boot_id() and os.pread(fd, _NOTE_SIZE, stat.st_size - _NOTE_SIZE) != END_NOTE:
            self.is_certain = False

    def news(self) -> dict[int, set[bytes]]:
        """The keys that were noted since the last call, 32 bytes each, by table."""
        found: dict[int, set[bytes]] = {}
        with os_errors(f"cannot read {self._folder}"):
            for path in self._paths():
                with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                    self._read_on(path.name, file.fileno(), found)
        found.pop(END_NOTE[0], None)
        return found

    def _read_on(self, name: str, fd: int, found: dict[int, set[bytes]]) -> None:
        offset = self._read.get(name, _HEAD.size)
        while len(block := os.pread(fd, _BLOCK, offset)) >= _NOTE_SIZE:
            whole = len(block) // _NOTE_SIZE * _NOTE_SIZE
            for start in range(0, whole, _NOTE_SIZE):
                found.setdefault(block[start], set()).add(block[start + 1 : start + _NOTE_SIZE])
            offset += whole
        self._read[name] = offset
