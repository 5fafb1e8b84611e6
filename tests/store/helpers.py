"""Services to test with, trees in them, and a look at what a piece of code leaves behind."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from neve.castore.blobs.base import BlobReader, BlobService, BlobWriter
from neve.castore.digest import EMPTY_BLOB, Digest
from neve.castore.directory import Directory
from neve.castore.ingest.entries import Ingester
from neve.castore.node import Node
from neve.nix.nar import NarEncoder
from neve.store.services import Services, open_services
from neve.tree import Event


def memory_services() -> Services:
    return open_services("memory://")


def stored(services: Services, events: Sequence[Event]) -> Node:
    """The root node of a tree, once it is stored."""
    with Ingester(services.blobs, services.directories, size_rule=services.size_rule) as ingester:
        ingester.feed(events)
        return ingester.finish()


def encoded(events: Sequence[Event]) -> bytes:
    """The NAR of a tree, by the other way there is to make one."""
    encoder = NarEncoder()
    nar = b"".join(encoder.encode(events))
    encoder.finish()
    return nar


def everything(services: Services) -> tuple[list[Digest], list[Digest], list[str]]:
    """What can be seen in a store: blobs, Directories, store paths."""
    return (
        list(services.blobs.list(limit=100_000)),
        list(services.directories.list(limit=100_000)),
        [path_info.store_path.absolute for path_info in services.path_infos],
    )


def put_blob(services: Services, contents: bytes) -> Digest:
    return services.blobs.put_many([contents])[0]


def put_directory(services: Services, directory: Directory) -> Digest:
    return services.directories.put(directory)


class CountingBlobs(BlobService):
    """Passes everything on and notes the digests of blobs that are read; those of nothing do not count."""

    def __init__(self, inner: BlobService) -> None:
        self._inner = inner
        self.read_digests: list[Digest] = []

    def _note(self, digest: Digest) -> Digest:
        if digest != EMPTY_BLOB:
            self.read_digests.append(digest)
        return digest

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def open_read(self, digest: Digest) -> BlobReader | None:
        return self._inner.open_read(self._note(digest))

    def open_write(self) -> BlobWriter:
        return self._inner.open_write()

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        return self._inner.read_many(map(self._note, digests), limit)


class ForgedBlobs(BlobService):
    """Answers with other contents than those of the digest, as a backend that does not verify would."""

    def __init__(self, inner: BlobService, forged: dict[Digest, bytes]) -> None:
        from neve.castore.blobs.chunks import BytesReader

        self._inner = inner
        self._forged = {digest: lambda data=data: BytesReader(data) for digest, data in forged.items()}

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def open_read(self, digest: Digest) -> BlobReader | None:
        return self._forged[digest]() if digest in self._forged else self._inner.open_read(digest)

    def open_write(self) -> BlobWriter:
        return self._inner.open_write()


def open_files() -> dict[str, str]:
    """What each descriptor of this process leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextlib.contextmanager
def leaving_nothing_open() -> Iterator[None]:
    """Checks that the block leaves neither descriptors nor threads, without help of the garbage collector.

    An error that passes through is checked like success: its traceback must not keep anything open.
    """
    gc.disable()
    files, threads = open_files(), set(threading.enumerate())
    try:
        yield
    finally:
        deadline = time.monotonic() + 5
        while open_files() != files and time.monotonic() < deadline:
            time.sleep(0.01)  # What a library closes in a thread of its own needs a moment.
        gc.enable()
        assert open_files() == files
        while (left := set(threading.enumerate()) - threads) and time.monotonic() < deadline:
            time.sleep(0.01)  # A joined thread may need a moment to be gone from the list.
        assert not left


def resident() -> int:
    """Bytes of memory that this process has, the library's too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
