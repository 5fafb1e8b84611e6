"""Where contents of files are fetched from; what comes is verified, and kept in a cache.

A small file is fetched whole, with others. A large one is fetched in pieces: its chunks, where the service
guarantees that they make up the blob, so that several threads can fetch them; else blocks that a reader
gives, which verifies the whole when it is read in order.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from neve.castore.blobs.base import BlobReader, BlobService, Chunk, blob_not_found
from neve.castore.digest import Digest
from neve.castore.node import FileNode
from neve.castore.traverse import wrong_length
from neve.fs.caches import Cache
from neve.tree import WHOLE_FILE_LIMIT

_LAYOUTS_CHUNKS = 100_000
"""Chunks of which it is remembered where they lie in their file."""
_MAX_CHUNK_BYTES = 4 * 1024 * 1024
"""Files with a longer chunk are read in blocks: nobody wants a small part of it and gets all."""
BLOCK_BYTES = 1024 * 1024
_OPEN_READERS = 16
_OVERHEAD_BYTES = 200

ContentsCache: TypeAlias = Cache[Hashable, bytes]
"""By digest of a small file, by chunk, or by block."""


class Block(NamedTuple):
    """A piece of a file that is read by a reader."""

    node: FileNode
    number: int


class Layout(NamedTuple):
    """Where the chunks of a file end."""

    size: int
    """Of the file, in bytes."""
    chunks: Sequence[Chunk]
    """None of them if the file is to be read in blocks."""
    ends: Sequence[int]


class Small:
    """Source of the contents of small files, by node."""

    def __init__(self, blobs: BlobService, cache: ContentsCache) -> None:
        self._blobs = blobs
        self._cache = cache

    def fetch(self, wanted: Sequence[FileNode]) -> Iterator[tuple[FileNode, bytes]]:
        digests = [node.digest for node in wanted]
        for node, data in zip(wanted, self._blobs.read_many(digests, WHOLE_FILE_LIMIT), strict=True):
            if len(data) != node.size:
                raise wrong_length(node, len(data))
            self._cache.put(node.digest, data, len(data) + _OVERHEAD_BYTES)
            yield node, data


class Layouts:
    """Source of layouts, by node."""

    def __init__(self, blobs: BlobService) -> None:
        self._blobs = blobs
        self.known: Cache[Digest, Layout] = Cache(_LAYOUTS_CHUNKS)

    def fetch(self, wanted: Sequence[FileNode]) -> Iterator[tuple[FileNode, Layout]]:
        for node in wanted:
            chunks = self._blobs.chunks(node.digest)
            if chunks is None:
                raise blob_not_found(node.digest)
            ends = list(accumulate(chunk.size for chunk in chunks))
            if (ends[-1] if ends else 0) != node.size:
                raise wrong_length(node, ends[-1] if ends else 0)
            if any(chunk.size > _MAX_CHUNK_BYTES for chunk in chunks):
                chunks, ends = [], []
            layout = Layout(node.size, chunks, ends)
            self.known.put(node.digest, layout, len(chunks) + 1)
            yield node, layout


class Chunks:
    """Source of chunks."""

    def __init__(self, blobs: BlobService, cache: ContentsCache) -> None:
        self._blobs = blobs
        self._cache = cache

    def fetch(self, wanted: Sequence[Chunk]) -> Iterator[tuple[Chunk, bytes]]:
        for chunk in wanted:
            data = self._blobs.read(chunk.digest, _MAX_CHUNK_BYTES)
            if len(data) != chunk.size:
                raise wrong_length(FileNode(chunk.digest, chunk.size), len(data))
            self._cache.put(chunk, data, len(data) + _OVERHEAD_BYTES)
            yield chunk, data


class Blocks:
    """Source of blocks. A bounded number of readers stays open, each for one thread at a time."""

    def __init__(self, blobs: BlobService, cache: ContentsCache) -> None:
        self._blobs = blobs
        self._cache = cache
        self._lock = threading.Lock()
        self._open: OrderedDict[Digest, _Reading] = OrderedDict()

    def fetch(self, wanted: Sequence[Block]) -> Iterator[tuple[Block, bytes]]:
        for block in wanted:
            data = self._reading(block.node).block(block.number)
            self._cache.put(block, data, len(data) + _OVERHEAD_BYTES)
            yield block, data

    def _reading(self, node: FileNode) -> _Reading:
        gone: list[_Reading] = []
        with self._lock:
            reading = self._open.get(node.digest)
            if reading is None or reading.node != node:
                reading = self._open[node.digest] = _Reading(self._blobs, node)
            self._open.move_to_end(node.digest)
            while len(self._open) > _OPEN_READERS:
                gone.append(self._open.popitem(last=False)[1])
        for other in gone:
            other.close()
        return reading

    def close(self) -> None:
        with self._lock:
            readings = list(self._open.values())
            self._open.clear()
        for reading in readings:
            reading.close()


class _Reading:
    """One file that is being read: opened when it is needed, and again after a failure."""

    def __init__(self, blobs: BlobService, node: FileNode) -> None:
        self.node = node
        self._blobs = blobs
        self._reader: BlobReader | None = None
        self._lock = threading.Lock()

    def block(self, number: int) -> bytes:
        with self._lock:
            try:
                return self._read(number)
            except BaseException:
                self._close()
                raise

    def _read(self, number: int) -> bytes:
        if self._reader is None:
            self._reader = self._blobs.open_read(self.node.digest)
            if self._reader is None:
                raise blob_not_found(self.node.digest)
            if self._reader.size != self.node.size:
                raise wrong_length(self.node, self._reader.size)
        start = number * BLOCK_BYTES
        wanted = min(BLOCK_BYTES, self.node.size - start)
        if self._reader.tell() != start:
            self._reader.seek(start)
        data = bytearray()
        while len(data) < wanted:
            piece = self._reader.read_piece(wanted - len(data))
            if not piece:
                raise wrong_length(self.node, start + len(data))
            if len(piece) == wanted:
                return piece
            data += piece
        return bytes(data)

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            with contextlib.suppress(Exception):  # Whatever is the matter with it was told already.
                reader.close()

    def close(self) -> None:
        """Closes the reader, but for one that is in use: that may take for ever."""
        if self._lock.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._lock.release()
