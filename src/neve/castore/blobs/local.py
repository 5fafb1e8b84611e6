"""Blobs in the embedded store.

Small blobs are records that share frames; a blob over ``WHOLE_FILE_LIMIT`` is cut into chunks, each
a record of its own, plus a record with the list of them. The tag says which of the three it is::

    CHUNK   a piece of some blob; readable by digest, but not listed
    BLOB    a whole small blob
    LIST    the chunk list of a large blob, sealed

A chunk that is put as a blob is stored again under the higher tag, so that it is listed.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from blake3 import blake3

from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter, Chunk, blob_not_found
from neve.castore.blobs.chunks import (
    BytesReader,
    ChunkedReader,
    Chunker,
    decode_chunk_list,
    encode_chunk_list,
)
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, check_digest, format_digest
from neve.errors import Corrupt, InvalidRequest
from neve.packstore.address import open_address
from neve.packstore.frames import FRAME_TARGET, Record
from neve.packstore.index import Location
from neve.packstore.store import PackStore, Table, seal, unseal
from neve.registry import Address
from neve.tree import WHOLE_FILE_LIMIT

CHUNK, BLOB, LIST = 1, 2, 3

_TABLE_ID = 1
_READ_WINDOW = 256
_READ_AHEAD_BYTES = 8 * 1024 * 1024
_MAX_QUEUED_FRAMES = 8
_WRITE_BLOCK = 1024 * 1024


def _proves(tag: int, key: bytes, data: bytes) -> bool:
    if tag != LIST:
        return b3_digest(data) == key
    try:
        unseal(_TABLE_ID, key, data)
    except Corrupt:
        return False
    return True


BLOBS = Table(_TABLE_ID, "blobs", _proves)


def _workers() -> int:
    return min(4, os.cpu_count() or 1)


class LocalBlobService(BlobService):
    """Blobs of one embedded store. Owns one use of ``store``."""

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._closed = False

    def has(self, digest: Digest) -> bool:
        return not self.missing([digest])

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        for digest in digests:
            check_digest(digest)
        return [d for d in self._store.missing(BLOBS, digests) if d != EMPTY_BLOB]

    def open_read(self, digest: Digest) -> BlobReader | None:
        if check_digest(digest) == EMPTY_BLOB:
            return BytesReader(b"")
        location = self._store.find(BLOBS, [digest]).get(digest)
        if location is None:
            return None
        if location.tag == LIST:
            return ChunkedReader(self._chunk_list(digest, location), self._fetch_chunk)
        return BytesReader(self._read_whole(digest, location))

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        if check_digest(digest) == EMPTY_BLOB:
            return []
        location = self._store.find(BLOBS, [digest]).get(digest)
        if location is None:
            return None
        if location.tag == LIST:
            return self._chunk_list(digest, location)
        return [Chunk(digest, location.length)]

    def _chunk_list(self, digest: Digest, location: Location) -> list[Chunk]:
        data = self._store.read_unproven(BLOBS, digest, location)
        return decode_chunk_list(unseal(_TABLE_ID, digest, data))

    def _read_whole(self, digest: Digest, location: Location) -> bytes:
        data = self._store.read_unproven(BLOBS, digest, location)
        if b3_digest(data) != digest:
            raise _corrupt(digest)
        return data

    def _fetch_chunk(self, digest: Digest) -> bytes:
        location = self._store.find(BLOBS, [digest]).get(digest)
        if location is None:
            raise blob_not_found(digest)
        return self._read_whole(digest, location)

    def read_many(self, digests: Iterable[Digest]) -> Iterator[bytes]:
        """Decompresses frames in a few threads, ahead of the caller, in the order asked for."""
        source = iter(digests)
        queue: deque[tuple[int, Future[list[bytes]] | list[bytes]]] = deque()
        queued = 0
        while True:
            while queued < _READ_AHEAD_BYTES and (window := list(islice(source, _READ_WINDOW))):
                runs = list(self._runs(window))
                alone = len(runs) == 1 and not queue
                for size, run in runs:
                    work = self._read_run(run) if alone else self._executor().submit(self._read_run, run)
                    queue.append((size, work))
                    queued += size
            if not queue:
                return
            size, work = queue.popleft()
            queued -= size
            yield from (work if isinstance(work, list) else work.result())

    def _runs(self, digests: Sequence[Digest]) -> Iterator[tuple[int, list[tuple[Digest, Location | None]]]]:
        """Splits ``digests`` into neighbours of one frame, each with the bytes that reading costs."""
        found = self._store.find(BLOBS, digests)
        run: list[tuple[Digest, Location | None]] = []
        place = cost = -1
        for digest in digests:
            location = found.get(digest)
            here = place if location is None else location.place
            if run and here != place:
                yield cost, run
                run = []
            run.append((digest, location))
            place = here
            cost = 0 if location is None else location.raw_len
        if run:
            yield cost, run

    def _read_run(self, run: list[tuple[Digest, Location | None]]) -> list[bytes]:
        result: list[bytes] = []
        for digest, location in run:
            if location is None:
                if digest != EMPTY_BLOB:
                    raise blob_not_found(check_digest(digest))
                result.append(b"")
            elif location.tag == LIST:
                result.append(ChunkedReader(self._chunk_list(digest, location), self._fetch_chunk).read())
            else:
                data = self._store.read_unproven(BLOBS, digest, location)
                if blake3(data).digest() != digest:
                    raise _corrupt(digest)
                result.append(data)
        return result

    def _executor(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_workers(), thread_name_prefix="neve-read")
            return self._pool

    def open_write(self) -> BlobWriter:
        return _Writer(LocalBlobBatch(self._store), owns_batch=True)

    def batch(self) -> BlobBatch:
        return LocalBlobBatch(self._store)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        result: list[Digest] = []
        while len(result) < limit and (page := self._store.page(BLOBS, after, limit)):
            after = page[-1][0]
            result.extend(digest for digest, location in page if location.tag != CHUNK)
        return result[:limit]

    def delete_many(self, digests: Sequence[Digest]) -> int:
        return self._store.delete_many(BLOBS, [check_digest(d) for d in digests])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()
        self._store.close()


class LocalBlobBatch(BlobBatch):
    """Stages blobs in frames; threads of its own compress and append them, a bounded number ahead."""

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._epoch = store.writer.epoch
        self._group: list[Record] = []
        self._group_bytes = 0
        self._known: set[Digest] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._queued: deque[Future[None]] = deque()

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        digests = [blake3(blob).digest() for blob in blobs]
        self._add(BLOB, digests, blobs)
        return digests

    def put_chunks(self, chunks: Sequence[bytes]) -> list[Chunk]:
        """Stores pieces of a large blob."""
        digests = [blake3(chunk).digest() for chunk in chunks]
        self._add(CHUNK, digests, chunks)
        return [Chunk(digest, len(chunk)) for digest, chunk in zip(digests, chunks, strict=True)]

    def put_list(self, digest: Digest, chunks: Sequence[Chunk]) -> None:
        """Stores the chunk list of a large blob; its chunks were put before."""
        if (found := self._store.locate(BLOBS, [digest]).get(digest)) is None or found.tag != LIST:
            data = seal(_TABLE_ID, digest, encode_chunk_list(chunks))
            self._queue([Record(LIST, digest, data)])

    def _add(self, tag: int, digests: Sequence[Digest], contents: Sequence[bytes]) -> None:
        stored = self._store.locate(BLOBS, digests)
        known = self._known
        for digest, data in zip(digests, contents, strict=True):
            if digest in known or not data:
                continue
            if (location := stored.get(digest)) is not None and location.tag >= tag:
                continue
            known.add(digest)
            size = len(data)
            if size >= FRAME_TARGET // 2:
                self._queue([Record(tag, digest, data)])
                continue
            if self._group_bytes + size > FRAME_TARGET:
                self._flush()
            self._group.append(Record(tag, digest, data))
            self._group_bytes += size

    def _flush(self) -> None:
        if self._group:
            self._queue(self._group)
            self._group, self._group_bytes = [], 0

    def _queue(self, records: list[Record]) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_workers(), thread_name_prefix="neve-pack")
        while len(self._queued) >= _MAX_QUEUED_FRAMES or (self._queued and self._queued[0].done()):
            self._queued.popleft().result()
        self._queued.append(self._threads.submit(self._stage, records))

    def _stage(self, records: list[Record]) -> None:
        self._store.stage(BLOBS, records)
        # From here on the writer knows them, and answers for this batch as for any other.
        for record in records:
            self._known.discard(record.key)

    def _drain(self) -> None:
        self._flush()
        while self._queued:
            self._queued.popleft().result()

    def open_write(self) -> BlobWriter:
        return _Writer(self, owns_batch=False)

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        found = self._store.locate(BLOBS, digests)
        return [d for d in digests if d not in found and d not in self._known and d != EMPTY_BLOB]

    def commit(self) -> None:
        self._drain()
        self._store.writer.commit(self._epoch)

    def close(self) -> None:
        self._group, self._group_bytes = [], 0
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        self._queued.clear()


class _Writer(BlobWriter):
    """Writes one blob of any length: whole if it stays small, else chunk by chunk."""

    def __init__(self, batch: LocalBlobBatch, *, owns_batch: bool) -> None:
        self._batch = batch
        self._owns_batch = owns_batch
        self._hasher = blake3()
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._chunker: Chunker | None = None
        self._chunks: list[Chunk] = []
        self._digest: Digest | None = None
        self._state = "open"

    def write(self, data: bytes) -> int:
        self._check_open()
        self._block.append(bytes(data))
        self._block_bytes += len(data)
        if self._block_bytes >= _WRITE_BLOCK:
            with _failing(self):
                self._cut()
        return len(data)

    def _check_open(self) -> None:
        if self._state == "failed":
            raise InvalidRequest("the blob writer was previously closed with an error")
        if self._state != "open":
            raise InvalidRequest(f"the blob writer is {self._state}")

    def _cut(self) -> None:
        if self._chunker is None:
            self._chunker = Chunker()
        data = b"".join(self._block)
        self._block, self._block_bytes = [], 0
        self._hasher.update(data)
        self._chunks += self._batch.put_chunks(self._chunker.feed(data))

    def close(self) -> Digest:
        if self._digest is not None:
            return self._digest
        self._check_open()
        with _failing(self):
            digest = self._finish()
            if self._owns_batch:
                self._batch.commit()
        self._digest, self._state = digest, "closed"
        if self._owns_batch:
            self._batch.close()
        return digest

    def _finish(self) -> Digest:
        if self._chunker is None and self._block_bytes <= WHOLE_FILE_LIMIT:
            return self._batch.put_many([b"".join(self._block)])[0]
        self._cut()
        assert self._chunker is not None
        self._chunks += self._batch.put_chunks(self._chunker.finish())
        digest = self._hasher.digest()
        self._batch.put_list(digest, self._chunks)
        return digest

    def abandon(self) -> None:
        if self._state == "open":
            self.give_up("abandoned")

    def give_up(self, state: str) -> None:
        self._state = state
        self._block, self._chunks, self._chunker = [], [], None
        if self._owns_batch:
            self._batch.close()


class _failing:  # noqa: N801 - reads as a statement
    """Marks a writer as failed if the block raises."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._writer.give_up("failed")


def _corrupt(digest: Digest) -> Corrupt:
    return Corrupt(f"the stored bytes of blob {format_digest(digest)} do not match its digest")


def open_local(address: Address) -> LocalBlobService:
    """``local:///folder``"""
    return LocalBlobService(open_address(address))
