"""BlobService over any backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from neve.castore.blobs.base import BlobService, BlobWriter, Chunk, blob_not_found
from neve.castore.digest import Digest, check_digest
from neve.castore.wire import encode_blob_chunk
from neve.errors import LimitExceeded, NeveError, PermissionDenied
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.server.calls import Calls, Context
from neve.server.streams import Behind, cleared

PIECE_BYTES = 1024 * 1024
"""Contents go out in messages of at most this many bytes."""

_GROUP_BYTES = 1024 * 1024
_GROUP_MESSAGES = 1024
"""Contents that come in are gathered up to this many bytes before a thread takes them, and from so many
messages at most: each of them takes more memory than a byte or two of contents."""


class BlobHandlers:
    """The methods of BlobService, by their names in the protocol."""

    raw_responses = ("Read",)

    def __init__(self, blobs: BlobService, calls: Calls, *, read_only: bool = False) -> None:
        self._blobs = blobs
        self._calls = calls
        self._read_only = read_only
        self._presence = Presence(blobs, calls)

    async def Stat(  # noqa: N802
        self, request: rpc_blobstore_pb2.StatBlobRequest, _: Context
    ) -> rpc_blobstore_pb2.StatBlobResponse:
        digest = check_digest(request.digest)
        if not request.send_chunks:
            if not await self._presence.has(digest):
                raise blob_not_found(digest)
            return rpc_blobstore_pb2.StatBlobResponse()
        chunks = await self._calls.work(self._blobs.chunks, digest)
        if chunks is None:
            raise blob_not_found(digest)
        return rpc_blobstore_pb2.StatBlobResponse(chunks=_described(digest, chunks))

    async def Read(self, request: rpc_blobstore_pb2.ReadBlobRequest, context: Context) -> None:  # noqa: N802
        pieces = self._blobs.stream(check_digest(request.digest), PIECE_BYTES)
        async for message in self._calls.pull(_messages(pieces)):
            await context.write(message)
            self._calls.moved(len(message))

    async def Put(  # noqa: N802
        self, requests: AsyncIterator[rpc_blobstore_pb2.BlobChunk], context: Context
    ) -> rpc_blobstore_pb2.PutBlobResponse:
        check_writable(self._read_only)
        upload = _Upload(self._blobs, self._calls)
        try:
            async for request in requests:
                await upload.add(request.data)
            await self._calls.received(context)
            digest = await upload.finish()
        finally:
            await cleared(upload.end())
        return rpc_blobstore_pb2.PutBlobResponse(digest=digest)


def _messages(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Encoded ``BlobChunk`` messages of at most ``PIECE_BYTES`` of contents, which are copied just once."""
    group: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > PIECE_BYTES:
            yield encode_blob_chunk(group)
            group, size = [], 0
        group.append(piece)
        size += len(piece)
    if group:
        yield encode_blob_chunk(group)


def check_writable(read_only: bool) -> None:
    """Raises ``PermissionDenied`` if the server only serves."""
    if read_only:
        raise PermissionDenied("this server is read-only")


def _described(
    digest: Digest, chunks: Sequence[Chunk]
) -> Iterable[rpc_blobstore_pb2.StatBlobResponse.ChunkMeta]:
    """The list as it is sent: a blob that is its only chunk needs none."""
    if len(chunks) == 1 and chunks[0].digest == digest:
        return []
    meta = rpc_blobstore_pb2.StatBlobResponse.ChunkMeta
    return [meta(digest=chunk.digest, size=chunk.size) for chunk in chunks]


class _Upload:
    """One blob that is being received: a group is written while the next one comes."""

    def __init__(self, blobs: BlobService, calls: Calls) -> None:
        self._blobs = blobs
        self._calls = calls
        self._limit = calls.limits.max_blob_bytes
        self._size = 0
        self._group: list[bytes] = []
        self._group_bytes = 0
        self._writer: BlobWriter | None = None
        self._behind = Behind(calls)

    async def add(self, data: bytes) -> None:
        if not data:
            return
        self._size += len(data)
        if self._size > self._limit:
            raise LimitExceeded(f"the blob is over the limit of {self._limit} bytes (max_blob_bytes)")
        self._group.append(data)
        self._group_bytes += len(data)
        self._calls.moved(len(data))
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_MESSAGES:
            group, size = self._group, self._group_bytes
            self._group, self._group_bytes = [], 0
            await self._behind.put(size, self._write, group)

    def _write(self, group: list[bytes]) -> None:
        if self._writer is None:
            self._writer = self._blobs.open_write()
        for data in [b"".join(group)] if len(group) >= _GROUP_MESSAGES else group:
            self._writer.write(data)

    async def finish(self) -> Digest:
        """The digest, once the blob is durable."""
        await self._behind.settle()
        return await self._calls.commit(self._close)

    def _close(self) -> Digest:
        self._write(self._group)
        assert self._writer is not None
        return self._writer.close()

    async def end(self) -> None:
        """Gives up what was not finished."""
        self._group = []
        await self._behind.give_up()
        if self._writer is not None:
            await self._calls.ingest(self._writer.abandon)


class Presence:
    """Answers questions after single blobs: at once where the backend can, for a thread's turn takes
    longer than the look. Elsewhere the questions that come while one look is under way gather for the next.
    """

    def __init__(self, blobs: BlobService, calls: Calls) -> None:
        self._blobs = blobs
        self._calls = calls
        self._waiting: dict[Digest, list[asyncio.Future[bool]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def has(self, digest: Digest) -> bool:
        """Whether the blob is there."""
        if self._blobs.looks_up_at_once:
            return not self._blobs.missing([digest])
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(digest, []).append(answer)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return await answer

    async def _look(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, {}
                await self._answer(asked)
        finally:
            self._looking = None

    async def _answer(self, asked: dict[Digest, list[asyncio.Future[bool]]]) -> None:
        missing: set[Digest] = set()
        failure: Exception | None = None
        try:
            missing = set(await self._calls.work(self._blobs.missing, list(asked)))
        except Exception as error:
            failure = error
        if failure is not None and len(asked) > 1 and isinstance(failure, NeveError):
            # One bad entry must not spoil the answers to the others.
            for digest, answers in asked.items():
                await self._answer({digest: answers})
            return
        for digest, answers in asked.items():
            for answer in answers:
                if answer.done():
                    continue
                if failure is not None:
                    answer.set_exception(failure)
                else:
                    answer.set_result(digest not in missing)
