"""Services that wait, count and fail when they are told to, around others."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from neve.castore.blobs.base import BlobReader, BlobService, BlobWriter, Chunk
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService
from neve.castore.directory import Directory
from neve.castore.node import Node
from neve.errors import NeveError
from neve.fs.roots import RootNodes

SECONDS = 60


class Gate:
    """Lets calls through, or not yet, or with an error."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.error: NeveError | None = None
        self.waiting = threading.Semaphore(0)
        """Released by each call that comes while it is closed."""
        self._open = threading.Event()
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait_for_call(self) -> None:
        """Until a call has come to the closed gate."""
        assert self.waiting.acquire(timeout=SECONDS)

    def passed(self, what: object) -> None:
        self.calls.append(what)
        if not self._open.is_set():
            self.waiting.release()
            assert self._open.wait(SECONDS)
        if self.error is not None:
            raise self.error


class GatedBlobs(BlobService):
    def __init__(self, inner: BlobService, gate: Gate, *, sealed: bool | None = None) -> None:
        self._inner = inner
        self._gate = gate
        self.seals_chunk_lists = inner.seals_chunk_lists if sealed is None else sealed

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def open_read(self, digest: Digest) -> BlobReader | None:
        self._gate.passed(("open", digest))
        return self._inner.open_read(digest)

    def open_write(self) -> BlobWriter:
        return self._inner.open_write()

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        self._gate.passed(("chunks", digest))
        return self._inner.chunks(digest)

    def read(self, digest: Digest, limit: int | None = None) -> bytes:
        self._gate.passed(("read", digest))
        return self._inner.read(digest, limit)

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        for digest in digests:
            self._gate.passed(("read", digest))
            yield self._inner.read(digest, limit)


class GatedDirectories(DirectoryService):
    def __init__(self, inner: DirectoryService, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    def get(self, digest: Digest) -> Directory | None:
        return self.get_many([digest]).get(digest)

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        self._gate.passed(tuple(digests))
        return self._inner.get_many(digests)

    def put(self, directory: Directory) -> Digest:
        return self._inner.put(directory)

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        return self._inner.put_multiple(limits)


class GatedRoots(RootNodes):
    def __init__(self, inner: RootNodes, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    def get(self, name: bytes) -> Node | None:
        self._gate.passed(name)
        return self._inner.get(name)

    def list(self) -> Iterator[tuple[bytes, Node]]:
        self._gate.passed("list")
        return self._inner.list()
