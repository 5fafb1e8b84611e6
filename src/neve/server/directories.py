"""DirectoryService over any backend. Directories pass as the bytes they are addressed by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

from neve.castore.digest import Digest, check_digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService, directory_not_found
from neve.castore.directory import Directory
from neve.errors import InvalidRequest, NeveError
from neve.proto.tvix.castore.protos import rpc_directory_pb2
from neve.server.blobs import check_writable
from neve.server.calls import Calls, Context
from neve.server.streams import cleared

_GROUP_BYTES = 1024 * 1024
_GROUP_DIRECTORIES = 512


class DirectoryHandlers:
    """The methods of DirectoryService, by their names in the protocol."""

    raw_requests = ("Put",)
    raw_responses = ("Get",)

    def __init__(self, directories: DirectoryService, calls: Calls, *, read_only: bool = False) -> None:
        self._directories = directories
        self._calls = calls
        self._read_only = read_only

    async def Get(  # noqa: N802
        self, request: rpc_directory_pb2.GetDirectoryRequest, context: Context
    ) -> None:
        if request.WhichOneof("by_what") is None:
            raise InvalidRequest("by_what is missing: no digest to get")
        digest = check_digest(request.digest)
        if not request.recursive:
            found = await self._calls.work(self._directories.get, digest)
            if found is None:
                raise directory_not_found(digest)
            await context.write(found.encode())
            return
        groups = grouped(self._directories.get_recursive_encoded(digest))
        async for group in self._calls.pull(groups):
            for encoded in group:
                await context.write(encoded)
                self._calls.moved(len(encoded))

    async def Put(  # noqa: N802
        self, requests: AsyncIterator[bytes], context: Context
    ) -> rpc_directory_pb2.PutDirectoryResponse:
        check_writable(self._read_only)
        upload = ClosureUpload(self._directories, self._calls)
        try:
            async for request in requests:
                await upload.add(request)
            await self._calls.received(context)
            root = await upload.finish()
        finally:
            await cleared(upload.end())
        return rpc_directory_pb2.PutDirectoryResponse(root_digest=root)


def grouped(directories: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Encodings in groups of about a megabyte. What came before an error is given out before it is raised."""
    group: list[bytes] = []
    size = 0
    failure: NeveError | None = None
    try:
        for encoded in directories:
            # A long one goes alone: with others before it the message would be over the limit.
            if group and size + len(encoded) > _GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(encoded)
            size += len(encoded)
            if size >= _GROUP_BYTES or len(group) >= _GROUP_DIRECTORIES:
                yield group
                group, size = [], 0
    except NeveError as error:
        failure = error
    if group:
        yield group
    if failure is not None:
        raise failure


class ClosureUpload:
    """A closure that is being received; nothing of it is visible before ``finish``."""

    def __init__(self, directories: DirectoryService, calls: Calls) -> None:
        self._directories = directories
        self._calls = calls
        self._limits = calls.limits.closure()
        self._count = 0
        self._group: list[bytes] = []
        self._group_bytes = 0
        self._putter: DirectoryPutter | None = None

    async def add(self, encoded: bytes) -> None:
        """Takes the next Directory. Raises ``InvalidRequest``, ``LimitExceeded``."""
        self._limits.check_bytes(len(encoded))
        self._limits.check_count(self._count)
        self._count += 1
        self._group.append(encoded)
        self._group_bytes += len(encoded)
        self._calls.moved(len(encoded))
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_DIRECTORIES:
            group, self._group, self._group_bytes = self._group, [], 0
            await self._calls.ingest(self._put, group)

    def _put(self, group: list[bytes]) -> None:
        if self._putter is None:
            self._putter = self._directories.put_multiple(self._limits)
        for encoded in group:
            self._putter.put(Directory.decode(encoded))

    async def finish(self) -> Digest:
        """The root's digest, once all are durable."""
        return await self._calls.commit(self._close)

    def _close(self) -> Digest:
        self._put(self._group)
        assert self._putter is not None
        return self._putter.close()

    async def end(self) -> None:
        """Gives up what was not finished."""
        self._group = []
        if self._putter is not None:
            await self._calls.ingest(self._putter.abandon)
