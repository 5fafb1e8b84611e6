"""Sets of digests that take little memory.

A Python set takes about 100 bytes for a digest. Here it is 16 bytes of the digest in a sorted run, and some
of the last ones in ordinary sets: some 30 bytes, 270 MB for ten million. Two digests that are equal in their
first 16 bytes are taken for one: then something stays that might have gone, or, if both are Directories, one
stays without what it refers to. Nobody can make such a pair for a Directory of somebody else.

Where a store may have a thousand million objects, the runs lie in a file (``RunFile``), of which the kernel
keeps as much in memory as there is room for.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from neve.castore.digest import Digest
from neve.errors import NeveError
from neve.packstore.layout import os_errors

_KEPT = 16
_PARTS = 256
_MIN_RECENT = 256
_MAX_RECENT = 16 * 1024
"""With runs in a file no more than so many are outside of them in each part: some 400 MB in all."""


_MIN_IN_FILE = 64 * 1024
"""Bytes of a run from which on it goes to a file: all that are shorter are 16 MiB together."""

_MIN_MAP = 64 * 1024 * 1024


class _Run(Sequence[bytes]):
    """Sorted digests, one behind the other in one string of bytes, or in a part of a file."""

    def __init__(self, data: bytes | RunFile = b"", start: int = 0, size: int | None = None) -> None:
        self.data = data
        self.start = start
        self.size = size if isinstance(data, RunFile) and size is not None else len(data)

    def __len__(self) -> int:
        return self.size // _KEPT

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        place = self.start + index * _KEPT
        return self.data[place : place + _KEPT]

    def __contains__(self, short: object) -> bool:
        assert isinstance(short, bytes)
        found = bisect.bisect_left(self, short)
        return found < len(self) and self[found] == short

    def __iter__(self) -> Iterator[bytes]:
        data = self.data[self.start : self.start + self.size]
        return (data[i : i + _KEPT] for i in range(0, len(data), _KEPT))


class RunFile:
    """A file without a name that runs lie in. What of it is not in use any more is dropped from time to time,
    by ``DigestSet``. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with os_errors(f"cannot make a file in {folder}"):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the set
            self._file.truncate(_MIN_MAP)
            self._map = mmap.mmap(self._file.fileno(), _MIN_MAP)
        self.end = 0

    def __len__(self) -> int:
        return self.end

    def __getitem__(self, place: slice) -> bytes:
        return self._map[place]

    def append(self, data: bytes) -> int:
        """Returns the place. Raises ``DiskFull``; then nothing has changed."""
        place = self.end
        with os_errors(f"cannot keep what is marked in {self._folder}"):
            # Written, and not through the map: a full disk would show there by the end of the process.
            self._file.seek(place)
            self._file.write(data)
            self._file.flush()
            if place + len(data) > len(self._map):
                size = max(2 * len(self._map), place + len(data))
                self._file.truncate(size)
                self._map.close()
                self._map = mmap.mmap(self._file.fileno(), size)
        self.end = place + len(data)
        return place

    def close(self) -> None:
        self._map.close()
        self._file.close()


class DigestSet:
    """A set of digests that only grows. Not thread-safe."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: for a file that long runs lie in; else, and without room there, they are in memory."""
        self._folder = folder
        self._run_file: RunFile | None = None
        self._runs = [_Run() for _ in range(_PARTS)]
        self._recent: list[set[bytes]] = [set() for _ in range(_PARTS)]
        self._cached: set[bytes] = set()
        self._cached_part = self._cached_size = -1

    def __len__(self) -> int:
        return sum(map(len, self._runs)) + sum(map(len, self._recent))

    def __contains__(self, digest: Digest) -> bool:
        short = digest[:_KEPT]
        return short in self._recent[digest[0]] or short in self._runs[digest[0]]

    def add_new(self, digests: Iterable[Digest]) -> list[Digest]:
        """Adds them; returns those that were not there, each once."""
        new = []
        for digest in digests:
            part, short = digest[0], digest[:_KEPT]
            recent = self._recent[part]
            if short in recent or short in self._runs[part]:
                continue
            recent.add(short)
            new.append(digest)
            full = len(recent) >= _MAX_RECENT and self._folder is not None
            if full or (len(recent) >= _MIN_RECENT and len(recent) * 8 > len(self._runs[part])):
                self._settle(part)
        return new

    def _settle(self, part: int) -> None:
        recent, self._recent[part] = self._recent[part], set()
        recent.update(self._runs[part])
        data = b"".join(sorted(recent))
        self._runs[part] = _Run(data) if len(data) < _MIN_IN_FILE else self._in_file(data)

    def _in_file(self, data: bytes) -> _Run:
        if self._folder is None:
            return _Run(data)
        try:
            if self._run_file is None:
                self._run_file = RunFile(self._folder)
            place = self._run_file.append(data)
            run = _Run(self._run_file, place, len(data))
            in_use = [one for one in self._runs if isinstance(one.data, RunFile)]
        except NeveError:
            return _Run(data)
        if self._run_file.end > 2 * sum(one.size for one in in_use) + _MIN_MAP:
            with contextlib.suppress(NeveError):  # Then it goes on in the one that there is.
                self._move(in_use, run)
        return run

    def _move(self, runs: Sequence[_Run], last: _Run) -> None:
        """Moves the runs in use to a new file."""
        assert self._folder is not None
        assert self._run_file is not None
        new, moved = RunFile(self._folder), [*runs, last]
        try:
            places = [new.append(run.data[run.start : run.start + run.size]) for run in moved]
        except NeveError:
            new.close()
            raise
        for run, place in zip(moved, places, strict=True):
            run.data, run.start = new, place
        self._run_file.close()
        self._run_file = new

    def close(self) -> None:
        """Lets go of the file. The set cannot be used any more."""
        if self._run_file is not None:
            self._run_file.close()

    def absent(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those that are not there, of many in ascending order: that is faster than one by one."""
        result: list[Digest] = []
        start = 0
        while start < len(digests):
            part = digests[start][0]
            end = (
                bisect.bisect_left(digests, bytes((part + 1,)), start) if part < _PARTS - 1 else len(digests)
            )
            there = self._part(part)
            result += [digest for digest in digests[start:end] if digest[:_KEPT] not in there]
            start = end
        return result

    def _part(self, part: int) -> set[bytes]:
        if self._cached_part != part or self._cached_size != self._size_of(part):
            self._cached = self._recent[part].union(self._runs[part])
            self._cached_part, self._cached_size = part, self._size_of(part)
        return self._cached

    def _size_of(self, part: int) -> int:
        return len(self._runs[part]) + len(self._recent[part])
