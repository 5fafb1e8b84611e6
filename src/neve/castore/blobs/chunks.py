"""Large blobs as chunks: where to cut, how the list is stored, and reading over it.

Cut points are those of FastCDC v2020 with normalization level 1, average 256 KiB, which tvix and
snix use too: equal files give equal chunks everywhere, so chunk lists and object stores are shared.
"""

from __future__ import annotations

import bisect
import io
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import TYPE_CHECKING

from neve.castore.blobs.base import BlobReader, Chunk
from neve.castore.digest import Digest, check_digest, format_digest
from neve.errors import Corrupt, InvalidRequest

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

AVERAGE_CHUNK = 256 * 1024

_CHUNKS_AHEAD = 2


class Chunker:
    """Cuts a stream of bytes: ``feed`` gives the chunks that are certain, ``finish`` the rest.

    Chunks are views into blocks of what was fed, so that nothing is copied twice.
    """

    def __init__(self, average: int = AVERAGE_CHUNK) -> None:
        from pyfastcdc import FastCDC

        self._max = average * 2
        self._fastcdc: FastCDC = FastCDC(
            average, min_size=average // 2, max_size=average * 2, normalized_chunking=1
        )
        self._rest = memoryview(b"")

    def feed(self, pieces: Sequence[bytes]) -> list[memoryview]:
        """Takes the next pieces (about a megabyte in all is good)."""
        return self._cut(memoryview(b"".join([self._rest, *pieces])), final=False)

    def finish(self) -> list[memoryview]:
        return self._cut(self._rest, final=True)

    def _cut(self, data: memoryview, *, final: bool) -> list[memoryview]:
        chunks: list[memoryview] = []
        end = 0
        if data:
            for chunk in self._fastcdc.cut_buf(data):
                # A cut depends on the bytes up to the largest chunk: with fewer at hand it may move.
                if not final and len(data) - chunk.offset < self._max:
                    break
                chunks.append(data[chunk.offset : chunk.offset + chunk.length])
                end = chunk.offset + chunk.length
        self._rest = data[end:]
        return chunks


def encode_chunk_list(chunks: Sequence[Chunk]) -> bytes:
    """The list as a serialized ``StatBlobResponse``."""
    from neve.proto.tvix.castore.protos import rpc_blobstore_pb2

    message = rpc_blobstore_pb2.StatBlobResponse()
    for digest, size in chunks:
        message.chunks.add(digest=digest, size=size)
    return message.SerializeToString()


def decode_chunk_list(data: bytes) -> list[Chunk]:
    """Raises ``InvalidRequest`` if ``data`` is no list of chunks."""
    from google.protobuf.message import DecodeError

    from neve.proto.tvix.castore.protos import rpc_blobstore_pb2

    try:
        message = rpc_blobstore_pb2.StatBlobResponse.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"{len(data)} bytes are no chunk list: {error}") from error
    return [Chunk(check_digest(chunk.digest, "chunk digest"), chunk.size) for chunk in message.chunks]


class _SeekingReader(BlobReader):
    """Keeps the position; what lies there, ``_piece`` tells."""

    _position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self._piece(len(buffer))
        memoryview(buffer)[: len(piece)] = piece
        return len(piece)

    @abstractmethod
    def _piece(self, wanted: int) -> bytes | memoryview:
        """Up to ``wanted`` bytes at the position, none only at the end; moves the position."""


class BytesReader(_SeekingReader):
    """A reader over contents at hand, already verified."""

    def __init__(self, contents: bytes) -> None:
        self._contents = contents

    @property
    def size(self) -> int:
        return len(self._contents)

    def read(self, size: int | None = -1, /) -> bytes:
        return self._piece(self.size if size is None or size < 0 else size)

    def _piece(self, wanted: int) -> bytes:
        piece = self._contents[self._position : self._position + wanted]
        self._position += len(piece)
        return piece


class ChunkedReader(_SeekingReader):
    """A reader over a list of chunks.

    ``fetch`` gives the verified bytes of a chunk; one whose length is not the one in the list is
    ``Corrupt``. The chunk read last is kept, so small reads in order fetch each chunk once. With
    ``fetch_ahead``, which does the same in another thread, reading in order fetches the next ones
    beforehand.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        fetch: Callable[[Digest], bytes],
        fetch_ahead: Callable[[Digest], Future[bytes]] | None = None,
        *,
        ahead: int = _CHUNKS_AHEAD,
    ) -> None:
        """``ahead`` is how many."""
        self._chunks = chunks
        self._fetch = fetch
        self._fetch_ahead = fetch_ahead
        self._how_far = ahead
        self._ahead: dict[int, Future[bytes]] = {}
        self._ends = list(accumulate(chunk.size for chunk in chunks))
        self._held = -1
        self._contents = b""

    @property
    def size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Unlike a raw file's, this gives all that is asked for, short only at the end."""
        wanted = self.size - self._position if size is None or size < 0 else size
        pieces: list[bytes | memoryview] = []
        while wanted > 0 and (piece := self._piece(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def read_piece(self, limit: int) -> bytes:
        piece = self._piece(limit)
        return self._contents if len(piece) == len(self._contents) else bytes(piece)

    def _piece(self, wanted: int) -> memoryview:
        """Bytes at the position, up to the end of their chunk; moves the position."""
        number = bisect.bisect_right(self._ends, self._position)
        if number >= len(self._chunks) or wanted <= 0:
            return memoryview(b"")
        if number != self._held:
            self._contents = self._load(number)
            self._held = number
        start = self._position - (self._ends[number] - self._chunks[number].size)
        piece = memoryview(self._contents)[start : start + wanted]
        self._position += len(piece)
        return piece

    def cancel_ahead(self) -> None:
        """Gives up what was to be fetched beforehand."""
        ahead, self._ahead = self._ahead, {}
        for future in ahead.values():
            future.cancel()

    def _load(self, number: int) -> bytes:
        digest, size = self._chunks[number]
        future = self._ahead.pop(number, None)
        if self._fetch_ahead is not None:
            in_order = number == self._held + 1
            last = min(number + self._how_far, len(self._chunks) - 1) if in_order and number else number
            self._ahead = {n: f for n, f in self._ahead.items() if number < n <= last}
            for following in range(number + 1, last + 1):
                if following not in self._ahead:
                    self._ahead[following] = self._fetch_ahead(self._chunks[following].digest)
        contents = self._fetch(digest) if future is None else future.result()
        if len(contents) != size:
            raise Corrupt(f"chunk {format_digest(digest)} has {len(contents)} bytes, its list says {size}")
        return contents
