"""What is to be copied: path infos by digest, on the disk, a byte of memory each."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import Self

from neve.nix.store_path import DIGEST_SIZE
from neve.packstore.layout import temporary_errors

_ENTRY = struct.Struct(f"<{DIGEST_SIZE}sQI")
_BUFFER = 1024 * 1024

# What is to be done with one: to be copied, only to be put, or to be looked at because it is there; and what
# became of it.
WAITS, UNITES, CHECKS, UNDER_WAY, DONE, FAILED = range(6)


class Pending:
    """Encoded path infos, found by their digests. For one thread; to be closed.

    Those who add one after the other in ascending order, ``seal``, and only then look.
    """

    def __init__(self) -> None:
        self._files = contextlib.ExitStack()
        with temporary_errors("cannot make a file"):
            self._data, self._index = [
                self._files.enter_context(tempfile.TemporaryFile(buffering=_BUFFER))  # noqa: SIM115
                for _ in range(2)
            ]
        self._map: mmap.mmap | None = None
        self._end = 0
        self.states = bytearray()
        """What became of each, by its number."""

    def add(self, digest: bytes, encoded: bytes, state: int = WAITS) -> None:
        """Takes the next one. Raises ``DiskFull``, ``Unavailable``."""
        with temporary_errors("cannot note what is to be copied"):
            self._index.write(_ENTRY.pack(digest, self._end, len(encoded)))
            self._data.write(encoded)
        self._end += len(encoded)
        self.states.append(state)

    def seal(self) -> None:
        """Ends adding."""
        with temporary_errors("cannot note what is to be copied"):
            self._index.flush()
            self._data.flush()
            if self.states:
                self._map = mmap.mmap(self._index.fileno(), 0, access=mmap.ACCESS_READ)
                self._files.callback(self._map.close)

    def __len__(self) -> int:
        return len(self.states)

    def find(self, digest: bytes) -> int | None:
        """The number of the one with this digest."""
        low, high = 0, len(self.states)
        while low < high:
            middle = (low + high) // 2
            if self._digest(middle) < digest:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.states) and self._digest(low) == digest else None

    def _digest(self, number: int) -> bytes:
        assert self._map is not None
        start = number * _ENTRY.size
        return self._map[start : start + DIGEST_SIZE]

    def encoded(self, number: int) -> bytes:
        """The path info."""
        assert self._map is not None
        _, start, length = _ENTRY.unpack_from(self._map, number * _ENTRY.size)
        with temporary_errors("cannot read what is to be copied"):
            return os.pread(self._data.fileno(), length, start)

    def digests(self) -> Iterator[bytes]:
        """All digests, ascending."""
        return (self._digest(number) for number in range(len(self.states)))

    def close(self) -> None:
        """Frees the disk. Can be called again."""
        with contextlib.suppress(OSError):
            self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
