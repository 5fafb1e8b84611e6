"""Blobs of a gRPC server, under either set of names.

Our own servers take and give many small blobs per message (``grpc_batch``); others get the standard
calls, several at once. Whatever comes is hashed here before it is given out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from operator import lt
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar

from blake3 import blake3
from google.protobuf.descriptor import ServiceDescriptor

from neve.castore.ages import refuse_ages
from neve.castore.at_once import CallsAtOnce
from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter, Chunk, blob_not_found
from neve.castore.blobs.bundle import Answer, split_digests
from neve.castore.blobs.chunks import BytesReader
from neve.castore.blobs.grpc_batch import RemoteBatch
from neve.castore.blobs.grpc_read import (
    BlobTooLong,
    FileReader,
    RemoteChunkReader,
    RemoteReads,
    has_batches,
)
from neve.castore.blobs.writing import GatheringWriter
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, check_digest, format_digest
from neve.castore.wire import encode_blob_chunk
from neve.errors import Corrupt, InvalidRequest, NotFound, Unsupported
from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2
from neve.registry import Address
from neve.rpc.channel import Connection
from neve.rpc.upload import Upload
from neve.tree import WHOLE_FILE_LIMIT

T = TypeVar("T")

BLOBS: ServiceDescriptor = rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"]
ADMIN: ServiceDescriptor = rpc_admin_pb2.DESCRIPTOR.services_by_name["AdminService"]

_MESSAGE_BYTES = 1024 * 1024
_DELETED_AT_ONCE = 10_000
_MAX_EMPTY_MESSAGES = 1000
_SPOOL_IN_MEMORY = 4 * 1024 * 1024
_MAX_SIZE = 2**64 - 1

_MAX_HELD_CHUNK = 16 * 1024 * 1024
"""A chunk is held as a whole. Blobs with longer ones, which nobody makes, are read without their list."""


class GrpcBlobService(BlobService):
    """Blobs of one server. Owns one use of ``connection``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reads = RemoteReads(connection)
        self.calls = CallsAtOnce()
        self._closed = False

    # Presence.

    def has(self, digest: Digest) -> bool:
        if check_digest(digest) == EMPTY_BLOB:
            return True
        return self._stat(digest, send_chunks=False) is not None

    def _stat(self, digest: Digest, *, send_chunks: bool) -> Any:
        request = rpc_blobstore_pb2.StatBlobRequest(digest=digest, send_chunks=send_chunks)
        try:
            return self._connection.call(BLOBS, "Stat", request)
        except NotFound:
            return None

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        wanted = [check_digest(digest) for digest in digests if digest != EMPTY_BLOB]
        if not wanted:
            return []
        return self._reads.unless_lacking(
            lambda: self._reads.missing(wanted),
            lambda: [
                d for d, there in zip(wanted, self.calls.map(self.has, wanted), strict=True) if not there
            ],
        )

    def missing_blobs(self, digests: Sequence[Digest]) -> list[Digest]:
        wanted = [check_digest(digest) for digest in digests if digest != EMPTY_BLOB]
        if not wanted:
            return []
        return self._reads.unless_lacking(
            lambda: self._reads.missing(wanted, as_blobs=True), lambda: self.missing(wanted)
        )

    # Reading.

    def chunks(self, digest: Digest) -> list[Chunk] | None:
        if check_digest(digest) == EMPTY_BLOB:
            return []
        chunks = self._chunk_list(digest)
        if chunks is None or chunks:
            return chunks
        # One chunk, which the server need not describe.
        with contextlib.suppress(NotFound):
            return [Chunk(digest, sum(map(len, self.stream(digest))))]
        return None

    def _chunk_list(self, digest: Digest) -> list[Chunk] | None:
        """As the server tells it: empty if there is only one."""
        answer = self._stat(digest, send_chunks=True)
        if answer is None:
            return None
        try:
            chunks = [Chunk(check_digest(c.digest, "chunk digest"), c.size) for c in answer.chunks]
            _check_chunks(digest, chunks)
        except InvalidRequest as error:
            raise Corrupt(f"{self._named(digest)}: the server's list of chunks: {error}") from error
        return chunks

    def stored_chunks(self, digest: Digest) -> list[Chunk]:
        return [] if check_digest(digest) == EMPTY_BLOB else self._chunk_list(digest) or []

    def open_read(self, digest: Digest) -> BlobReader | None:
        if check_digest(digest) == EMPTY_BLOB:
            return BytesReader(b"")
        chunks = self._chunk_list(digest)
        if chunks is None:
            return None
        if len(chunks) > 1 and max(chunk.size for chunk in chunks) <= _MAX_HELD_CHUNK:
            return RemoteChunkReader(digest, chunks, self)
        spool = SpooledTemporaryFile(_SPOOL_IN_MEMORY)  # noqa: SIM115 - the reader's, or closed below
        try:
            for piece in self.stream(digest):
                spool.write(piece)
        except NotFound:
            spool.close()
            return None
        except BaseException:
            spool.close()
            raise
        return FileReader(spool)

    def read(self, digest: Digest, limit: int | None = None) -> bytes:
        pieces = []
        size = 0
        for piece in self.stream(digest):
            pieces.append(piece)
            size += len(piece)
            if limit is not None and size > limit:
                raise BlobTooLong(
                    f"{self._named(digest)} has {size} bytes or more, at most {limit} are wanted"
                )
        return b"".join(pieces)

    def stream(self, digest: Digest, size: int = _MESSAGE_BYTES) -> Iterator[bytes]:
        if check_digest(digest) == EMPTY_BLOB:
            return
        hasher = blake3()
        request = rpc_blobstore_pb2.ReadBlobRequest(digest=digest)
        last: bytes | None = None
        empty = 0
        try:
            for message in self._connection.receive(BLOBS, "Read", request):
                # The last message is held back until all of it is known to be right.
                if last:
                    yield from _pieces(last, size)
                last = message.data
                hasher.update(last)
                empty = 0 if last else empty + 1
                if empty > _MAX_EMPTY_MESSAGES:
                    raise Corrupt(f"{self._named(digest)}: the server sends nothing, and does not end")
        except NotFound as error:
            raise blob_not_found(digest) from error
        if hasher.digest() != digest:
            raise Corrupt(f"{self._named(digest)}: the server's answer does not match the digest")
        yield from _pieces(last or b"", size)

    def read_many(self, digests: Iterable[Digest], limit: int | None = None) -> Iterator[bytes]:
        return self._reads.unless_lacking_stream(
            digests,
            lambda source: self._reads.read_many(source, limit, self.read),
            lambda source: self.calls.map(lambda digest: self.read(digest, limit), source),
        )

    def read_bundles(self, digests: Sequence[Digest], limit: int = WHOLE_FILE_LIMIT) -> Iterator[Answer]:
        """As the server sends them; of a server without batches each alone, several at once."""
        if has_batches(self._connection):
            return self._reads.answers(digests, limit)
        return self.calls.map(lambda asked: self._bundle_of_one(*asked, limit), enumerate(digests))

    def _named(self, digest: Digest) -> str:
        return f"{self._connection.url}: blob {format_digest(digest)}"

    # Writing.

    def open_write(self) -> BlobWriter:
        return _UploadingWriter(self._connection)

    def batch(self) -> BlobBatch:
        """Of a server without batches each blob is durable when it was put; several puts are in flight."""
        return RemoteBatch(self._connection, self._reads, _ConcurrentPuts(self))

    # Care.

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        # A limit of 0 would mean the server's own; asked nevertheless, for the permission.
        request = rpc_admin_pb2.ListRequest(after=after, limit=max(limit, 1))
        run = self._administer("list blobs", "ListBlobs", request).digests
        return listed(self._connection, run, after)[:limit]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        return delete_in_parts(self._connection, "delete blobs", "DeleteBlobs", digests)

    def _administer(self, doing: str, name: str, request: Any) -> Any:
        return administer(self._connection, doing, name, request)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.calls.close()
        self._reads.close()
        self._connection.close()


def administer(connection: Connection, doing: str, name: str, request: Any) -> Any:
    """A call of the administration. Raises ``Unsupported`` naming the server if it has none."""

    def foreign() -> Any:
        raise Unsupported(f"{connection.url} cannot {doing}: only the administration of a neve daemon can")

    return connection.unless_lacking(ADMIN, lambda: connection.call(ADMIN, name, request), foreign)


def listed(connection: Connection, run: bytes, after: Digest) -> list[Digest]:
    """The digests of a page, checked: whoever asks page by page must come to an end."""
    try:
        digests = split_digests(run)
    except InvalidRequest as error:
        raise Corrupt(f"{connection.url}: the server's list: {error}") from error
    if not all(map(lt, [after, *digests], digests)):
        raise Corrupt(f"{connection.url}: the server's list is not in ascending order")
    return digests


def _check_chunks(digest: Digest, chunks: Sequence[Chunk]) -> None:
    """Raises ``InvalidRequest`` if these cannot be the chunks of the blob."""
    for number, chunk in enumerate(chunks):
        # Nothing would be read at its place, and so its neighbours would not be taken for neighbours.
        if not chunk.size:
            raise InvalidRequest(f"chunk {number} of {len(chunks)} has no bytes")
    if sum(chunk.size for chunk in chunks) > _MAX_SIZE:
        raise InvalidRequest("the sizes of its chunks do not fit 64 bits together")
    if len(chunks) == 1 and chunks[0].digest != digest:
        raise InvalidRequest(f"its only chunk is {format_digest(chunks[0].digest)}")


def delete_in_parts(connection: Connection, doing: str, name: str, digests: Sequence[Digest]) -> int:
    """Deletes by a call of the administration, a bounded number at a time; returns how many were there."""
    digests = [check_digest(digest) for digest in digests]
    count = 0
    for start in range(0, max(len(digests), 1), _DELETED_AT_ONCE):
        run = b"".join(digests[start : start + _DELETED_AT_ONCE])
        count += administer(connection, doing, name, rpc_admin_pb2.DeleteRequest(digests=run)).deleted
    return count


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    if len(data) <= size:
        if data:
            yield data
        return
    for start in range(0, len(data), size):
        yield data[start : start + size]


class _UploadingWriter(GatheringWriter):
    """One blob by the standard call, which begins with the first full message."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(_MESSAGE_BYTES)
        self._connection = connection
        self._hasher = blake3()
        self._upload: Upload | None = None

    def _take(self, pieces: list[bytes]) -> None:
        if self._upload is None:
            self._upload = self._connection.upload(BLOBS, "Put", raw=True)
        if sum(map(len, pieces)) > 2 * _MESSAGE_BYTES:
            messages = [[part] for piece in pieces for part in _pieces(piece, _MESSAGE_BYTES)]
        else:
            messages = [pieces] if pieces else []
        for parts in messages:
            for part in parts:
                self._hasher.update(part)
            self._upload.send(encode_blob_chunk(parts))

    def _finish(self) -> Digest:
        self._take(self._rest())
        assert self._upload is not None
        answer = self._upload.finish().digest
        digest: Digest = self._hasher.digest()
        if answer != digest:
            raise Corrupt(
                f"{self._connection.url}: what was sent as blob {format_digest(digest)} arrived as another"
            )
        return digest

    def _release(self) -> None:
        if self._upload is not None and self._state != "closed":
            self._upload.cancel()


class _ConcurrentPuts(BlobBatch):
    """A batch by standard calls: asks what is there, puts the rest, several at once."""

    def __init__(self, service: GrpcBlobService) -> None:
        self._service = service

    def put_many(self, blobs: Sequence[bytes]) -> list[Digest]:
        digests = [b3_digest(blob) for blob in blobs]
        wanted = dict(zip(digests, blobs, strict=True))
        missing = self._service.missing(list(wanted))
        for _ in self._service.calls.map(lambda digest: self._put(wanted[digest]), missing):
            pass
        return digests

    def _put(self, blob: bytes) -> None:
        with self._service.open_write() as writer:
            writer.write(blob)
            writer.close()

    def open_write(self) -> BlobWriter:
        return self._service.open_write()

    def keep_many(self, digests: Sequence[Digest]) -> list[Digest]:
        return self._service.missing(digests)

    def commit(self) -> None:
        return

    def close(self) -> None:
        return


def open_grpc(address: Address) -> GrpcBlobService:
    """``grpc+unix:///socket``, ``grpc+http://host:port``, ``grpc+https://host:port``"""
    return GrpcBlobService(Connection.open(address))


assert WHOLE_FILE_LIMIT < _MESSAGE_BYTES
