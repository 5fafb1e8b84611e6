"""BatchService: many small objects per message, over any backend."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

from google.protobuf.message import DecodeError

from neve.castore.blobs.base import BlobBatch, BlobService, BlobWriter
from neve.castore.blobs.bundle import Bundle, answer_message, bundle_from_message, split_digests
from neve.castore.digest import Digest, check_digest, format_digest
from neve.errors import InvalidRequest, LimitExceeded, NotFound, Unavailable
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.server.blobs import check_writable
from neve.server.calls import Calls, Context
from neve.server.directories import ClosureUpload, grouped
from neve.server.messages import MAX_PARTS_BYTES
from neve.server.streams import Behind, cleared
from neve.store.services import Services
from neve.tree import WHOLE_FILE_LIMIT

MAX_DIGESTS = 65_536
"""Most digests in one question."""

MAX_UNPACKED_BYTES = 64 * 1024 * 1024
"""Most contents that one such message may hold."""

_MAX_WRITERS = 16
"""Blobs that may be on their way at once in one stream."""


class BatchHandlers:
    """The methods of BatchService, by their names in the protocol."""

    raw_requests = ("Put",)

    def __init__(self, services: Services, calls: Calls, *, read_only: bool = False) -> None:
        self._blobs = services.blobs
        self._directories = services.directories
        self._calls = calls
        self._read_only = read_only

    async def Missing(  # noqa: N802
        self, request: rpc_batch_pb2.MissingRequest, _: Context
    ) -> rpc_batch_pb2.MissingResponse:
        digests = _digests(request.digests)
        ask = self._blobs.missing_blobs if request.as_blobs else self._blobs.missing
        missing = set(await self._calls.work(ask, digests))
        return rpc_batch_pb2.MissingResponse(missing=_places(digests, missing))

    async def Put(self, requests: AsyncIterator[bytes], context: Context) -> None:  # noqa: N802
        check_writable(self._read_only)
        session = _Session(self._blobs, self._calls.limits.max_blob_bytes)
        behind = Behind(self._calls, session.stop)
        try:
            async for data in requests:
                self._calls.moved(len(data))
                request = await self._calls.work(_put_request, data)
                await behind.put(len(data), session.take, request)
                if not request.commit and not request.keep:
                    continue
                await behind.settle()
                answer = rpc_batch_pb2.PutResponse()
                if request.keep:
                    answer.missing.extend(await self._calls.ingest(session.keep, request.keep))
                if request.commit:
                    await self._calls.commit(session.commit)
                await context.write(answer)
            await behind.settle()
        finally:
            session.stop()
            await cleared(self._end(behind, session))

    async def _end(self, behind: Behind, session: _Session) -> None:
        await behind.give_up()
        await self._calls.ingest(session.close)

    async def Read(self, request: rpc_batch_pb2.ReadRequest, context: Context) -> None:  # noqa: N802
        digests = _digests(request.digests)
        limit = min(request.limit or WHOLE_FILE_LIMIT, WHOLE_FILE_LIMIT)
        answers = (answer_message(answer) for answer in self._blobs.read_bundles(digests, limit))
        async for message in self._calls.pull(answers):
            await context.write(message)
            self._calls.moved(len(message.data))

    async def GetDirectories(  # noqa: N802
        self, request: rpc_batch_pb2.GetDirectoriesRequest, context: Context
    ) -> None:
        digests = list(dict.fromkeys(_digests(request.digests)))
        async for group in self._calls.pull(grouped(self._encoded(digests))):
            await context.write(rpc_batch_pb2.Directories(directories=group))
            self._calls.moved(sum(map(len, group)))

    def _encoded(self, digests: list[Digest]) -> Iterator[bytes]:
        """The Directories that are there; no more of them are held at once than for a closure."""
        for portion in self._directories._portions(digests):
            for directory in self._directories.get_many(portion).values():
                yield directory.encode()

    async def GetClosure(  # noqa: N802
        self, request: rpc_batch_pb2.GetClosureRequest, context: Context
    ) -> None:
        closure = self._directories.get_recursive_encoded(check_digest(request.digest))
        async for group in self._calls.pull(grouped(closure)):
            await context.write(rpc_batch_pb2.Directories(directories=group))
            self._calls.moved(sum(map(len, group)))

    async def PutClosure(  # noqa: N802
        self, requests: AsyncIterator[rpc_batch_pb2.Directories], context: Context
    ) -> rpc_batch_pb2.PutClosureResponse:
        check_writable(self._read_only)
        upload = ClosureUpload(self._directories, self._calls)
        try:
            async for request in requests:
                for encoded in request.directories:
                    await upload.add(encoded)
            await self._calls.received(context)
            root = await upload.finish()
        finally:
            await cleared(upload.end())
        return rpc_batch_pb2.PutClosureResponse(root_digest=root)


def _digests(run: bytes) -> list[Digest]:
    digests = split_digests(run)
    if len(digests) > MAX_DIGESTS:
        raise LimitExceeded(f"{len(digests)} digests in one message, the limit is {MAX_DIGESTS}")
    return digests


def _put_request(data: bytes) -> rpc_batch_pb2.PutRequest:
    """A message that can be of many small parts: reading it takes a while, and a multiple of its memory."""
    if len(data) > MAX_PARTS_BYTES:  # Of one part too: that has parts of its own.
        raise LimitExceeded(f"a message of {len(data)} bytes, the limit here is {MAX_PARTS_BYTES}")
    try:
        return rpc_batch_pb2.PutRequest.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"Put: {error}") from error


def _places(digests: list[Digest], chosen: set[Digest]) -> list[int]:
    return [place for place, digest in enumerate(digests) if digest in chosen]


class _Session:
    """One stream of uploads: a batch of the backend, and the large blobs on their way."""

    def __init__(self, blobs: BlobService, limit: int) -> None:
        self._blobs = blobs
        self._limit = limit
        self._batch: BlobBatch | None = None
        self._writers: dict[int, BlobWriter] = {}
        self._sizes: dict[int, int] = {}
        self._stopped = False

    def stop(self) -> None:
        """The stream is gone: what is being taken need not be finished. From any thread."""
        self._stopped = True

    def _open(self) -> BlobBatch:
        if self._batch is None:
            self._batch = self._blobs.batch()
        return self._batch

    def take(self, request: rpc_batch_pb2.PutRequest) -> None:
        """Takes what a message brings. Raises ``InvalidRequest``, ``LimitExceeded``."""
        unpacked = 0
        for blobs in request.blobs:
            bundle = self._bundle(blobs, unpacked)
            unpacked += bundle.raw_size
            if max(bundle.sizes, default=0) > self._limit:
                raise LimitExceeded(f"a blob is over the limit of {self._limit} bytes (max_blob_bytes)")
            self._open().put_bundle(bundle)
        for part in request.parts:
            if part.WhichOneof("what") == "chunks":
                bundle = self._bundle(part.chunks, unpacked)
                unpacked += bundle.raw_size
                self._take_chunks(part.writer, bundle)
            else:
                self._take_part(part)

    def _bundle(self, message: rpc_batch_pb2.Bundle, unpacked: int) -> Bundle:
        """The next bundle of a message of which ``unpacked`` bytes were taken already."""
        if self._stopped:
            raise Unavailable("the stream has ended")
        bundle = bundle_from_message(message)
        if unpacked + bundle.raw_size > MAX_UNPACKED_BYTES:
            raise LimitExceeded(f"a message holds over {MAX_UNPACKED_BYTES} bytes of contents, unpacked")
        return bundle

    def _take_chunks(self, number: int, bundle: Bundle) -> None:
        if 0 in bundle.sizes:
            raise InvalidRequest(f"blob {number} comes with an empty chunk")
        self._writer(number, bundle.raw_size).write_bundle(bundle)

    def _take_part(self, part: rpc_batch_pb2.Part) -> None:
        what = part.WhichOneof("what")
        if self._stopped:
            raise Unavailable("the stream has ended")
        if what == "known":
            self._take_known(part.writer, _digests(part.known))
        elif what == "data":
            self._writer(part.writer, len(part.data)).write(part.data)
        elif what == "end":
            self._end(part.writer, check_digest(part.end))
        elif what == "abandon":
            self._forget(part.writer)
        else:
            raise InvalidRequest(f"a part of blob {part.writer} holds nothing")

    def _writer(self, number: int, size: int) -> BlobWriter:
        """The writer of a blob that is to get ``size`` bytes more."""
        self._sizes[number] = self._sizes.get(number, 0) + size
        if self._sizes[number] > self._limit:
            raise LimitExceeded(f"the blob is over the limit of {self._limit} bytes (max_blob_bytes)")
        writer = self._writers.get(number)
        if writer is None:
            if len(self._writers) >= _MAX_WRITERS:
                raise LimitExceeded(f"over {_MAX_WRITERS} blobs are on their way in one stream")
            writer = self._writers[number] = self._open().open_write()
        return writer

    def _take_known(self, number: int, digests: list[Digest]) -> None:
        """Goes on with chunks that the store has: they are read, since the whole must be hashed."""
        missing = self._open().keep_many(digests)
        if missing:
            raise NotFound(f"chunk {format_digest(missing[0])} was named as known, but is not in the store")
        for digest, data in zip(digests, self._blobs.read_many(digests, WHOLE_FILE_LIMIT), strict=True):
            if self._stopped:
                raise Unavailable("the stream has ended")
            self._writer(number, len(data)).write_bundle(Bundle([digest], [len(data)], data))

    def _end(self, number: int, digest: Digest) -> None:
        writer = self._writer(number, 0)
        written = writer.close()
        self._forget(number)
        if written != digest:
            raise InvalidRequest(
                f"the parts of blob {number} make {format_digest(written)}, "
                f"announced was {format_digest(digest)}"
            )

    def _forget(self, number: int) -> None:
        self._sizes.pop(number, None)
        writer = self._writers.pop(number, None)
        if writer is not None:
            writer.abandon()

    def keep(self, run: bytes) -> list[int]:
        """Places of what is not there."""
        digests = _digests(run)
        return _places(digests, set(self._open().keep_many(digests)))

    def commit(self) -> None:
        """Makes everything durable."""
        if self._batch is not None:
            self._batch.commit()

    def close(self) -> None:
        """Gives up what was not committed."""
        with contextlib.ExitStack() as closing:
            if self._batch is not None:
                closing.callback(self._batch.close)
            for number in list(self._writers):
                closing.callback(self._forget, number)
