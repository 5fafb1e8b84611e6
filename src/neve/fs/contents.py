"""Contents of files: what of them is at hand, and what to fetch."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from neve.castore.blobs.base import BlobService, Chunk
from neve.castore.node import FileNode
from neve.fs.ahead import Streams
from neve.fs.caches import Cache
from neve.fs.loads import Held, Loads, NotAtHand, Unasked, from_held
from neve.fs.sources import BLOCK_BYTES, Block, Blocks, Chunks, ContentsCache, Layouts, Small
from neve.tree import WHOLE_FILE_LIMIT

CACHE_BYTES: Final = 64 * 1024 * 1024
"""Contents at hand: read ahead, or wanted by several. What a kernel has read it keeps itself."""

_TASK_BYTES = 1024 * 1024
"""About so much is fetched ahead by one thread, while another fetches what follows."""
_NEIGHBOURS_BYTES = 2 * 1024 * 1024
_MAX_PARTS = 64
"""Parts of an answer: a system call takes 1,024."""

Parts: TypeAlias = list[bytes | memoryview]
Piece: TypeAlias = Chunk | Block


class Contents:
    """Contents of all files. Thread-safe."""

    def __init__(self, blobs: BlobService) -> None:
        self._cache: ContentsCache = Cache(CACHE_BYTES)
        self._small = Small(blobs, self._cache)
        self._layouts = Layouts(blobs)
        self._chunks = Chunks(blobs, self._cache)
        self._blocks = Blocks(blobs, self._cache)
        self._sealed = blobs.seals_chunk_lists
        self._streams = Streams()

    # Small files.

    def small_at_hand(self, node: FileNode) -> bytes | None:
        """The contents of a file of at most ``WHOLE_FILE_LIMIT`` bytes, if they are at hand."""
        data = self._cache.get(node.digest)
        return data if data is not None and len(data) == node.size else None

    def small(self, node: FileNode, held: Held) -> bytes:
        """The same, if they were fetched. Raises ``NotAtHand`` for this one only."""
        data: bytes = from_held(self._small, node, held)
        return data

    def with_neighbours(
        self, node: FileNode, neighbours: Iterable[FileNode], unasked: Unasked | None
    ) -> NotAtHand:
        """What to raise for a file of which the neighbours are wanted soon."""
        along = self._new(neighbours, _NEIGHBOURS_BYTES - node.size)
        return NotAtHand(self._small, [node], along, unasked)

    def small_ahead(self, nodes: Iterable[FileNode], loads: Loads, unasked: Unasked | None) -> None:
        """Fetches files that are wanted soon."""
        loads.fetch_ahead(self._small, self._new(nodes, _NEIGHBOURS_BYTES), unasked)

    def several_ahead(self, nodes: Iterable[FileNode], loads: Loads) -> None:
        """Fetches those of some small files that are not at hand, a few by each thread."""
        group: list[FileNode] = []
        total = 0
        for node in nodes:
            if node.digest not in self._cache:
                group.append(node)
                total += node.size
            if total >= _NEIGHBOURS_BYTES:
                loads.fetch_ahead(self._small, group)
                group, total = [], 0
        if group:
            loads.fetch_ahead(self._small, group)

    def some_at_hand(self, nodes: Iterable[FileNode], most_bytes: int) -> list[tuple[FileNode, bytes]]:
        """Those of some small files that are at hand, with their contents: of up to so many bytes."""
        found: list[tuple[FileNode, bytes]] = []
        for node in nodes:
            data = self.small_at_hand(node)
            if data is not None:
                most_bytes -= len(data)
                if most_bytes < 0:
                    break
                found.append((node, data))
        return found

    def _new(self, nodes: Iterable[FileNode], most_bytes: int) -> list[FileNode]:
        """Those that are small and not at hand, and together not too long."""
        found: list[FileNode] = []
        for node in nodes:
            if node.size > WHOLE_FILE_LIMIT or not node.size or node.digest in self._cache:
                continue
            most_bytes -= node.size
            if most_bytes < 0:
                break
            found.append(node)
        return found

    # Large files.

    def large(self, node: FileNode, start: int, stop: int, held: Held, loads: Loads) -> Parts:
        """The bytes from ``start`` to before ``stop``, which the file has. Raises ``NotAtHand``."""
        chunks, ends = self._layout(node, held)
        parts: Parts = []
        missing: list[Piece] = []
        done: list[Piece] = []
        for piece, at, size in _pieces(node, chunks, ends, start, stop):
            data = self._cache.get(piece)
            if data is None:
                data = held.get((self._source(chunks), piece))
            if not isinstance(data, bytes):
                missing.append(piece)
                continue
            begin, end = max(start - at, 0), stop - at
            parts.append(data if not begin and end >= size else memoryview(data)[begin:end])
            if end >= size:
                done.append(piece)
        if not held:
            self._read_ahead(node, (chunks, ends), start, stop, loads)
        if missing:
            self._raise_missing(chunks, missing, held)
        if self._streams.is_in_order(node, stop):
            for piece in done:  # The kernel has it now, and that makes room which is warm.
                self._cache.discard(piece)
        return parts if len(parts) <= _MAX_PARTS else [b"".join(parts)]

    def _layout(self, node: FileNode, held: Held) -> tuple[Sequence[Chunk], Sequence[int]]:
        """Chunks and where they end; none if the file is read in blocks."""
        if not self._sealed:
            return (), ()
        known = self._layouts.known.get(node.digest)
        if known is not None and known.size == node.size:
            return known.chunks, known.ends
        layout = from_held(self._layouts, node, held)
        return layout.chunks, layout.ends

    def _source(self, chunks: Sequence[Chunk]) -> Chunks | Blocks:
        return self._chunks if chunks else self._blocks

    def _raise_missing(self, chunks: Sequence[Chunk], missing: list[Piece], held: Held) -> None:
        source = self._source(chunks)
        for piece in missing:
            if (source, piece) in held:
                from_held(source, piece, held)  # It raises what came instead.
        raise NotAtHand(source, missing)

    def _read_ahead(
        self,
        node: FileNode,
        layout: tuple[Sequence[Chunk], Sequence[int]],
        start: int,
        stop: int,
        loads: Loads,
    ) -> None:
        ahead = self._streams.read(node, start, stop, node.size)
        if ahead is None:
            return
        group: list[Piece] = []
        total = 0
        for piece, _, size in _pieces(node, *layout, *ahead):
            if piece not in self._cache:
                group.append(piece)
                total += size
            if total >= _TASK_BYTES:
                loads.fetch_ahead(self._source(layout[0]), group)
                group, total = [], 0
        if group:
            loads.fetch_ahead(self._source(layout[0]), group)

    def close(self) -> None:
        """Lets go of open blobs."""
        self._blocks.close()


def _pieces(
    node: FileNode, chunks: Sequence[Chunk], ends: Sequence[int], start: int, stop: int
) -> Iterator[tuple[Piece, int, int]]:
    """The pieces that have the bytes from ``start`` to before ``stop``: where each begins, and its size."""
    if not chunks:
        for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            at = number * BLOCK_BYTES
            yield Block(node, number), at, min(BLOCK_BYTES, node.size - at)
        return
    for number in range(bisect.bisect_right(ends, start), len(chunks)):
        chunk = chunks[number]
        at = ends[number] - chunk.size
        if at >= stop:
            return
        if chunk.size:
            yield chunk, at, chunk.size
