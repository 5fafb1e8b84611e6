"""Storing blobs in an object store: many requests at once, in a bounded queue.

A small blob takes three requests (is it there? its chunk, its list) or, if it is there, one. The parts of a
large one are asked for and stored one by one while it is written; its list follows when they are all there:
whoever finds a list finds the blob.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from neve.castore.blobs.base import BlobBatch, BlobWriter, Chunk
from neve.castore.blobs.writing import ChunkingWriter
from neve.castore.digest import EMPTY_BLOB, Digest
from neve.castore.objectstore.bucket import Bucket
from neve.castore.objectstore.layout import BLOBS, CHUNKS, key_of, pack_chunk, pack_list
from neve.errors import InvalidRequest, Unavailable
from neve.telemetry import count

if TYPE_CHECKING:
    from neve.castore.blobs.objectstore import ObjectBlobService


_MAX_QUEUED_BYTES = 32 * 1024 * 1024
"""Contents that wait to be stored: enough to keep 64 requests with chunks busy."""

_MAX_KNOWN = 1_000_000
"""Digests that a batch remembers to have put: some 100 MiB. Beyond it forgets them, and asks again."""


class _List(NamedTuple):
    digest: Digest
    chunks: Sequence[Chunk]
    behind: int
    """How many tasks have to be done before: those with its chunks are among them."""


class ObjectBlobBatch(BlobBatch):
    """Puts blobs. Tasks are done in the bucket's threads, and their results taken in order."""

    def __init__(self, bucket: Bucket, service: ObjectBlobService) -> None:
        self._bucket = bucket
        self._service = service
        self.average = bucket.settings.average_chunk
        self._queued: deque[tuple[Future[None], int]] = deque()
        self._queued_bytes = 0
        self._submitted = self._done = 0
        self._lists: deque[_List] = deque()
        self._put: set[tuple[str, Digest]] = set()
        self._failure: BaseException | None = None
        self._closed = False

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        self._check_usable()
        return [self._put_one(blob) for blob in blobs]

    def _put_one(self, blob: bytes) -> Digest:
        if len(blob) > self.average // 2:
            with self.open_write() as writer:
                writer.write(blob)
                return writer.close()
        return self.put_small(blob)

    def put_small(self, blob: bytes) -> Digest:
        """Takes a blob that is one chunk."""
        digest = blake3(blob).digest()
        if self._is_new(BLOBS, digest):
            self._submit(lambda: self._store_small(digest, blob), len(blob))
        else:
            _count(False, len(blob))
        return digest

    def _store_small(self, digest: Digest, blob: bytes) -> None:
        known = self._service.counts_on(digest)
        if not known:
            if digest != EMPTY_BLOB:
                self._bucket.put(key_of(CHUNKS, digest), pack_chunk(blob))
            self._bucket.put(key_of(BLOBS, digest), b"")
        _count(not known, len(blob))

    def put_chunks(self, chunks: Sequence[memoryview]) -> list[Chunk]:
        """Stores pieces of a large blob."""
        self._check_usable()
        return [self._put_chunk(chunk) for chunk in chunks]

    def _put_chunk(self, contents: memoryview) -> Chunk:
        digest = blake3(contents).digest()
        if self._is_new(CHUNKS, digest):
            self._submit(lambda: self._store_chunk(digest, contents), len(contents))
        else:
            _count(False, len(contents))
        return Chunk(digest, len(contents))

    def _store_chunk(self, digest: Digest, contents: memoryview) -> None:
        key = key_of(CHUNKS, digest)
        known = self._service.is_fresh(key)
        if not known:
            self._bucket.put(key, pack_chunk(contents))
        _count(not known, len(contents))

    def put_list(self, digest: Digest, chunks: Sequence[Chunk]) -> None:
        """Stores the list of a blob, once its chunks, which were put before, are there."""
        self._put.add((BLOBS, digest))
        self._lists.append(_List(digest, chunks, self._submitted))
        self._submit_lists()

    def _submit_lists(self) -> None:
        while self._lists and self._lists[0].behind <= self._done:
            digest, chunks, _ = self._lists.popleft()
            packed = pack_list(chunks)
            self._submit(self._storing_list(digest, packed), len(packed))

    def _storing_list(self, digest: Digest, packed: bytes) -> Callable[[], None]:
        # Also if there is one: so it counts as new, and leads to the chunks that were just made to stay.
        return lambda: self._bucket.put(key_of(BLOBS, digest), packed)

    def _is_new(self, table: str, digest: Digest) -> bool:
        """Whether it was not put before; notes that it is."""
        if (table, digest) in self._put:
            return False
        if len(self._put) >= _MAX_KNOWN:
            self._put.clear()
        self._put.add((table, digest))
        return True

    # The queue.

    def _submit(self, task: Callable[[], None], size: int) -> None:
        most = 2 * self._bucket.settings.parallel
        while self._queued and (
            len(self._queued) >= most
            or self._queued_bytes + size > _MAX_QUEUED_BYTES
            or self._queued[0][0].done()
        ):
            self._finish_first()
        self._queued.append((self._bucket.calls.submit(_run, task), size))
        self._queued_bytes += size
        self._submitted += 1

    def _finish_first(self) -> None:
        future, size = self._queued.popleft()
        self._queued_bytes -= size
        with self._losing():
            future.result()
        self._done += 1

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """If the block raises, something that was put is lost."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def _drain(self) -> None:
        """Returns when everything put so far is there."""
        self._check_usable()
        while self._queued or self._lists:
            while self._queued:
                self._finish_first()
            self._submit_lists()

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidRequest("the blob batch is closed")
        if self._failure is not None:
            raise Unavailable(f"the blob batch has failed before: {self._failure}") from self._failure

    def open_write(self) -> BlobWriter:
        self._check_usable()
        return ObjectBlobWriter(self, owns_batch=False, average=self.average)

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        self._drain()
        return self._service.missing(digests)

    def commit(self) -> None:
        self._drain()

    def close(self) -> None:
        self._closed = True
        for future, _ in self._queued:
            future.cancel()
        self._queued.clear()
        self._lists.clear()
        self._put.clear()


def _run(task: Callable[[], None]) -> None:
    task()


def _count(new: bool, size: int) -> None:
    kind = "new" if new else "known"
    count(f"blobs_{kind}", 1)
    count(f"blob_bytes_{kind}", size)


class ObjectBlobWriter(ChunkingWriter[ObjectBlobBatch]):
    """Writes one blob of any length, chunk by chunk."""

    def _stored(self) -> Digest:
        if self._chunker is None and self._block_bytes <= self._average // 2:
            return self._batch.put_small(b"".join(self._rest()))
        self._end_chunk()
        digest = self._hasher.digest()
        self._batch.put_list(digest, self._chunks)
        return digest
