"""Blobs in the embedded store: reading them. ``local_write`` tells what records they are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from blake3 import blake3

from neve.castore.ages import refuse_ages
from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter, Chunk, too_long
from neve.castore.blobs.bundle import Answer
from neve.castore.blobs.chunks import BytesReader, ChunkedReader, decode_chunk_list
from neve.castore.blobs.local_write import (
    BLOBS,
    CHUNK,
    LIST,
    LocalBlobBatch,
    LocalBlobWriter,
)
from neve.castore.blobs.pack_threads import PackThreads, worker_count
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, check_digest, format_digest
from neve.errors import Corrupt, NotFound
from neve.packstore.address import open_address
from neve.packstore.location import Location
from neve.packstore.pack import ZSTD
from neve.packstore.store import Near, PackStore, unseal
from neve.registry import Address
from neve.tree import WHOLE_FILE_LIMIT

_READ_WINDOW = 128
_READ_AHEAD_BYTES = 4 * 1024 * 1024
_FRAMES_A_TASK = 4
_ANSWER_BYTES = 1024 * 1024
_ANSWER_WINDOW = 1024
"""Blobs that are looked up together for answers: several times what shares a frame, so that most frames are
wanted as a whole. Nothing but their places is held."""


class _Window(NamedTuple):
    """Blobs that are read together, and the frames on their way for them."""

    digests: list[Digest]
    near: dict[Digest, Near]
    frames: list[tuple[list[Location], Future[list[bytes]]]]
    cost: int
    """Bytes of memory that the frames take."""


class LocalBlobService(BlobService):
    """Blobs of one embedded store. Owns one use of ``store``."""

    seals_chunk_lists = True

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._packing = PackThreads()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._closed = False

    @property
    def store(self) -> PackStore:
        """The embedded store, in which other tables may lie beside this one."""
        return self._store

    @property
    def looks_up_at_once(self) -> bool:
        return not self._store.is_swept

    def has(self, digest: Digest) -> bool:
        return not self.missing([digest])

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        for digest in digests:
            check_digest(digest)
        return [d for d in self._store.missing(BLOBS, digests) if d != EMPTY_BLOB]

    def missing_blobs(self, digests: Sequence[Digest]) -> list[Digest]:
        found = self._store.promise(BLOBS, [check_digest(digest) for digest in digests])
        listed = {digest for digest, location in found.items() if location.tag != CHUNK}
        return [digest for digest in digests if digest not in listed and digest != EMPTY_BLOB]

    def open_read(self, digest: Digest) -> BlobReader | None:
        if check_digest(digest) == EMPTY_BLOB:
            return BytesReader(b"")
        location = self._store.find(BLOBS, [digest]).get(digest)
        if location is None:
            return None
        try:
            if location.tag == LIST:
                return ChunkedReader(
                    self._chunk_list(digest, location),
                    self._fetch_chunk,
                    lambda chunk: self._executor().submit(self._fetch_chunk, chunk),
                )
            return BytesReader(self._read_whole(digest, location))
        except NotFound:
            return None

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        if check_digest(digest) == EMPTY_BLOB:
            return []
        location = self._store.promise(BLOBS, [digest], reading=True).get(digest)
        if location is None:
            return None
        if location.tag == LIST:
            return self._chunk_list(digest, location)
        return [Chunk(digest, location.length)]

    def stored_chunks(self, digest: Digest) -> list[Chunk]:
        location = self._store.find(BLOBS, [check_digest(digest)]).get(digest)
        try:
            return [] if location is None or location.tag != LIST else self._chunk_list(digest, location)
        except NotFound:
            return []

    def _chunk_list(self, digest: Digest, location: Location) -> list[Chunk]:
        try:
            data = self._store.read_unproven(BLOBS, digest, location)
            return decode_chunk_list(unseal(BLOBS.id, digest, data))
        except Corrupt as error:
            raise _corrupt(digest, f"are damaged: {error}") from error

    def _read_whole(self, digest: Digest, location: Location) -> bytes:
        try:
            data = self._store.read_unproven(BLOBS, digest, location)
        except Corrupt as error:
            raise _corrupt(digest, f"are damaged: {error}") from error
        if b3_digest(data) != digest:
            raise _corrupt(digest)
        return data

    def _fetch_chunk(self, digest: Digest) -> bytes:
        location = self._store.find(BLOBS, [digest]).get(digest)
        if location is None:
            raise Corrupt(f"chunk {format_digest(digest)} is missing, a blob in the store needs it")
        return self._read_whole(digest, location)

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        """Decompresses frames in threads, ahead of the caller, in the order asked for.

        The threads do nothing but read and decompress, a few long calls without the interpreter
        lock; proving the blobs is left to the caller's thread, because thousands of short calls that
        give up the lock in one thread and wait for it in another would make both of them slow.
        """
        source = iter(digests)
        queue: deque[_Window] = deque()
        queued = 0
        while True:
            while queued < _READ_AHEAD_BYTES and (part := list(islice(source, _READ_WINDOW))):
                if len(part) == 1 and not queue:
                    yield self.read(part[0], limit)
                    continue
                queue.append(self._window(part))
                queued += queue[-1].cost
            if not queue:
                return
            window = queue.popleft()
            queued -= window.cost
            yield from self._contents(window, limit)

    def _window(self, digests: list[Digest]) -> _Window:
        """Looks up where blobs lie and has their frames read, a few by each task."""
        near = self._store.find_near(
            BLOBS, [check_digest(digest) for digest in digests if digest != EMPTY_BLOB]
        )
        wanted = list({frame.place: frame for frame, tag, _, _ in near.values() if tag != LIST}.values())
        parts = [wanted[i : i + _FRAMES_A_TASK] for i in range(0, len(wanted), _FRAMES_A_TASK)]
        frames = [(part, self._executor().submit(self._read_frames, part)) for part in parts]
        return _Window(digests, near, frames, sum([frame.raw_len for frame in wanted]))

    def _read_frames(self, frames: list[Location]) -> list[bytes]:
        return [self._store.frame(frame) for frame in frames]

    def _contents(self, window: _Window, limit: int | None) -> Iterator[bytes]:
        """The blobs of a window, verified."""
        frames: dict[int, bytes] = {}
        for part, future in window.frames:
            try:
                frames.update(zip([frame.place for frame in part], future.result(), strict=True))
            except (NotFound, Corrupt):
                # The pack is gone because its records have moved, or one frame is damaged: below each
                # blob is looked up anew, and a damaged one is named.
                continue
        for digest in window.digests:
            found = window.near.get(digest)
            if found is None or found[1] == LIST or (frame := frames.get(found[0].place)) is None:
                yield b"" if digest == EMPTY_BLOB else self.read(digest, limit)
                continue
            _, _, start, length = found
            if limit is not None and length > limit:
                raise too_long(digest, length, limit)
            data = frame[start : start + length]
            if blake3(data).digest() != digest:
                raise _corrupt(digest)
            yield data

    def read_bundles(self, digests: Sequence[Digest], limit: int = WHOLE_FILE_LIMIT) -> Iterator[Answer]:
        """Frames of which at least half is wanted go as they are stored."""
        for start in range(0, len(digests), _ANSWER_WINDOW):
            yield from self._answers(start, digests[start : start + _ANSWER_WINDOW], limit)

    def _answers(self, first: int, digests: Sequence[Digest], limit: int) -> Iterator[Answer]:
        near = self._store.find_near(BLOBS, [check_digest(d) for d in digests if d != EMPTY_BLOB])
        answer = Answer()
        by_frame: dict[int, list[tuple[int, Near]]] = {}
        for place, digest in enumerate(digests, first):
            found = near.get(digest)
            if found is not None and (found[1] == LIST or found[3] > limit):
                answer.apart.append(place)
            elif found is not None:
                by_frame.setdefault(found[0].place, []).append((place, found))
            elif digest == EMPTY_BLOB:
                answer.add(place, b"")
            else:
                answer.absent.append(place)
        for wanted in by_frame.values():
            whole = self._frame_answer(wanted)
            if whole is not None:
                yield whole
                continue
            raw = self._frame_at_hand(wanted[0][1][0])
            for place, (_, _, start, length) in wanted:
                self._add_one(answer, place, digests[place - first], raw[start : start + length], limit)
                if answer.raw_size >= _ANSWER_BYTES:
                    yield answer
                    answer = Answer()
        yield answer

    def _frame_at_hand(self, frame: Location) -> bytes:
        """The decompressed frame; nothing if it is damaged, or its records have moved."""
        try:
            return self._store.frame(frame)
        except (NotFound, Corrupt):
            return b""

    def _add_one(self, answer: Answer, place: int, digest: Digest, data: bytes, limit: int) -> None:
        """Adds a blob that is ``data``, if that is proven; else what is found where it lies now."""
        try:
            answer.add(place, data if blake3(data).digest() == digest else self.read(digest, limit))
        except NotFound:
            answer.absent.append(place)
        except Corrupt:
            answer.apart.append(place)

    def _frame_answer(self, wanted: list[tuple[int, Near]]) -> Answer | None:
        """A frame as it is stored, if it is compressed, there, and mostly wanted."""
        frame = wanted[0][1][0]
        if frame.codec != ZSTD or 2 * sum(found[3] for _, found in wanted) < frame.raw_len:
            return None
        try:
            stored = self._store.stored(frame)
        except (NotFound, Corrupt):
            return None
        places, starts, sizes = zip(
            *((place, start, size) for place, (_, _, start, size) in wanted), strict=True
        )
        return Answer(stored, True, frame.raw_len, list(places), list(starts), list(sizes))

    def _executor(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="neve-read")
            return self._pool

    def open_write(self) -> BlobWriter:
        return LocalBlobWriter(LocalBlobBatch(self._store, self._packing), owns_batch=True)

    def batch(self) -> BlobBatch:
        return LocalBlobBatch(self._store, self._packing)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        result: list[Digest] = []
        while len(result) < limit and (page := self._store.page(BLOBS, after, limit)):
            after = page[-1][0]
            result.extend(digest for digest, location in page if location.tag != CHUNK)
        return result[:limit]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        return self._store.delete_many(BLOBS, [check_digest(d) for d in digests])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()
        self._store.close()


def _corrupt(digest: Digest, what: str = "do not match its digest") -> Corrupt:
    return Corrupt(f"the stored bytes of blob {format_digest(digest)} {what}")


def open_local(address: Address) -> LocalBlobService:
    """``local:///folder``"""
    return LocalBlobService(open_address(address))
