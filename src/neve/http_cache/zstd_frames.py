"""A NAR as zstd frames, one behind the other, which together are one valid zstd stream (RFC 8878, 3.1).

The store keeps the chunks of large files as zstd frames: each of those goes as it is stored, once it has
been unpacked and hashed, for no wrong byte may leave. All else is compressed, about a megabyte at a
time, by threads that work for all answers together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from blake3 import blake3

from neve.castore.blobs.base import BlobService, Chunk, blob_not_found
from neve.castore.blobs.bundle import Answer, InvalidBundle
from neve.castore.blobs.pack_threads import worker_count
from neve.castore.digest import format_digest
from neve.castore.node import FileNode
from neve.castore.traverse import large_file, wrong_length
from neve.errors import Corrupt, LimitExceeded
from neve.packstore.frames import compress
from neve.telemetry import carried
from neve.tree import WHOLE_FILE_LIMIT

_CHUNKS_AT_ONCE = 4
"""About a megabyte."""

_AHEAD = 3
"""Megabytes of one answer that are being compressed."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_ONE_SEGMENT_SIZE_4 = b"\xa0"
"""The descriptor of a frame whose window is all of it and whose size follows in 4 bytes."""
_BLOCK_BYTES = 128 * 1024

Frames = tuple[int, bytes]
"""Bytes of the NAR, and frames that hold them."""


def compressed(data: bytes | memoryview) -> bytes:
    """``data`` (not empty, below 4 GiB) as one frame; of blocks as they are, if it gets no smaller."""
    packed = compress(data)
    return stored_frame(data) if packed is None else packed


def stored_frame(data: bytes | memoryview) -> bytes:
    """``data`` (not empty, below 4 GiB) as a frame without any compression."""
    pieces: list[bytes | memoryview] = [_MAGIC, _ONE_SEGMENT_SIZE_4, len(data).to_bytes(4, "little")]
    view = memoryview(data)
    for start in range(0, len(data), _BLOCK_BYTES):
        block = view[start : start + _BLOCK_BYTES]
        last = start + _BLOCK_BYTES >= len(data)
        pieces += ((len(block) << 3 | last).to_bytes(3, "little"), block)
    return b"".join(pieces)


class ZstdFrames:
    """Makes frames. Thread-safe; to be closed when nobody makes any more."""

    def __init__(self, blobs: BlobService) -> None:
        self._blobs = blobs
        self._pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="neve-zstd")

    def of(self, segments: Iterator[list[bytes] | FileNode]) -> Iterator[Frames]:
        """The frames of what ``NarRenderer.segments`` gives. Raises as that does, and like
        ``large_file``."""
        pending: deque[Future[Frames]] = deque()
        try:
            for future in self._futures(segments):
                pending.append(future)
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _futures(self, segments: Iterator[list[bytes] | FileNode]) -> Iterator[Future[Frames]]:
        for segment in segments:
            if not isinstance(segment, FileNode):
                yield self._pool.submit(_compress, segment)
            elif self._blobs.seals_chunk_lists:
                chunks = self._chunks(segment)
                for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
                    yield self._pool.submit(carried(self._stored), chunks[start : start + _CHUNKS_AT_ONCE])
            else:
                # Only who reads it in order has it proven.
                for piece in large_file(self._blobs, segment):
                    yield self._pool.submit(_compress, [piece])

    def _chunks(self, node: FileNode) -> list[Chunk]:
        chunks = self._blobs.chunks(node.digest)
        if chunks is None:
            raise blob_not_found(node.digest)
        if (size := sum(chunk.size for chunk in chunks)) != node.size:
            raise wrong_length(node, size)
        if any(not 0 < chunk.size <= WHOLE_FILE_LIMIT for chunk in chunks):
            raise Corrupt(f"blob {format_digest(node.digest)} has a chunk of an impossible size")
        return chunks

    def _stored(self, chunks: Sequence[Chunk]) -> Frames:
        frames: list[bytes | None] = [None] * len(chunks)
        for answer in self._blobs.read_bundles([chunk.digest for chunk in chunks]):
            for place, frame in _proven(answer, chunks):
                frames[place] = frame
        for place, chunk in enumerate(chunks):
            if frames[place] is None:
                frames[place] = self._read(chunk)
        return sum(chunk.size for chunk in chunks), b"".join(frame for frame in frames if frame)

    def _read(self, chunk: Chunk) -> bytes:
        """The frame of a chunk that did not come proven."""
        try:
            data = self._blobs.read(chunk.digest, chunk.size)
        except LimitExceeded as error:
            raise _wrong_chunk(chunk) from error
        if len(data) != chunk.size:
            raise _wrong_chunk(chunk)
        return compressed(data)

    def close(self) -> None:
        """Waits for what is being compressed."""
        self._pool.shutdown(cancel_futures=True)


def _compress(pieces: list[bytes]) -> Frames:
    data = b"".join(pieces)
    return len(data), compressed(data)


def _wrong_chunk(chunk: Chunk) -> Corrupt:
    return Corrupt(f"chunk {format_digest(chunk.digest)} has not the {chunk.size} bytes that its list says")


def _proven(answer: Answer, chunks: Sequence[Chunk]) -> Iterator[tuple[int, bytes]]:
    """Frames of those chunks in an answer that match their digests; the others are left out."""
    if not answer.places:
        return
    try:
        contents = memoryview(answer.contents())
    except (InvalidBundle, LimitExceeded):
        return
    for place, start, size in zip(answer.places, answer.starts, answer.sizes, strict=True):
        chunk = chunks[place]
        data = contents[start : start + size]
        if len(data) != chunk.size or blake3(data).digest() != chunk.digest:
            continue
        if not answer.zstd:
            yield place, stored_frame(data)  # It was found to get no smaller.
        elif size == answer.raw_size:
            yield place, bytes(answer.data)
        else:
            yield place, compressed(data)
