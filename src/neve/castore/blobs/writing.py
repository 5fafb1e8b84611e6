"""What writers of blobs have in common: gathering what is written, and the rules about their end."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from blake3 import blake3

from neve.castore.blobs.base import BlobWriter, Chunk
from neve.castore.blobs.chunks import AVERAGE_CHUNK, Chunker
from neve.castore.digest import Digest
from neve.errors import InvalidRequest

_WRITE_BLOCK = 1024 * 1024
"""So much is gathered before it is cut into chunks."""


class GatheringWriter(BlobWriter):
    """Gathers what is written into blocks of at least ``block_bytes``, which a subclass takes.

    What a subclass raises ends the writer: it has failed then, and says so from there on.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_limit = block_bytes
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._digest: Digest | None = None
        self._state = "open"

    @abstractmethod
    def _take(self, pieces: list[bytes]) -> None:
        """Takes the next block, in pieces."""

    @abstractmethod
    def _finish(self) -> Digest:
        """Ends the blob; what was not taken yet, ``_rest`` gives."""

    @abstractmethod
    def _release(self) -> None:
        """Lets go of what the writer holds. It is closed, abandoned or failed: see ``_state``."""

    def write(self, data: bytes) -> int:
        self._check_open()
        self._block.append(bytes(data))
        self._block_bytes += len(data)
        if self._block_bytes >= self._block_limit:
            with self._failing():
                self._take(self._rest())
        return len(data)

    def _rest(self) -> list[bytes]:
        """The pieces gathered so far, which are given away."""
        pieces, self._block, self._block_bytes = self._block, [], 0
        return pieces

    def close(self) -> Digest:
        if self._digest is not None:
            return self._digest
        self._check_open()
        with self._failing():
            digest = self._finish()
        self._digest = digest
        self._end("closed")
        return digest

    def abandon(self) -> None:
        if self._state == "open":
            self._end("abandoned")

    def _check_open(self) -> None:
        if self._state == "failed":
            raise InvalidRequest("the blob writer was previously closed with an error")
        if self._state != "open":
            raise InvalidRequest(f"the blob writer is {self._state}")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._end("failed")
            raise

    def _end(self, state: str) -> None:
        self._state = state
        self._block = []
        self._release()


class ChunkBatch(Protocol):
    """Where the chunks of a blob go."""

    def put_chunks(self, chunks: Sequence[memoryview]) -> list[Chunk]:
        """Stores chunks."""

    def commit(self) -> None:
        """Makes all durable."""

    def close(self) -> None:
        """Gives up what was not committed."""


Batch = TypeVar("Batch", bound=ChunkBatch)


class ChunkingWriter(GatheringWriter, Generic[Batch]):
    """Writes one blob of any length to a batch, in chunks. ``owns_batch``: the batch ends with it."""

    def __init__(self, batch: Batch, *, owns_batch: bool, average: int = AVERAGE_CHUNK) -> None:
        super().__init__(_WRITE_BLOCK)
        self._batch = batch
        self._owns_batch = owns_batch
        self._average = average
        self._hasher = blake3()
        self._chunker: Chunker | None = None
        self._chunks: list[Chunk] = []

    @abstractmethod
    def _stored(self) -> Digest:
        """Stores what is left, and what says that the chunks are the blob."""

    def _take(self, pieces: list[bytes]) -> None:
        if self._chunker is None:
            self._chunker = Chunker(self._average)
        for piece in pieces:
            self._hasher.update(piece)
        self._chunks += self._batch.put_chunks(self._chunker.feed(pieces))

    def _end_chunk(self) -> None:
        """Makes a chunk end here."""
        if self._block:
            self._take(self._rest())
        if self._chunker is not None:
            self._chunks += self._batch.put_chunks(self._chunker.finish())
            self._chunker = None

    def _finish(self) -> Digest:
        digest = self._stored()
        if self._owns_batch:
            self._batch.commit()
        return digest

    def _release(self) -> None:
        self._chunks, self._chunker = [], None
        if self._owns_batch:
            self._batch.close()
