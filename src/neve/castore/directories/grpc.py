"""Directories of a gRPC server, under either set of names, and verified.

Our own servers take and give many per message; others get the standard calls, several at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from neve.castore.ages import refuse_ages
from neve.castore.at_once import CallsAtOnce
from neve.castore.blobs.grpc import administer, delete_in_parts, listed
from neve.castore.blobs.grpc_read import BATCHES, has_batches
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits, RootToLeaves
from neve.castore.digest import Digest, b3_digest, check_digest, format_digest
from neve.castore.directories.ahead import EncodedDirectories
from neve.castore.directories.base import (
    DirectoryPutter,
    DirectoryService,
)
from neve.castore.directories.spool import SpoolingPutter
from neve.castore.directory import Directory
from neve.errors import Corrupt, InvalidRequest, NotFound
from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.tvix.castore.protos import rpc_directory_pb2
from neve.registry import Address
from neve.rpc.channel import Connection, NotOffered

DIRECTORIES: ServiceDescriptor = rpc_directory_pb2.DESCRIPTOR.services_by_name["DirectoryService"]

_AHEAD_BYTES = 64 * 1024 * 1024
_LEAST_HELD = 100
_MESSAGE_BYTES = 1024 * 1024
_QUESTION = 4096


class GrpcDirectoryService(DirectoryService):
    """Directories of one server. Owns one use of ``connection``."""

    looks_up_children = False
    """The server may stand over a store that does not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ahead = EncodedDirectories(_AHEAD_BYTES)
        self._calls = CallsAtOnce()
        self._closed = False

    # Getting.

    def read_ahead(self, digest: Digest) -> None:
        if self._ahead.get(check_digest(digest)) is not None:
            return
        held = 0
        # What is missing will be missed by who comes to it.
        with contextlib.suppress(NotFound), contextlib.closing(self._closure(digest)) as closure:
            for encoded in closure:
                self._ahead.put(encoded)
                # Empty ones count too: the answer may be anybody's, and have no end.
                held += max(len(encoded), _LEAST_HELD)
                if held > self._ahead.capacity // 2:
                    return

    def get(self, digest: Digest) -> Directory | None:
        ahead = self._ahead.get(check_digest(digest))
        if ahead is not None:
            return self._checked(digest, ahead)
        request = rpc_directory_pb2.GetDirectoryRequest(digest=check_digest(digest))
        try:
            with contextlib.closing(
                self._connection.receive(DIRECTORIES, "Get", request, raw=True)
            ) as received:
                answers = list(islice(received, 2))
        except NotFound:
            return None
        if not answers:
            return None
        if len(answers) > 1:
            raise Corrupt(f"{self._named(digest)}: several Directories instead of one")
        return self._checked(digest, answers[0])

    def _checked(self, digest: Digest, encoded: bytes) -> Directory:
        """The Directory that was asked for. Raises ``Corrupt`` if it is another, or none."""
        if b3_digest(encoded) != digest:
            raise Corrupt(f"{self._named(digest)}: the server's answer does not match the digest")
        try:
            return Directory.decode(encoded, digest=digest)
        except InvalidRequest as error:
            raise Corrupt(f"{self._named(digest)} is invalid: {error}") from error

    def _named(self, digest: Digest) -> str:
        return f"{self._connection.url}: Directory {format_digest(digest)}"

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        ahead = {digest: self._ahead.get(check_digest(digest)) for digest in digests}
        found = {d: self._checked(d, encoded) for d, encoded in ahead.items() if encoded is not None}
        return found | self._get_many([digest for digest in ahead if digest not in found])

    def _get_many(self, wanted: list[Digest]) -> dict[Digest, Directory]:
        if len(wanted) < 2:
            found = {digest: self.get(digest) for digest in wanted}
            return {digest: directory for digest, directory in found.items() if directory is not None}
        return self._connection.unless_lacking(
            BATCHES, lambda: self._get_together(wanted), lambda: self._get_at_once(wanted)
        )

    def _get_together(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        result: dict[Digest, Directory] = {}
        for start in range(0, len(digests), _QUESTION):
            part = digests[start : start + _QUESTION]
            wanted = set(part)
            request = rpc_batch_pb2.GetDirectoriesRequest(digests=b"".join(part))
            for encoded in self._received("GetDirectories", request):
                digest = b3_digest(encoded)
                if digest not in wanted:
                    raise Corrupt(f"{self._named(digest)} came without being asked for, or twice")
                wanted.remove(digest)
                result[digest] = self._checked(digest, encoded)
        return result

    def _received(self, method: str, request: Any) -> Iterator[bytes]:
        """The Directories of an answer in batches."""
        for message in self._connection.receive(BATCHES, method, request):
            if not message.directories:
                raise Corrupt(f"{self._connection.url}: {method}: a message without Directories")
            yield from message.directories

    def _get_at_once(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        found = zip(digests, self._calls.map(self.get, digests), strict=True)
        return {digest: directory for digest, directory in found if directory is not None}

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        closure = RootToLeaves(check_digest(digest))
        empty = True
        try:
            for encoded in self._closure(digest):
                empty = False
                try:
                    yield closure.add(encoded)
                except InvalidRequest as error:
                    raise Corrupt(
                        f"{self._named(digest)}: the server's answer is no closure: {error}"
                    ) from error
        except NotFound as error:
            if empty:
                return
            raise directory_not_found_below(digest, error) from error
        if empty:
            return
        try:
            closure.close()
        except InvalidRequest as error:
            raise Corrupt(f"{self._named(digest)}: the server's answer is no closure: {error}") from error

    def _closure(self, digest: Digest) -> Generator[bytes, None, None]:
        """The encodings of a closure as the server sends them."""
        if self._connection.offers(BATCHES):
            request = rpc_batch_pb2.GetClosureRequest(digest=digest)
            try:
                yield from self._received("GetClosure", request)
                return
            except NotOffered:
                self._connection.lacks(BATCHES)
        standard = rpc_directory_pb2.GetDirectoryRequest(digest=digest, recursive=True)
        yield from self._connection.receive(DIRECTORIES, "Get", standard, raw=True)

    # Putting.

    def put(self, directory: Directory) -> Digest:
        upload = self._connection.upload(DIRECTORIES, "Put", raw=True)
        try:
            upload.send(directory.encode())
            self._check_root(directory.digest, upload.finish().root_digest)
        finally:
            upload.cancel()
        return directory.digest

    def _check_root(self, digest: Digest, answer: bytes) -> None:
        if answer != digest:
            raise Corrupt(f"{self._named(digest)} arrived at the server as another")

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        return _Putter(self, limits)

    def put_closure(self, encoded: Iterable[bytes], root: Digest) -> None:
        """Sends a valid closure, leaves to root. It is read once more if the server has no batches."""
        if not has_batches(self._connection):
            upload = self._connection.upload(DIRECTORIES, "Put", raw=True)
            messages: Iterable[Any] = encoded
        else:
            upload = self._connection.upload(BATCHES, "PutClosure")
            messages = _messages(encoded)
        try:
            for message in messages:
                upload.send(message)
            self._check_root(root, upload.finish().root_digest)
        finally:
            upload.cancel()

    # Care.

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        # A limit of 0 would mean the server's own; asked nevertheless, for the permission.
        request = rpc_admin_pb2.ListRequest(after=after, limit=max(limit, 1))
        run = administer(self._connection, "list Directories", "ListDirectories", request).digests
        return listed(self._connection, run, after)[:limit]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        self._ahead.clear()
        return delete_in_parts(self._connection, "delete Directories", "DeleteDirectories", digests)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._calls.close()
        self._connection.close()


def directory_not_found_below(root: Digest, error: NotFound) -> NotFound:
    """The error for a closure of which the server has only a part."""
    return NotFound(f"the closure of Directory {format_digest(root)} is not complete: {error}")


def _messages(directories: Iterable[bytes]) -> Iterator[rpc_batch_pb2.Directories]:
    message = rpc_batch_pb2.Directories()
    size = 0
    for encoded in directories:
        # A long one goes alone: with others before it the message would be over the limit.
        if size and size + len(encoded) > _MESSAGE_BYTES:
            yield message
            message, size = rpc_batch_pb2.Directories(), 0
        message.directories.append(encoded)
        size += len(encoded)
        if size >= _MESSAGE_BYTES:
            yield message
            message, size = rpc_batch_pb2.Directories(), 0
    if size or message.directories:
        yield message


class _Putter(SpoolingPutter):
    """Sends the closure once it is known to be valid."""

    def __init__(self, service: GrpcDirectoryService, limits: ClosureLimits) -> None:
        super().__init__(limits)
        self._service = service
        self._last: Digest = b""

    def _keep(self, encoded: bytes, digest: Digest) -> None:
        self._last = digest
        super()._keep(encoded, digest)

    def _commit(self) -> None:
        self._service.put_closure((encoded for _, encoded in self._spooled()), self._last)


def open_grpc(address: Address) -> GrpcDirectoryService:
    """``grpc+unix:///socket``, ``grpc+http://host:port``, ``grpc+https://host:port``"""
    return GrpcDirectoryService(Connection.open(address))
