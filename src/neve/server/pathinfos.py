"""PathInfoService over any backend."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from functools import partial

from neve.castore.closure import possible_sizes
from neve.castore.digest import format_digest
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.castore.wire import node_from_message
from neve.errors import InvalidRequest, LimitExceeded, PermissionDenied, Unavailable, Unsupported
from neve.proto.tvix.castore.protos import castore_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2, rpc_pathinfo_pb2
from neve.server.blobs import check_writable
from neve.server.calls import Calls, Context
from neve.server.long_work import StopFlag, run_stoppable
from neve.store.nar_nodes import Nar, known_nar
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import check_path_digest, path_not_found
from neve.store.services import Services
from neve.store.wire import encode_path_info, path_info_from_message, path_info_to_message
from neve.telemetry import LOGGER

_RENDERINGS = 2
"""NARs that are rendered at once, of the small ones and of the others, and trees that are measured; each
takes a thread and a core."""

_SMALL_NAR_BYTES = 256 * 1024 * 1024
"""Such do not wait behind those that take minutes."""

_GROUP_BYTES = 256 * 1024
_GROUP_PATH_INFOS = 256


class PathInfoHandlers:
    """The methods of PathInfoService, by their names in the protocol."""

    raw_responses = ("List",)

    def __init__(self, services: Services, calls: Calls, *, read_only: bool = False) -> None:
        self._services = services
        self._calls = calls
        self._read_only = read_only
        self._measuring = asyncio.Semaphore(_RENDERINGS)
        self._small = asyncio.Semaphore(_RENDERINGS)
        self._large = asyncio.Semaphore(_RENDERINGS)

    async def Get(  # noqa: N802
        self, request: rpc_pathinfo_pb2.GetPathInfoRequest, _: Context
    ) -> pathinfo_pb2.PathInfo:
        if request.WhichOneof("by_what") is None:
            raise Unsupported("by_what is missing, and there is no other way to ask: by_output_hash")
        digest = check_path_digest(request.by_output_hash)
        path_infos = self._services.path_infos
        run = self._calls.fetch if path_infos.may_fetch else self._calls.work
        found = await run(path_infos.get, digest)
        if found is None:
            raise path_not_found(digest)
        return path_info_to_message(found)

    async def Put(self, request: pathinfo_pb2.PathInfo, _: Context) -> pathinfo_pb2.PathInfo:  # noqa: N802
        check_writable(self._read_only)
        return await self._calls.commit(self._put, request)

    def _put(self, message: pathinfo_pb2.PathInfo) -> pathinfo_pb2.PathInfo:
        return path_info_to_message(self._services.path_infos.put(path_info_from_message(message)))

    async def CalculateNAR(  # noqa: N802
        self, request: castore_pb2.Node, _: Context
    ) -> rpc_pathinfo_pb2.CalculateNARResponse:
        _name, node = node_from_message(request)
        nar = await self._calls.work(known_nar, self._services.nar_nodes, node)
        if nar is None:
            # A file is measured at once; a tree of millions of Directories takes a minute.
            async with self._measuring if isinstance(node, DirectoryNode) else contextlib.nullcontext():
                size = await run_stoppable(self._calls, partial(self._measured, node))
            async with self._small if size <= _SMALL_NAR_BYTES else self._large:
                nar = await run_stoppable(self._calls, partial(self._calculate, node))
        return rpc_pathinfo_pb2.CalculateNARResponse(nar_size=nar.size, nar_sha256=nar.sha256)

    def _calculate(self, node: Node, stop: StopFlag) -> Nar:
        services = self._services
        if services.remote is not None:
            return services.nar_calculation.calculate_nar(node)
        if (known := known_nar(services.nar_nodes, node)) is not None:
            return known  # Rendered for another call while this one waited.
        nar = self._render(node, stop)
        try:
            services.nar_nodes.put(node, nar)
        except (PermissionDenied, Unavailable) as error:
            # A store that is open read-only, or a full disk: the answer is right all the same.
            LOGGER.debug("the NAR hash of a tree cannot be remembered: %s", error)
        return nar

    def _measured(self, node: Node, stop: StopFlag) -> int:
        """The NAR's size. A small tree can have a NAR of which no one will ever see the end, so this comes
        first. Raises ``LimitExceeded``, and ``InvalidRequest`` if the node is not that of what is stored."""
        if self._services.remote is not None:
            return 0  # Whoever renders it has to look after that.
        self._check_size(node)
        size, limit = self._services.renderer.size(node, stop.check), self._calls.limits.max_nar_bytes
        if size > limit:
            raise LimitExceeded(f"the NAR has {size} bytes, over the limit of {limit} (max_nar_bytes)")
        return size

    def _check_size(self, node: Node) -> None:
        """What a stored node says must be right; what a client says may be anything."""
        if isinstance(node, FileNode):
            chunks = self._services.blobs.chunks(node.digest)
            found = None if chunks is None else [sum(chunk.size for chunk in chunks)]
        elif isinstance(node, DirectoryNode):
            directory = self._services.directories.get(node.digest)
            found = None if directory is None else possible_sizes(directory)
        else:
            return
        if found is not None and node.size not in found:
            raise InvalidRequest(
                f"the node says size {node.size}, {format_digest(node.digest)} in the store has {found[0]}"
            )

    def _render(self, node: Node, stop: StopFlag) -> Nar:
        size = 0
        hasher = hashlib.sha256()
        for piece in self._services.renderer.stream(node):
            stop.check()
            hasher.update(piece)
            size += len(piece)
        return Nar(size, hasher.digest())

    async def List(  # noqa: N802
        self, _request: rpc_pathinfo_pb2.ListPathInfoRequest, context: Context
    ) -> None:
        async for group in self._calls.pull(_groups(self._services.path_infos)):
            for encoded in group:
                await context.write(encoded)
                self._calls.moved(len(encoded))


def _groups(path_infos: Iterable[PathInfo]) -> Iterator[list[bytes]]:
    """Encoded path infos, as many as a thread makes in one go."""
    group: list[bytes] = []
    size = 0
    for path_info in path_infos:
        encoded = encode_path_info(path_info)
        group.append(encoded)
        size += len(encoded)
        if size >= _GROUP_BYTES or len(group) >= _GROUP_PATH_INFOS:
            yield group
            group, size = [], 0
    if group:
        yield group
