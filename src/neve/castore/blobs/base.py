"""The interface of blob services.

A backend implements ``has``, ``open_read`` and ``open_write``; every other operation has a default
that is right but slow, and backends that can do many things in one go override it.

Services are synchronous and thread-safe; readers, writers and batches belong to one thread.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from neve.castore.ages import Aged
from neve.castore.blobs.bundle import Answer, Bundle
from neve.castore.digest import Digest, format_digest
from neve.errors import Corrupt, LimitExceeded, NotFound, Unsupported
from neve.tree import WHOLE_FILE_LIMIT

_COPY_BYTES = 1024 * 1024


class Chunk(NamedTuple):
    """A piece of a blob, itself addressed like a blob. ``size`` in bytes."""

    digest: Digest
    size: int


class BlobReader(io.RawIOBase):
    """A blob being read: a seekable binary file.

    Whoever reads it to the end has verified bytes: a mismatch raises ``Corrupt`` at the latest
    instead of the end of the file. Seeking past the end is fine; reading there gives nothing.
    """

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of the blob in bytes."""

    def read_piece(self, limit: int) -> bytes:
        """The next bytes, at most ``limit``: as many as come without copying. Empty at the end."""
        return self.read(limit) or b""


class BlobWriter(ABC):
    """A blob being written. Leaving its ``with`` block without ``close`` abandons it."""

    @abstractmethod
    def write(self, data: bytes) -> int:
        """Appends ``data`` (of any length) and returns its length."""

    def write_bundle(self, chunks: Bundle) -> None:
        """Appends chunks, of 1 to ``WHOLE_FILE_LIMIT`` bytes, that the sender has cut; verifies them.

        A backend may keep them as they are. Raises ``InvalidRequest``.
        """
        for chunk in chunks.contents():
            self.write(bytes(chunk))

    @abstractmethod
    def close(self) -> Digest:
        """Makes the blob durable and visible; returns its digest. A second call gives the same.

        After a failure every further call says that the writer was closed with an error.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Forgets what was written; nothing becomes visible. Does nothing after ``close``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abandon()


class BlobBatch(ABC):
    """Many blobs stored with one promise: they are durable and visible once ``commit`` returns.

    Before that, nothing is promised. Leaving the ``with`` block without ``commit`` gives them up
    (some may have become visible, each of them whole).
    """

    @abstractmethod
    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        """Takes blobs that are small enough to be held; returns their digests in order."""

    def put_bundle(self, bundle: Bundle) -> None:
        """Takes blobs that come packed, and verifies them. A backend may keep them as they are.

        Raises ``InvalidRequest`` if one does not match its digest.
        """
        self.put_many([bytes(blob) for blob in bundle.contents()])

    @abstractmethod
    def open_write(self) -> BlobWriter:
        """A writer whose ``close`` promises nothing before ``commit``."""

    @abstractmethod
    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        """Which of ``digests`` are missing; those that are there can be referred to like ones put."""

    @abstractmethod
    def commit(self) -> None:
        """Returns when everything put so far is durable and visible."""

    @abstractmethod
    def close(self) -> None:
        """Ends the batch; what was not committed is given up. Can be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlobService(ABC):
    """Stores blobs and gives them back, verified.

    The empty blob is always there. Wherever a digest is taken to read, that of a chunk is accepted
    too. Failures are errors of ``neve.errors``: ``Corrupt`` (names the digest), ``Unavailable``,
    ``LimitExceeded``, ``InvalidRequest`` (a digest of the wrong length); None means "not there".
    """

    @property
    def looks_up_at_once(self) -> bool:
        """Whether ``missing``, called now, only looks into memory or a mapped file: then an event loop may
        call it."""
        return False

    seals_chunk_lists = False
    """Whether what ``chunks`` gives was proven when it was stored: then chunks that match their digests make
    up the blob, and nobody has to hash it as a whole."""

    @property
    def tells_ages(self) -> bool:
        """Whether it tells the ages of its objects, as ``neve.castore.ages`` says: then it can be collected
        while others write to it."""
        return type(self).list_with_ages is not BlobService.list_with_ages

    @abstractmethod
    def has(self, digest: Digest) -> bool:
        """Whether the blob (or chunk) is there."""

    @abstractmethod
    def open_read(self, digest: Digest) -> BlobReader | None:
        """A reader of the blob, or None."""

    @abstractmethod
    def open_write(self) -> BlobWriter:
        """A writer of a new blob, durable when its ``close`` returns."""

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        """The chunks whose concatenation is the blob (the empty blob has none), or None.

        A backend that does not cut gives the blob as its own only chunk.
        """
        reader = self.open_read(digest)
        if reader is None:
            return None
        with reader:
            return [Chunk(digest, reader.size)] if reader.size else []

    def stored_chunks(self, digest: Digest) -> list[Chunk]:
        """The chunks that a blob is stored in, as far as that can be told without reading it; else none."""
        return []

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of ``digests`` that are not there, in order."""
        return [digest for digest in digests if not self.has(digest)]

    def missing_blobs(self, digests: Sequence[Digest]) -> list[Digest]:
        """Like ``missing``, for who is about to store them: also those that are there only as chunks of
        others, and so are not listed."""
        return self.missing(digests)

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        """Stores small blobs, durable on return; gives their digests in order."""
        with self.batch() as batch:
            digests = batch.put_many(blobs)
            batch.commit()
        return digests

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        """The whole contents of each blob, in order; for blobs small enough to be held.

        ``digests`` is consumed ahead of what is yielded, by a bounded amount. Raises like ``read``.
        """
        for digest in digests:
            yield self.read(digest, limit)

    def read_bundles(self, digests: Sequence[Digest], limit: int = WHOLE_FILE_LIMIT) -> Iterator[Answer]:
        """Blobs as they are sent to who asks for many: in any order, perhaps as they are stored.

        What is sent compressed is not verified: who receives it has to. A blob that is not there is named
        as absent. One that is longer than ``limit``, must be read in chunks, or is damaged, is named to be
        read apart.
        """
        for place, digest in enumerate(digests):
            yield self._bundle_of_one(place, digest, limit)

    def _bundle_of_one(self, place: int, digest: Digest, limit: int) -> Answer:
        answer = Answer()
        try:
            answer.add(place, self.read(digest, limit))
        except NotFound:
            answer.absent.append(place)
        except (LimitExceeded, Corrupt):
            answer.apart.append(place)
        return answer

    def read(self, digest: Digest, limit: int | None = None) -> bytes:
        """The whole contents of one blob. Raises ``NotFound``, and ``LimitExceeded`` instead of reading
        a blob of more than ``limit`` bytes."""
        reader = self.open_read(digest)
        if reader is None:
            raise blob_not_found(digest)
        with reader:
            if limit is not None and reader.size > limit:
                raise too_long(digest, reader.size, limit)
            return reader.read()

    def stream(self, digest: Digest, size: int = _COPY_BYTES) -> Iterator[bytes]:
        """The contents in pieces of at most ``size`` bytes. Raises ``NotFound``."""
        reader = self.open_read(digest)
        if reader is None:
            raise blob_not_found(digest)
        with reader:
            while piece := reader.read_piece(size):
                yield piece

    def batch(self) -> BlobBatch:
        """A batch; by default every blob is durable as soon as it is put."""
        return _PlainBatch(self)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        """Up to ``limit`` digests of blobs greater than ``after``, ascending. May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot list blobs")

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        """Deletes blobs; returns how many were there. May be ``Unsupported``.

        What refers to them is the caller's business. With ``unused_for`` only those go that were not used in
        the last so many seconds (``neve.castore.ages``), and nothing that ``list_chunks_with_ages`` gives.
        """
        raise Unsupported(f"{type(self).__name__} cannot delete blobs")

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[Aged]:
        """What ``list`` gives, with ages. May be ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot tell the ages of blobs")

    def list_chunks_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[Aged]:
        """The same for chunks, where those are objects of their own; also those that no blob has."""
        return []

    def delete_chunks(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        """The same as ``delete_many`` for chunks."""
        return 0

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Uses blobs or chunks: gives those that are missing, in order. The others stay for now, with their
        chunks."""
        return self.missing(digests)

    def remove_leftovers(self, unused_for: float) -> int:
        """Removes what writers have left that died in the middle of an object, and what nobody has written to
        in the last so many seconds; returns how much. Listings do not have it."""
        return 0

    def close(self) -> None:
        """Lets go of files and connections. Can be called again."""
        return


class _PlainBatch(BlobBatch):
    """A batch over a service whose puts are durable at once."""

    def __init__(self, service: BlobService) -> None:
        self._service = service

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        digests = []
        for blob in blobs:
            with self._service.open_write() as writer:
                writer.write(blob)
                digests.append(writer.close())
        return digests

    def open_write(self) -> BlobWriter:
        return self._service.open_write()

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        return self._service.missing(digests)

    def commit(self) -> None:
        return

    def close(self) -> None:
        return


def too_long(digest: Digest, size: int, limit: int) -> LimitExceeded:
    """The error for a blob that is longer than its reader takes."""
    return LimitExceeded(f"blob {format_digest(digest)} has {size} bytes, at most {limit} are wanted")


def blob_not_found(digest: Digest) -> NotFound:
    """The error for a blob that must be there and is not."""
    return NotFound(f"blob {format_digest(digest)} is not in the store")
