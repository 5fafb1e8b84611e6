"""Directories in a dict: for tests, and as a near cache."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from neve.castore.ages import Uses
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import Digest, check_digest
from neve.castore.directories.base import CheckingPutter, DirectoryPutter, DirectoryService
from neve.castore.directory import Directory
from neve.registry import Address


class MemoryDirectoryService(DirectoryService):
    """Holds every Directory for as long as it lives."""

    def __init__(self) -> None:
        self._directories: dict[Digest, bytes] = {}
        self._uses = Uses()
        self._lock = threading.Lock()

    def get(self, digest: Digest) -> Directory | None:
        encoded = self._directories.get(check_digest(digest))
        return None if encoded is None else Directory.decode(encoded, digest=digest)

    def put(self, directory: Directory) -> Digest:
        self.add({directory.digest: directory.encode()})
        return directory.digest

    def put_many(self, directories: Sequence[Directory]) -> None:
        self.add({directory.digest: directory.encode() for directory in directories})

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        return _Putter(self, limits)

    def add(self, encoded: dict[Digest, bytes]) -> None:
        with self._lock:
            self._directories.update(encoded)
            self._uses.note(encoded)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        with self._lock:
            digests = sorted(self._directories)
        start = bisect_right(digests, after)
        return digests[start : start + limit]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        wanted = {check_digest(digest) for digest in digests}
        with self._lock:
            going = self._uses.old(wanted, unused_for)
            self._uses.forget(going)
            return sum(self._directories.pop(digest, None) is not None for digest in going)

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[tuple[Digest, float]]:
        return [(one.digest, one.age) for one in self._uses.aged(self.list(after, limit))]

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        with self._lock:
            absent = [digest for digest in digests if check_digest(digest) not in self._directories]
            self._uses.note(set(digests).difference(absent))
        return absent


class _Putter(CheckingPutter):
    def __init__(self, service: MemoryDirectoryService, limits: ClosureLimits) -> None:
        super().__init__(limits)
        self._service = service
        self._kept: dict[Digest, bytes] = {}

    def _keep(self, encoded: bytes, digest: Digest) -> None:
        self._kept[digest] = encoded

    def _commit(self) -> None:
        self._service.add(self._kept)


def open_memory(address: Address) -> MemoryDirectoryService:
    """``memory://``"""
    address.check_parameters()
    if address.host or address.path:
        raise address.refuse("memory:// takes neither host nor path")
    return MemoryDirectoryService()
