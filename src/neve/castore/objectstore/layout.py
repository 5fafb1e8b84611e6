"""The layout of object stores, which tvix and snix share: one bucket, any of the three. No I/O.

HH are the first two bytes of a digest as 4 characters of hex, all hex is lower case::

    chunks/b3/HH/<hex>  a chunk, as zstd
    blobs/b3/HH/<hex>   a StatBlobResponse that lists the chunks of a blob, not compressed; empty if the
                        blob is one chunk, which has the blob's own digest, and for the empty blob, which
                        has no chunk
    dirs/b3/HH/<hex>    a closure by the digest of its root: zstd of frames, each the length of a Directory,
                        4 bytes, big endian, and the Directory; root to leaves, breadth first

Whatever comes from a store is compared with the digest that it lies under, and bounded before that: zstd
frames may state no size and be several, but the last one must have come to its end.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence

import zstandard

from neve.castore.blobs.base import Chunk
from neve.castore.blobs.chunks import decode_chunk_list, encode_chunk_list
from neve.castore.closure import ClosureLimits, RootToLeaves
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directory import Directory
from neve.errors import Corrupt, InvalidRequest, LimitExceeded
from neve.nix.compression import decompressed

CHUNKS, BLOBS, DIRECTORIES = "chunks", "blobs", "dirs"
"""The tables."""

LENGTH_SIZE = 4
"""Bytes of the length before each Directory."""

MAX_LIST_BYTES = 64 * 1024 * 1024
"""Longest chunk list that is read: a blob of some 400 GiB in chunks of the usual size."""

_NAME = re.compile(r"(?:.*/)?([a-z]+)/b3/([0-9a-f]{4})/([0-9a-f]{64})", re.ASCII)

_FOLDER = re.compile(r"[0-9a-f]{4}", re.ASCII)


def folder(table: str) -> str:
    """What all keys of a table begin with."""
    return f"{table}/b3"


def is_folder(name: str) -> bool:
    """Whether a folder of a table may be called so."""
    return _FOLDER.fullmatch(name) is not None


def key_of(table: str, digest: Digest) -> str:
    """Where the object of a digest lies."""
    text = digest.hex()
    return f"{table}/b3/{text[:4]}/{text}"


def digest_in(table: str, key: str) -> Digest | None:
    """The digest of an object's key, or None if it is none of ours in that table."""
    found = _NAME.fullmatch(key)
    if found is None or found[1] != table or not found[3].startswith(found[2]):
        return None
    return bytes.fromhex(found[3])


# Chunks.


class _Compressors(threading.local):
    """One for each thread: they are not to be shared, and take some time to be made."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor()


_compressors = _Compressors()


def pack_chunk(contents: bytes | memoryview) -> bytes:
    """The object of a chunk."""
    return _compressors.compressor.compress(contents)


def packed_bound(size: int) -> int:
    """The most bytes that an object with ``size`` bytes of contents has, in any frames that make sense."""
    return size + size // 64 + 64 * 1024


def unpack_chunk(digest: Digest, packed: bytes, limit: int) -> bytes:
    """The contents of a chunk, proven. Raises ``Corrupt`` naming the digest, ``LimitExceeded`` instead of
    making more than ``limit`` bytes of it."""
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in decompressed([packed], "zstd"):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise LimitExceeded(
                    f"chunk {format_digest(digest)} has more than the {limit} bytes that are taken "
                    "(max_chunk_bytes)"
                )
    except InvalidRequest as error:
        raise Corrupt(f"the stored bytes of chunk {format_digest(digest)} are damaged: {error}") from error
    contents = b"".join(pieces)
    if b3_digest(contents) != digest:
        raise Corrupt(f"the stored bytes of chunk {format_digest(digest)} do not match its digest")
    return contents


# Chunk lists.


def pack_list(chunks: Sequence[Chunk]) -> bytes:
    """The object of a blob that consists of ``chunks``."""
    return encode_chunk_list(chunks) if len(chunks) > 1 else b""


def unpack_list(digest: Digest, packed: bytes, longest: int) -> list[Chunk]:
    """The chunks of a blob; none if it is a chunk itself, or empty.

    Raises ``Corrupt`` naming the digest, ``LimitExceeded`` if a chunk has more than ``longest`` bytes.
    """
    try:
        chunks = decode_chunk_list(packed)
    except InvalidRequest as error:
        raise Corrupt(f"the stored chunk list of blob {format_digest(digest)} is damaged: {error}") from error
    for chunk in chunks:
        if not chunk.size:
            raise Corrupt(f"the stored chunk list of blob {format_digest(digest)} has an empty chunk")
        if chunk.size > longest:
            raise LimitExceeded(
                f"blob {format_digest(digest)} has a chunk of {chunk.size} bytes, "
                f"over the limit of {longest} (max_chunk_bytes)"
            )
    return chunks


# Closures.


def pack_closure(encoded: Iterable[bytes]) -> Iterator[bytes]:
    """The object of a closure, in pieces; ``encoded`` are its Directories, root to leaves."""
    compressor = zstandard.ZstdCompressor().compressobj()
    for each in encoded:
        if piece := compressor.compress(len(each).to_bytes(LENGTH_SIZE, "big") + each):
            yield piece
    yield compressor.flush()


class _Frames:
    """Takes frames out of pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = bytearray()

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end."""
        while len(self._rest) < size and (piece := next(self._pieces, None)) is not None:
            self._rest += piece
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken


def unpack_closure(root: Digest, packed: Iterable[bytes], limits: ClosureLimits) -> Iterator[Directory]:
    """The Directories of a closure, proven, from the object in pieces.

    What has been yielded is right, also if an error follows: ``Corrupt`` naming the root, for what is
    damaged or no closure, ``LimitExceeded`` for what is over ``limits``.
    """
    closure = RootToLeaves(root, limits)
    frames = _Frames(decompressed(packed, "zstd"))
    try:
        while head := frames.take(LENGTH_SIZE):
            size = int.from_bytes(head, "big")
            limits.check_bytes(size)
            encoded = frames.take(size)
            if len(head) + len(encoded) < LENGTH_SIZE + size:
                raise InvalidRequest("it ends in the middle of a Directory")
            yield closure.add(encoded)
        closure.close()
    except InvalidRequest as error:
        raise Corrupt(f"the stored closure of Directory {format_digest(root)} is damaged: {error}") from error
