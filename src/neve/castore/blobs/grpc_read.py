"""Reading blobs that lie on a server: many at once, and one with a position."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import TypeVar

from blake3 import blake3
from google.protobuf.descriptor import ServiceDescriptor

from neve.castore.blobs.base import BlobReader, BlobService, Chunk, blob_not_found
from neve.castore.blobs.bundle import Answer, answer_from_message
from neve.castore.blobs.chunks import ChunkedReader
from neve.castore.digest import Digest, check_digest, format_digest
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NotFound
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.rpc.channel import Connection
from neve.telemetry import carried
from neve.tree import WHOLE_FILE_LIMIT

T = TypeVar("T")

BATCHES: ServiceDescriptor = rpc_batch_pb2.DESCRIPTOR.services_by_name["BatchService"]

_THREADS = 4
_QUESTION = 16 * 1024
"""Digests in one question."""

_FIRST_WINDOW, _MAX_WINDOW = 64, 1024
_WINDOW_BYTES = 8 * 1024 * 1024
"""Blobs that are asked for together: as many as make about so many bytes, judged by those before."""

_MAX_HELD_BYTES = 64 * 1024 * 1024
"""Most contents of one answer to a question: twice as much as the longest blobs in a first window."""

_NOT_ASKED_FOR = "the server answers for blobs that it was not asked for"
_UNEQUAL = "an answer's places, starts and sizes differ in number"

Read = Callable[[Digest, int | None], bytes]
Unpacked = tuple[Answer, bytes]


class BlobTooLong(LimitExceeded):
    """A blob is longer than the caller takes; not a limit of the server's."""


class RemoteChunkReader(ChunkedReader):
    """Reads over a server's list of chunks: in order by one long request, elsewhere chunk by chunk.

    Each chunk is verified by its own digest. That the list itself belongs to the blob shows only when
    all of it is read in order: then the whole is compared with the blob's digest too, before the last
    chunk is given out.
    """

    def __init__(self, digest: Digest, chunks: Sequence[Chunk], service: BlobService) -> None:
        self._longest = max(chunk.size for chunk in chunks)
        super().__init__(chunks, lambda chunk: service.read(chunk, self._longest))
        self._digest = digest
        self._service = service
        self._following: Iterator[bytes] | None = None
        self._next = 0
        # Of what was read in order from the start.
        self._hasher = blake3()
        self._hashed = 0

    def _load(self, number: int) -> bytes:
        contents = self._fetched(number)
        digest, size = self._chunks[number]
        if len(contents) != size:
            raise Corrupt(f"chunk {format_digest(digest)} has {len(contents)} bytes, its list says {size}")
        if number == self._hashed:
            self._hasher.update(contents)
            self._hashed += 1
            if self._hashed == len(self._chunks) and self._hasher.digest() != self._digest:
                raise Corrupt(f"the chunks of blob {format_digest(self._digest)} do not make the blob")
        return contents

    def _fetched(self, number: int) -> bytes:
        try:
            if number == 0 or number == self._held + 1:
                if self._following is None or self._next != number:
                    self._stop()
                    rest = (chunk.digest for chunk in self._chunks[number:])
                    self._following = self._service.read_many(rest, self._longest)
                self._next = number + 1
                return next(self._following)
            self._stop()
            return self._fetch(self._chunks[number].digest)
        except BlobTooLong as error:
            chunk = format_digest(self._chunks[number].digest)
            raise Corrupt(f"chunk {chunk} is longer than its list says: {error}") from error
        except NotFound as error:
            raise Corrupt(
                f"blob {format_digest(self._digest)}: its chunks are not all there: {error}"
            ) from error

    def _stop(self) -> None:
        following, self._following = self._following, None
        close = getattr(following, "close", None)
        if close is not None:
            close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._stop()
        super().close()


class FileReader(BlobReader):
    """Reads a verified blob from a file of its own, which it closes."""

    def __init__(self, file: SpooledTemporaryFile[bytes]) -> None:
        self._file = file
        self._size = file.tell()
        file.seek(0)

    @property
    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = 0, /) -> int:
        position = {0: 0, 1: self._file.tell(), 2: self._size}.get(whence)
        if position is None or position + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._file.seek(position + offset)
        return position + offset

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        return self._file.read(-1 if size is None else size)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self._file.read(len(buffer))
        memoryview(buffer)[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()


def has_batches(connection: Connection) -> bool:
    """Whether the server has BatchService; asks it once."""
    return connection.has(
        BATCHES, lambda: connection.call(BATCHES, "Missing", rpc_batch_pb2.MissingRequest())
    )


class RemoteReads:
    """What a batch service is asked: what is missing, and for many blobs at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()

    def unless_lacking(self, call: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """``call`` if the server has batches, else ``otherwise``."""
        return self._connection.unless_lacking(BATCHES, call, otherwise)

    def unless_lacking_stream(
        self,
        digests: Iterable[Digest],
        call: Callable[[Iterator[Digest]], Iterator[bytes]],
        otherwise: Callable[[Iterator[Digest]], Iterator[bytes]],
    ) -> Iterator[bytes]:
        """The same for what yields."""
        source = iter(digests)
        first = next(source, None)
        if first is None:
            return iter(())
        chosen = call if has_batches(self._connection) else otherwise
        return chosen(itertools.chain([first], source))

    def missing(self, digests: Sequence[Digest], *, as_blobs: bool = False) -> list[Digest]:
        """Those of ``digests`` that are not there, in order; ``as_blobs``: or only as chunks of others."""
        result: list[Digest] = []
        for start in range(0, max(len(digests), 1), _QUESTION):
            part = digests[start : start + _QUESTION]
            request = rpc_batch_pb2.MissingRequest(digests=b"".join(part), as_blobs=as_blobs)
            answer = self._connection.call(BATCHES, "Missing", request)
            result += chosen(part, answer.missing, self._connection.url)
        return result

    def read_many(self, digests: Iterator[Digest], limit: int | None, read: Read) -> Iterator[bytes]:
        """The blobs in order, each verified; ``read`` gets those that are not sent in bundles.

        The request for the next ones is under way while these are given out.
        """
        ahead: deque[tuple[list[Digest], Future[list[Unpacked]]]] = deque()
        size = _FIRST_WINDOW
        try:
            while True:
                while len(ahead) < 2 and (window := list(islice(digests, size))):
                    ahead.append((window, self.executor().submit(carried(self._answers), window, limit)))
                if not ahead:
                    return
                window, future = ahead.popleft()
                answers = future.result()
                mean = sum(sum(answer.sizes) for answer, _ in answers) // len(window) + 1
                size = max(8, min(_WINDOW_BYTES // mean, 2 * size, _MAX_WINDOW))
                yield from self._in_order(window, answers, limit, read)
        finally:
            for _, future in ahead:
                future.cancel()

    def _answers(self, digests: list[Digest], limit: int | None) -> list[Unpacked]:
        """The server's answers, decompressed. Runs in a thread, ahead of who wants the blobs."""
        answers: list[Unpacked] = []
        held = 0
        with contextlib.closing(self.answers(digests, limit)) as received:
            for answer in received:
                held += max(len(answer.data), answer.raw_size)
                if held > _MAX_HELD_BYTES:
                    break  # Who asked reads the rest one by one.
                answers.append(_unpacked(answer))
        return answers

    def answers(self, digests: Sequence[Digest], limit: int | None) -> Generator[Answer, None, None]:
        """The server's answers, about nothing but what was asked for, and not many more than that. Some may
        be missing."""
        request = rpc_batch_pb2.ReadRequest(
            digests=b"".join(map(check_digest, digests)),
            limit=min(limit or WHOLE_FILE_LIMIT, WHOLE_FILE_LIMIT),
        )
        named = count = 0
        with contextlib.closing(self._connection.receive(BATCHES, "Read", request)) as messages:
            for message in messages:
                answer = answer_from_message(message)
                told = [*answer.places, *answer.absent, *answer.apart]
                named += len(told)
                count += 1
                if named > len(digests) or max(told, default=0) >= len(digests):
                    raise Corrupt(f"{self._connection.url}: {_NOT_ASKED_FOR}")
                if not len(answer.places) == len(answer.starts) == len(answer.sizes):
                    raise Corrupt(f"{self._connection.url}: {_UNEQUAL}")
                if count > 2 * len(digests):
                    return
                yield answer

    def _in_order(
        self, digests: list[Digest], answers: list[Unpacked], limit: int | None, read: Read
    ) -> Iterator[bytes]:
        where: dict[int, tuple[bytes, int, int]] = {}
        absent: set[int] = set()
        for answer, raw in answers:
            absent.update(answer.absent)
            for place, start, size in zip(answer.places, answer.starts, answer.sizes, strict=True):
                where[place] = raw, start, start + size
        for place, digest in enumerate(digests):
            found = where.pop(place, None)
            if found is not None:
                raw, start, stop = found
                data = raw[start:stop]
                if blake3(data).digest() == digest and (limit is None or len(data) <= limit):
                    yield data
                    continue
            elif place in absent:
                raise blob_not_found(digest)
            # Asked alone, the server looks at it itself, and says what is wrong.
            yield read(digest, limit)

    def executor(self) -> Executor:
        """Threads for requests ahead, and for compressing."""
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="neve-batch")
            return self._pool

    def close(self) -> None:
        with self._pool_lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _unpacked(answer: Answer) -> Unpacked:
    """An answer and its contents, not verified; empty if the answer makes no sense."""
    try:
        return answer, bytes(answer.contents())
    except (InvalidRequest, LimitExceeded):
        return answer, b""


def chosen(digests: Sequence[Digest], places: Sequence[int], url: str) -> list[Digest]:
    """The digests at ``places``, as a server names them."""
    if len(places) > len(digests) or max(places, default=0) >= max(len(digests), 1):
        raise Corrupt(f"{url}: {_NOT_ASKED_FOR}")
    return [digests[place] for place in places]
