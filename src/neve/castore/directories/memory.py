"""Directories in a dict: for tests, and as a near cache."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from neve.castore.ages import Aged, Stamps
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import Digest, check_digest
from neve.castore.directories.base import CheckingPutter, DirectoryPutter, DirectoryService
from neve.castore.directory import Directory
from neve.registry import Address


class MemoryDirectoryService(DirectoryService):
    """Holds every Directory for as long as it lives."""

    tells_ages = True

    def __init__(self) -> None:
        self._directories: dict[Digest, bytes] = {}
        self._stamps = Stamps()
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
            self._stamps.freshen(encoded)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        with self._lock:
            digests = sorted(self._directories)
        start = bisect_right(digests, after)
        return digests[start : start + limit]

    def delete_many(self, digests: Sequence[Digest]) -> int:
        wanted = {check_digest(digest) for digest in digests}
        with self._lock:
            self._stamps.forget(wanted)
            return sum(self._directories.pop(digest, None) is not None for digest in wanted)

    def list_aged(self, after: Digest = b"", limit: int = 1000) -> Sequence[Aged]:
        return self._stamps.aged(self.list(after, limit))

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        with self._lock:
            absent = [digest for digest in digests if check_digest(digest) not in self._directories]
            self._stamps.freshen(set(digests).difference(absent))
        return absent

    def delete_aged(self, aged: Sequence[Aged]) -> int:
        with self._lock:
            gone = self._stamps.unchanged(aged)
            self._stamps.forget(gone)
            return sum(self._directories.pop(digest, None) is not None for digest in gone)


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
