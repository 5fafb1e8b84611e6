"""Blobs in the embedded store: reading them. ``local_write`` tells what records they are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from blake3 import blake3

from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter, Chunk, blob_not_found
from neve.castore.blobs.chunks import BytesReader, ChunkedReader, decode_chunk_list
from neve.castore.blobs.local_write import BLOBS, CHUNK, LIST, LocalBlobBatch, LocalBlobWriter, worker_count
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, check_digest, format_digest
from neve.errors import Corrupt, NotFound
from neve.packstore.address import open_address
from neve.packstore.index import Location
from neve.packstore.store import PackStore, unseal
from neve.registry import Address

_READ_WINDOW = 256
_READ_AHEAD_BYTES = 8 * 1024 * 1024


class _Run(NamedTuple):
    """Blobs that are read together because they lie in one frame."""

    frame: Location | None
    wanted: list[tuple[Digest, tuple[int, int] | None]]
    """Start and length in the frame; None: in chunks, empty, or not there."""

    @property
    def cost(self) -> int:
        """Bytes of memory that reading takes, about."""
        return 0 if self.frame is None else self.frame.raw_len


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
        return decode_chunk_list(unseal(BLOBS.id, digest, data))

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
        """Decompresses frames in a few threads, ahead of the caller, in the order asked for.

        The threads do nothing but read and decompress, a few long calls without the interpreter
        lock; proving the blobs is left to the caller's thread, because thousands of short calls that
        give up the lock in one thread and wait for it in another would make both of them slow.
        """
        source = iter(digests)
        queue: deque[tuple[_Run, Future[bytes] | None]] = deque()
        queued = 0
        while True:
            while queued < _READ_AHEAD_BYTES and (window := list(islice(source, _READ_WINDOW))):
                runs = list(self._runs(window))
                alone = len(runs) == 1 and not queue
                for run in runs:
                    frame = run.frame
                    future = (
                        None if alone or frame is None else self._executor().submit(self._store.frame, frame)
                    )
                    queue.append((run, future))
                    queued += run.cost
            if not queue:
                return
            run, future = queue.popleft()
            queued -= run.cost
            yield from self._read_run(run, future)

    def _runs(self, digests: Sequence[Digest]) -> Iterator[_Run]:
        """Splits ``digests`` into neighbours of one frame."""
        wanted = [digest for digest in digests if digest != EMPTY_BLOB]
        if len(wanted) > 1:
            found = self._store.find_near(BLOBS, wanted)
        else:
            located = self._store.find(BLOBS, wanted)
            found = {d: (where, where.tag, where.start, where.length) for d, where in located.items()}
        run: _Run | None = None
        for digest in digests:
            near = found.get(digest)
            if near is None:
                if run is None:
                    run = _Run(None, [])
                run.wanted.append((digest, None))
                continue
            frame, tag, start, length = near
            if run is None or run.frame is None or run.frame.place != frame.place:
                if run is not None:
                    yield run
                run = _Run(frame, [])
            run.wanted.append((digest, None if tag == LIST else (start, length)))
        if run is not None:
            yield run

    def _read_run(self, run: _Run, future: Future[bytes] | None) -> Iterator[bytes]:
        """The blobs of one frame, verified."""
        frame = b""
        try:
            if run.frame is not None:
                frame = self._store.frame(run.frame) if future is None else future.result()
        except NotFound:
            # The pack is gone because its records have moved: look up each anew.
            yield from (self.read(check_digest(digest)) for digest, _ in run.wanted)
            return
        for digest, place in run.wanted:
            if place is None:
                yield b"" if digest == EMPTY_BLOB else self.read(check_digest(digest))
                continue
            start, length = place
            data = frame[start : start + length]
            if blake3(data).digest() != digest:
                raise _corrupt(digest)
            yield data

    def _executor(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="neve-read")
            return self._pool

    def open_write(self) -> BlobWriter:
        return LocalBlobWriter(LocalBlobBatch(self._store), owns_batch=True)

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


def _corrupt(digest: Digest) -> Corrupt:
    return Corrupt(f"the stored bytes of blob {format_digest(digest)} do not match its digest")


def open_local(address: Address) -> LocalBlobService:
    """``local:///folder``"""
    return LocalBlobService(open_address(address))
