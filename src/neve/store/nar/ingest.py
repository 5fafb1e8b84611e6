"""Taking NARs in: bytes to blobs, Directories and a root node, hashed and checked on the way."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Self

from neve.castore.blobs.base import BlobService
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import SizeRule
from neve.castore.ingest.entries import Ingester
from neve.castore.node import Node
from neve.errors import InvalidRequest
from neve.nix.nar.reader import NarReader
from neve.store.nar_nodes import Nar
from neve.telemetry import span

_QUEUED_PIECES = 4
_PATIENCE_SECONDS = 0.1
_HASHED_AT_ONCE = 512 * 1024
"""So many bytes of a NAR are hashed before there is a thread for the rest."""


class NarMismatch(InvalidRequest):
    """A NAR is not the one that was promised: another hash or size."""


def ingest_nar(
    pieces: Iterable[bytes],
    blobs: BlobService,
    directories: DirectoryService,
    *,
    expected: Nar | None = None,
    accept: Callable[[Nar], None] | None = None,
    size_rule: SizeRule = SizeRule.EXACT,
) -> tuple[Node, Nar]:
    """Stores the tree of a NAR that comes in pieces; returns its root node, size and sha256.

    With ``expected``, raises ``NarMismatch`` when size or hash differ: before the Directories become
    visible, and as soon as more bytes come than it should have. ``accept`` is called at the same time,
    when all has come: what it raises leaves nothing behind either. Raises ``NarError`` for malformed
    archives.
    """
    reader = NarReader()
    with (
        span("nar.ingest"),
        Ingester(blobs, directories, size_rule=size_rule) as ingester,
        _Hasher() as hasher,
    ):
        for piece in pieces:
            hasher.update(piece)
            if expected is not None and hasher.size > expected.size:
                raise NarMismatch(f"the NAR is longer than the {expected.size} bytes it should have")
            ingester.feed(reader.feed(piece))
        reader.close()
        nar = hasher.result()
        if expected is not None:
            expect_nar(nar, expected)
        if accept is not None:
            accept(nar)
        return ingester.finish(), nar


def expect_nar(nar: Nar, expected: Nar) -> None:
    """Raises ``NarMismatch`` unless they are equal."""
    if nar != expected:
        raise NarMismatch(
            f"the NAR has {nar.size} bytes and sha256 {nar.sha256.hex()}, "
            f"expected {expected.size} bytes and {expected.sha256.hex()}"
        )


class _Hasher:
    """sha256 beside the parsing: in a thread of its own, which costs more than it saves for short NARs."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED_PIECES)
        self._thread: threading.Thread | None = None

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._hash.update(piece)

    def update(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._thread is not None:
            self._queue.put(piece)
        elif self.size <= _HASHED_AT_ONCE:
            self._hash.update(piece)
        else:
            self._thread = threading.Thread(target=self._run, name="neve-nar-hash", daemon=True)
            self._thread.start()
            self._queue.put(piece)

    def result(self) -> Nar:
        self._stop()
        return Nar(self.size, self._hash.digest())

    def _stop(self) -> None:
        # Again and again: an interrupt in the middle of a put can lose the next wake-up.
        while self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_PATIENCE_SECONDS)
            self._thread.join(_PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


def read_pieces(file: BinaryIO, size: int = 1024 * 1024) -> Iterator[bytes]:
    """The rest of a binary file in pieces."""
    while piece := file.read(size):
        yield piece
