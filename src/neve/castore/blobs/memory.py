"""Blobs in a dict: for tests, and as a near cache."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from neve.castore.ages import Aged, Uses
from neve.castore.blobs.base import BlobReader, BlobService, BlobWriter
from neve.castore.blobs.chunks import BytesReader
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, check_digest
from neve.errors import InvalidRequest
from neve.registry import Address


class MemoryBlobService(BlobService):
    """Holds every blob whole, for as long as it lives."""

    looks_up_at_once = True

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {EMPTY_BLOB: b""}
        self._uses = Uses()
        self._put: set[Digest] = set()
        self._lock = threading.Lock()

    def has(self, digest: Digest) -> bool:
        return not self.missing([digest])

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        with self._lock:
            absent = [digest for digest in digests if check_digest(digest) not in self._blobs]
            self._uses.note(self._put.intersection(digests))
        return absent

    def open_read(self, digest: Digest) -> BlobReader | None:
        contents = self._blobs.get(check_digest(digest))
        return None if contents is None else BytesReader(contents)

    def open_write(self) -> BlobWriter:
        return _Writer(self)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        with self._lock:
            digests = sorted(self._put)
        start = bisect_right(digests, after)
        return digests[start : start + limit]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        wanted = {check_digest(digest) for digest in digests}
        with self._lock:
            there = self._uses.old(self._put & wanted, unused_for)
            self._put -= there
            self._uses.forget(there)
            for digest in there - {EMPTY_BLOB}:
                del self._blobs[digest]
        return len(there)

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[Aged]:
        return self._uses.aged(self.list(after, limit))

    def add(self, contents: bytes) -> Digest:
        digest = b3_digest(contents)
        with self._lock:
            self._blobs[digest] = contents
            if contents:
                self._put.add(digest)
                self._uses.note([digest])
        return digest


class _Writer(BlobWriter):
    def __init__(self, service: MemoryBlobService) -> None:
        self._service = service
        self._pieces: list[bytes] | None = []
        self._digest: Digest | None = None

    def write(self, data: bytes) -> int:
        if self._pieces is None:
            raise InvalidRequest("the blob writer is closed")
        self._pieces.append(bytes(data))
        return len(data)

    def close(self) -> Digest:
        if self._digest is None:
            if self._pieces is None:
                raise InvalidRequest("the blob writer was abandoned")
            self._digest = self._service.add(b"".join(self._pieces))
            self._pieces = None
        return self._digest

    def abandon(self) -> None:
        self._pieces = None


def open_memory(address: Address) -> MemoryBlobService:
    """``memory://``"""
    address.check_parameters()
    if address.host or address.path:
        raise address.refuse("memory:// takes neither host nor path")
    return MemoryBlobService()
