"""Closures that came as a whole, held for who walks them.

Where only the root of a closure can be asked for, what came with it is all there is of its children. So
closures are held: the last one of any size, and others as far as there is room, in memory or on the disk.
For those that were let go of it is remembered for a while where to find them again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from neve.castore.digest import Digest
from neve.castore.directory import Directory
from neve.packstore.layout import temporary_errors

_ENTRY_BYTES = 250
"""What a place in an index takes in memory, roughly."""

_SPOOL_BYTES = 4 * 1024 * 1024
"""A closure that is longer lies on the disk."""

MEMORY_BYTES = 64 * 1024 * 1024
DISK_BYTES = 2 * 1024 * 1024 * 1024
"""Of closures that are held beside the last one."""

MAX_REMEMBERED = 400_000
"""Directories of which it is known with which root they came."""


class _Place(NamedTuple):
    start: int
    length: int


class Closure:
    """The Directories of one closure, in the order they came in. Read by any number of threads."""

    def __init__(self, root: Digest) -> None:
        self.root = root
        self.places: dict[Digest, _Place] = {}
        self.size = 0
        self._memory: bytearray | None = bytearray()
        self._file: int | None = None

    def add(self, directory: Directory) -> None:
        """Takes one. Raises ``DiskFull``, ``Unavailable``."""
        encoded = directory.encode()
        self.places[directory.digest] = _Place(self.size, len(encoded))
        self.size += len(encoded)
        if self._memory is not None:
            self._memory += encoded
            if self.size > _SPOOL_BYTES:
                self._write(self._memory)
                self._memory = None
        else:
            self._write(encoded)

    def _write(self, data: bytes | bytearray) -> None:
        with temporary_errors("cannot hold Directories"):
            if self._file is None:
                with tempfile.TemporaryFile(buffering=0) as file:
                    self._file = os.dup(file.fileno())
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]

    @property
    def memory(self) -> int:
        """Bytes that it takes there."""
        return len(self._memory or b"") + len(self.places) * _ENTRY_BYTES

    @property
    def disk(self) -> int:
        """Bytes that it takes there."""
        return 0 if self._file is None else self.size

    def encoded(self, digest: Digest) -> bytes | None:
        """The encoding of one, if it is among them."""
        place = self.places.get(digest)
        if place is None:
            return None
        if self._memory is not None:
            return bytes(self._memory[place.start : place.start + place.length])
        assert self._file is not None
        with temporary_errors("cannot read Directories"):
            return os.pread(self._file, place.length, place.start)

    def all_encoded(self) -> Iterator[bytes]:
        """All of them, in the order they came in."""
        for digest in self.places:
            encoded = self.encoded(digest)
            assert encoded is not None
            yield encoded

    def __del__(self) -> None:
        # Whoever reads has a reference: nobody else knows when the last one is gone.
        if getattr(self, "_file", None) is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)  # type: ignore[arg-type]


class HeldClosures:
    """Those that are held, and where others come from. Thread-safe."""

    def __init__(self, memory: int = MEMORY_BYTES, disk: int = DISK_BYTES) -> None:
        self._limits = memory, disk
        self._memory = self._disk = 0
        self._held: OrderedDict[Digest, Closure] = OrderedDict()
        self._by_child: dict[Digest, Closure] = {}
        self._remembered: OrderedDict[Digest, Digest] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, closure: Closure) -> None:
        """Holds one more, and lets go of those that were used least recently."""
        with self._lock:
            if closure.root in self._held:
                self._let_go(closure.root, remember=False)
            self._held[closure.root] = closure
            self._memory += closure.memory
            self._disk += closure.disk
            for digest in closure.places:
                self._by_child[digest] = closure
            while len(self._held) > 1 and self._is_too_much():
                self._let_go(next(iter(self._held)), remember=True)

    def _is_too_much(self) -> bool:
        memory, disk = self._limits
        return self._memory > memory or self._disk > disk

    def _let_go(self, root: Digest, *, remember: bool) -> None:
        closure = self._held.pop(root)
        self._memory -= closure.memory
        self._disk -= closure.disk
        for digest in closure.places:
            if self._by_child.get(digest) is closure:
                del self._by_child[digest]
            if remember and digest != root:
                self._remembered[digest] = root
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def of_root(self, root: Digest) -> Closure | None:
        """The closure of a root, if it is held."""
        with self._lock:
            closure = self._held.get(root)
            if closure is not None:
                self._held.move_to_end(root)
            return closure

    def containing(self, digest: Digest) -> Closure | None:
        """A closure that has the Directory, if one is held."""
        with self._lock:
            closure = self._by_child.get(digest)
            if closure is not None and closure.root in self._held:
                self._held.move_to_end(closure.root)
            return closure

    def root_of(self, digest: Digest) -> Digest | None:
        """The root that a Directory came with when it was held, if that is remembered."""
        with self._lock:
            return self._remembered.get(digest)

    def forget(self, roots: Iterable[Digest]) -> None:
        """Lets go of closures that were deleted."""
        with self._lock:
            for root in roots:
                if root in self._held:
                    self._let_go(root, remember=False)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._memory = self._disk = 0
            self._by_child.clear()
            self._remembered.clear()
