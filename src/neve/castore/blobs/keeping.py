"""Blobs on their way from far, or to far, of which a copy stays near."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from neve.castore.absences import Absences
from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter
from neve.castore.blobs.bundle import Bundle
from neve.castore.digest import Digest, format_digest
from neve.castore.near import NEAR_FAILURES, NearCopy
from neve.errors import Corrupt
from neve.telemetry import LOGGER

_GROUP_BYTES = 1024 * 1024
_COMMIT_BYTES = 64 * 1024 * 1024
"""Blobs that are put together, and that are made durable together."""


class NearReader(BlobReader):
    """Reads a blob from near; from where near does not go on, from far. Owns ``near``, not ``far``.

    What near has given by then was verified, chunk by chunk.
    """

    def __init__(self, digest: Digest, near: BlobReader, far: BlobService) -> None:
        self._digest = digest
        self._reader = near
        self._far: BlobService | None = far

    @property
    def size(self) -> int:
        return self._reader.size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        return self._tried(lambda reader: reader.read(-1 if size is None else size))

    def read_piece(self, limit: int) -> bytes:
        return self._tried(lambda reader: reader.read_piece(limit))

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self.read(len(buffer))
        memoryview(buffer)[: len(piece)] = piece
        return len(piece)

    def _tried(self, step: Callable[[BlobReader], bytes]) -> bytes:
        start = self._reader.tell()
        try:
            return step(self._reader)
        except NEAR_FAILURES as error:
            if not self._goes_on_far(error):
                raise
        self._reader.seek(start)
        return step(self._reader)

    def _goes_on_far(self, error: Exception) -> bool:
        """Whether far has it, and is read from here on. Raises what far raises."""
        far = None if self._far is None else self._far.open_read(self._digest)
        self._far = None
        if far is None:
            return False
        LOGGER.warning("asking far, because near does not answer: %s", error)
        near, self._reader = self._reader, far
        near.close()
        return True

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


class KeepingReader(BlobReader):
    """Reads a blob from far. If it is read through from the start, it is near at the end.

    Owns ``far``. Nothing of the blob is held: who jumps about in it leaves no copy.
    """

    def __init__(self, digest: Digest, far: BlobReader, near: BlobService) -> None:
        self._digest = digest
        self._far = far
        self._copy = NearCopy(near.open_write, lambda writer: writer.abandon())
        self._copied = 0

    @property
    def size(self) -> int:
        return self._far.size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._far.seek(offset, whence)

    def tell(self) -> int:
        return self._far.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        start = self._far.tell()
        return self._noted(start, self._far.read(-1 if size is None else size))

    def read_piece(self, limit: int) -> bytes:
        start = self._far.tell()
        return self._noted(start, self._far.read_piece(limit))

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self.read(len(buffer))
        memoryview(buffer)[: len(piece)] = piece
        return len(piece)

    def _noted(self, start: int, data: bytes) -> bytes:
        if start > self._copied and data:
            self._copy.end()
        new = data[self._copied - start :] if start <= self._copied else b""
        if new:
            self._copied += len(new)
            self._copy.do(lambda writer: writer.write(new))
            if self._copied == self.size:
                self._copy.do(self._finish)
                self._copy.end()
        return data

    def _finish(self, writer: BlobWriter) -> None:
        if writer.close() != self._digest:
            raise Corrupt(f"what far gives as blob {format_digest(self._digest)} does not match its digest")

    def close(self) -> None:
        if not self.closed:
            self._copy.end()
            self._far.close()
        super().close()


class Keeper:
    """Puts blobs near that come from far, in groups; they are durable when the ``with`` block is left."""

    def __init__(self, near: BlobService) -> None:
        self._near = near
        self._copy: NearCopy[BlobBatch] | None = None
        self._group: list[bytes] = []
        self._group_bytes = 0
        self._uncommitted = 0

    def keep(self, contents: bytes) -> None:
        """Takes the next blob."""
        self._group.append(contents)
        self._group_bytes += len(contents)
        if self._group_bytes >= _GROUP_BYTES:
            self._put()
        if self._uncommitted >= _COMMIT_BYTES:
            self._commit()

    def _put(self) -> None:
        group, self._group = self._group, []
        self._uncommitted += self._group_bytes
        self._group_bytes = 0
        if self._copy is None:
            self._copy = NearCopy(self._near.batch, lambda batch: batch.close())
        self._copy.do(lambda batch: batch.put_many(group))

    def _commit(self) -> None:
        if self._group:
            self._put()
        if self._uncommitted and self._copy is not None:
            self._copy.do(lambda batch: batch.commit())
        self._uncommitted = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What has come is worth keeping, also when nobody wants more; but an interrupt is to be quick.
        if kind is None or issubclass(kind, Exception | GeneratorExit):
            self._commit()
        if self._copy is not None:
            self._copy.end()


class BothWriter(BlobWriter):
    """Writes far, which counts, and near. Far decides about everything."""

    def __init__(self, far: BlobWriter, near: NearCopy[BlobWriter], absences: Absences) -> None:
        self._far = far
        self._near = near
        self._absences = absences

    def write(self, data: bytes) -> int:
        size = self._far.write(data)
        self._near.do(lambda writer: writer.write(data))
        return size

    def write_bundle(self, chunks: Bundle) -> None:
        self._far.write_bundle(chunks)
        self._near.do(lambda writer: writer.write_bundle(chunks))

    def close(self) -> Digest:
        digest = self._far.close()
        self._near.do(lambda writer: writer.close())
        self._near.end()
        self._absences.discard([digest])
        return digest

    def abandon(self) -> None:
        self._near.end()
        self._far.abandon()


class BothBatch(BlobBatch):
    """Puts blobs far, which counts, and near."""

    def __init__(self, far: BlobBatch, near: NearCopy[BlobBatch], absences: Absences) -> None:
        self._far = far
        self._near = near
        self._absences = absences

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        digests = self._far.put_many(blobs)
        self._near.do(lambda batch: batch.put_many(blobs))
        self._absences.discard(digests)
        return digests

    def put_bundle(self, bundle: Bundle) -> None:
        self._far.put_bundle(bundle)
        self._near.do(lambda batch: batch.put_bundle(bundle))
        self._absences.discard(bundle.digests)

    def open_write(self) -> BlobWriter:
        far = self._far.open_write()
        near = self._near.part(lambda batch: batch.open_write(), lambda writer: writer.abandon())
        return BothWriter(far, near, self._absences)

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        return self._far.keep_many(digests)

    def commit(self) -> None:
        self._far.commit()
        # Who asked before that may have been told that they are not there.
        self._absences.clear()
        self._near.do(lambda batch: batch.commit())

    def close(self) -> None:
        try:
            self._near.end()
        finally:
            self._far.close()


class CombinedBatch(BlobBatch):
    """Puts blobs near; what is far can be referred to all the same."""

    def __init__(self, near: BlobBatch, far: BlobService) -> None:
        self._near = near
        self._far = far

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        return self._near.put_many(blobs)

    def put_bundle(self, bundle: Bundle) -> None:
        self._near.put_bundle(bundle)

    def open_write(self) -> BlobWriter:
        return self._near.open_write()

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        absent = self._near.keep_many(digests)
        return self._far.missing(absent) if absent else absent

    def commit(self) -> None:
        self._near.commit()

    def close(self) -> None:
        self._near.close()
