"""Writing blobs to the embedded store: what records they become, batches, writers.

Small blobs are records that share frames; a blob over ``WHOLE_FILE_LIMIT`` is cut into chunks, each
a record of its own, plus a record with the list of them. The tag says which of the three it is::

    CHUNK   a piece of some blob; readable by digest, but not listed
    BLOB    a whole small blob
    LIST    the chunk list of a large blob, sealed

A chunk that is put as a blob is stored again under the higher tag, so that it is listed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait

from blake3 import blake3

from neve.castore.blobs.base import BlobBatch, BlobWriter, Chunk
from neve.castore.blobs.bundle import Bundle
from neve.castore.blobs.chunks import encode_chunk_list
from neve.castore.blobs.pack_threads import PackThreads
from neve.castore.blobs.writing import ChunkingWriter
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, check_digest
from neve.errors import Corrupt, InvalidRequest, Unavailable
from neve.packstore.frames import FRAME_TARGET, MAX_FRAME_RECORDS, Packed, Record, is_compressible
from neve.packstore.pack import RAW, ZSTD
from neve.packstore.store import PackStore, Table, seal, unseal
from neve.telemetry import count, is_counting, stage
from neve.tree import WHOLE_FILE_LIMIT

CHUNK, BLOB, LIST = 1, 2, 3

_TABLE_ID = 1
_MAX_GROUP = 1024
_MAX_QUEUED_GROUPS = 6
_MIN_MEAN_CHUNK = 32 * 1024


def _proves(tag: int, key: bytes, data: bytes | memoryview) -> bool:
    if tag != LIST:
        return b3_digest(data) == key
    try:
        unseal(_TABLE_ID, key, bytes(data))
    except Corrupt:
        return False
    return True


BLOBS = Table(_TABLE_ID, "blobs", _proves, collected=True)


class LocalBlobBatch(BlobBatch):
    """Stages blobs in frames. The service's threads look up, compress and append, a bounded number ahead.

    Only hashing is done by the caller's thread: it needs the digests at once. Chunk lists are staged
    when all chunks are: a commit by anybody takes what is staged at its time, and a list without its
    chunks must never become visible.
    """

    def __init__(self, store: PackStore, threads: PackThreads) -> None:
        self._store = store
        self._threads = threads
        self._session = store.writer.begin()
        self._group: list[Record] = []
        self._group_bytes = 0
        self._lists: list[Record] = []
        self._list_bytes = 0
        self._busy = False
        self._queued: deque[Future[None]] = deque()
        self._failure: BaseException | None = None
        self._closed = False
        # What the threads share: new small blobs until they fill a frame, and the tags of what is
        # being staged.
        self._lock = threading.Lock()
        self._small: list[Record] = []
        self._small_bytes = 0
        self._staging: dict[Digest, int] = {}
        self._packing = stage("packs.pack")

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        if max(map(len, blobs), default=0) > WHOLE_FILE_LIMIT:
            return [self._put_any(blob) for blob in blobs]
        digests = [blake3(blob).digest() for blob in blobs]
        self._add([Record(BLOB, digest, blob) for digest, blob in zip(digests, blobs, strict=True) if blob])
        return digests

    def _put_any(self, blob: bytes) -> Digest:
        with self.open_write() as writer:
            writer.write(blob)
            return writer.close()

    def put_bundle(self, bundle: Bundle) -> None:
        self._put_packed(BLOB, bundle, bundle.contents())

    def put_chunk_bundle(self, bundle: Bundle, contents: Sequence[memoryview]) -> list[Chunk]:
        """Stores pieces of a large blob that come packed, and were verified to be ``contents``."""
        self._put_packed(CHUNK, bundle, contents)
        return [Chunk(*chunk) for chunk in zip(bundle.digests, bundle.sizes, strict=True)]

    def _put_packed(self, tag: int, bundle: Bundle, contents: Sequence[memoryview]) -> None:
        """Keeps a bundle as it is, if it makes a good frame and is all new."""
        self._check_usable()
        records = [Record(tag, *blob) for blob in zip(bundle.digests, contents, strict=True) if blob[1]]
        size = bundle.raw_size
        good = len(records) == len(bundle.digests) <= MAX_FRAME_RECORDS
        good = good and FRAME_TARGET // 2 <= size <= WHOLE_FILE_LIMIT
        if bundle.zstd:
            good = good and len(bundle.data) < size
        else:
            # For somebody who does not compress at all it is done here.
            good = good and len(records) == 1 and not is_compressible(records[0].data)
        if not good or not self._claim(records):
            self._add(records)
            return
        with self._losing():
            packed = Packed(bundle.data, size, ZSTD if bundle.zstd else RAW)
            self._store.stage_packed(BLOBS, records, packed, self._session)
            self._unclaim(records)
        _count(records, ())

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """If the block raises, something that was put is lost."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def _claim(self, records: Sequence[Record]) -> bool:
        """Marks ``records`` as being staged, unless one of them is or was, or comes twice."""
        keys = [record.key for record in records]
        if len(set(keys)) < len(keys) or self._store.locate(BLOBS, keys, self._session):
            return False
        with self._lock:
            if any(key in self._staging for key in keys):
                return False
            self._staging.update((record.key, record.tag) for record in records)
        return True

    def put_chunks(self, chunks: Sequence[memoryview]) -> list[Chunk]:
        """Stores pieces of a large blob."""
        records = [Record(CHUNK, blake3(chunk).digest(), chunk) for chunk in chunks]
        self._add(records)
        return [Chunk(record.key, len(record.data)) for record in records]

    def put_list(self, digest: Digest, chunks: Sequence[Chunk]) -> None:
        """Stores the chunk list of a large blob; its chunks were put before."""
        self._check_usable()
        record = Record(LIST, digest, seal(_TABLE_ID, digest, encode_chunk_list(chunks)))
        self._lists.append(record)
        self._list_bytes += len(record.data)
        if self._list_bytes >= FRAME_TARGET:
            self._drain()

    def _add(self, records: Sequence[Record]) -> None:
        self._check_usable()
        self._group.extend(records)
        self._group_bytes += sum([len(record.data) for record in records])
        if self._group_bytes >= FRAME_TARGET or len(self._group) >= _MAX_GROUP:
            self._submit()

    def _check_usable(self) -> None:
        """Refuses to go on after a failure: something of what was put is lost, ``commit`` must not work."""
        if self._closed:
            raise InvalidRequest("the blob batch is closed")
        if self._failure is not None:
            raise Unavailable(f"the blob batch has failed before: {self._failure}") from self._failure

    def _submit(self) -> None:
        if not self._busy:
            self._threads.enter()
            self._busy = True
        while len(self._queued) >= _MAX_QUEUED_GROUPS or (self._queued and self._queued[0].done()):
            self._finish_first()
        group, self._group, self._group_bytes = self._group, [], 0
        with self._losing():
            self._queued.append(self._threads.submit(self._pack, group))

    def _finish_first(self) -> None:
        with self._losing():
            self._queued.popleft().result()

    def _pack(self, records: list[Record]) -> None:
        with self._packing:
            self._process(records)

    def _process(self, records: list[Record]) -> None:
        """Stages what is new of ``records``; a small blob only once a frame is full."""
        if not records:
            return
        stored = self._store.locate(BLOBS, [record.key for record in records], self._session)
        full: list[list[Record]] = []
        known: list[Record] = []
        with self._lock:
            for record in records:
                found = stored.get(record.key)
                if found is not None and found.tag >= record.tag:
                    known.append(record)
                    continue
                if self._staging.get(record.key, 0) >= record.tag:
                    known.append(record)
                    continue
                self._staging[record.key] = record.tag
                size = len(record.data)
                if size >= FRAME_TARGET // 2:
                    full.append([record])
                    continue
                if self._small_bytes + size > FRAME_TARGET:
                    full.append(self._take_small())
                self._small.append(record)
                self._small_bytes += size
        for group in full:
            self._stage(group)
        _count(records, known)

    def _take_small(self) -> list[Record]:
        taken, self._small, self._small_bytes = self._small, [], 0
        return taken

    def _stage(self, records: list[Record]) -> None:
        self._store.stage(BLOBS, records, self._session)
        self._unclaim(records)

    def _unclaim(self, records: Sequence[Record]) -> None:
        with self._lock:
            # From here on the writer knows them, and answers for this batch as for any other.
            for record in records:
                if self._staging.get(record.key) == record.tag:
                    del self._staging[record.key]

    def _drain(self) -> None:
        """Stages everything put so far."""
        self._check_usable()
        if self._group and self._busy:
            self._submit()
        while self._queued:
            self._finish_first()
        with self._losing():
            group, self._group, self._group_bytes = self._group, [], 0
            self._process(group)
            self._stage(self._take_small())
            lists, self._lists, self._list_bytes = self._lists, [], 0
            self._process(lists)
            self._stage(self._take_small())

    def open_write(self) -> BlobWriter:
        self._check_usable()
        return LocalBlobWriter(self, owns_batch=False)

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        self._drain()
        found = self._store.locate(BLOBS, [check_digest(digest) for digest in digests], self._session)
        if is_counting():
            known = [location for location in found.values() if location.tag != LIST]
            count("blobs_known", len(known))
            count("blob_bytes_known", sum(location.length for location in known))
        return [d for d in digests if d not in found and d != EMPTY_BLOB]

    def commit(self) -> None:
        self._drain()
        with self._losing():
            self._store.writer.commit(self._session)

    def close(self) -> None:
        self._closed = True
        wait([future for future in self._queued if not future.cancel()])
        if self._busy:
            self._busy = False
            self._threads.leave()
        self._group, self._lists, self._small = [], [], []
        self._queued.clear()
        self._staging.clear()
        self._store.writer.end(self._session)
        self._packing.end()


def _count(put: Sequence[Record], known: Sequence[Record]) -> None:
    """Tells how much of what was put is new: of contents, not of lists."""
    if not is_counting() or any(record.tag == LIST for record in put):
        return
    size, known_size = (sum(len(record.data) for record in records) for records in (put, known))
    count("blobs_new", len(put) - len(known))
    count("blobs_known", len(known))
    count("blob_bytes_new", size - known_size)
    count("blob_bytes_known", known_size)


class LocalBlobWriter(ChunkingWriter[LocalBlobBatch]):
    """Writes one blob of any length: whole if it stays small, else chunk by chunk."""

    def write_bundle(self, chunks: Bundle) -> None:
        self._check_open()
        with self._failing():
            if not all(0 < size <= WHOLE_FILE_LIMIT for size in chunks.sizes):
                raise InvalidRequest(f"a chunk must have 1 to {WHOLE_FILE_LIMIT} bytes")
            contents = chunks.contents()
            self._end_chunk()
            for piece in contents:
                self._hasher.update(piece)
            self._chunks += self._batch.put_chunk_bundle(chunks, contents)
            self._check_chunks()

    def _check_chunks(self) -> None:
        """Refuses what somebody else has cut too finely: the list must stay short beside the contents."""
        size = sum(chunk.size for chunk in self._chunks) if len(self._chunks) % 64 == 0 else None
        if size is not None and size < len(self._chunks) * _MIN_MEAN_CHUNK:
            raise InvalidRequest(f"chunks of {size // len(self._chunks)} bytes on average are too small")

    def _stored(self) -> Digest:
        if self._chunker is None and not self._chunks and self._block_bytes <= WHOLE_FILE_LIMIT:
            return self._batch.put_many([b"".join(self._rest())])[0]
        self._end_chunk()
        digest = self._hasher.digest()
        if sum(chunk.size for chunk in self._chunks) <= WHOLE_FILE_LIMIT:
            # Its list would stand in the way of the whole blob, or of its only chunk: they share the key.
            raise InvalidRequest(f"a blob of at most {WHOLE_FILE_LIMIT} bytes is to be sent whole")
        self._batch.put_list(digest, self._chunks)
        return digest
