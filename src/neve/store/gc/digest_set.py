"""Sets of digests that take little memory.

A Python set takes about 100 bytes for a digest. Here it is 16 bytes of the digest in a sorted run, and some
of the last ones in ordinary sets: some 25 bytes, 250 MiB for ten million. Two digests that are equal in their
first 16 bytes are taken for one: then something stays that might have gone, or, if both are Directories, one
stays without what it refers to. Nobody can make such a pair for a Directory of somebody else.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

from neve.castore.digest import Digest

_KEPT = 16
_PARTS = 256
_MIN_RECENT = 256


class _Run(Sequence[bytes]):
    """Sorted digests, one behind the other in one string of bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // _KEPT

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        return self.data[index * _KEPT : (index + 1) * _KEPT]

    def __contains__(self, short: object) -> bool:
        assert isinstance(short, bytes)
        found = bisect.bisect_left(self, short)
        return self[found] == short

    def __iter__(self) -> Iterator[bytes]:
        return (self.data[i : i + _KEPT] for i in range(0, len(self.data), _KEPT))


class DigestSet:
    """A set of digests that only grows. Not thread-safe."""

    def __init__(self) -> None:
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
            if len(recent) >= _MIN_RECENT and len(recent) * 8 > len(self._runs[part]):
                self._settle(part)
        return new

    def _settle(self, part: int) -> None:
        recent, self._recent[part] = self._recent[part], set()
        recent.update(self._runs[part])
        self._runs[part] = _Run(b"".join(sorted(recent)))

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
