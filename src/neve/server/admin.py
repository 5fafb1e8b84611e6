"""AdminService over any backend, for those who have the permission, and its refusal for the others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from neve.castore.digest import DIGEST_SIZE, Digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.wire import fill_node_message, node_from_message
from neve.errors import Corrupt, InvalidRequest, NotFound, PermissionDenied
from neve.nix import store_path
from neve.nix.signing import Signature
from neve.proto.neve.admin.protos import rpc_admin_pb2 as messages
from neve.proto.tvix.castore.protos import castore_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2
from neve.server.blobs import check_writable
from neve.server.calls import Calls, Context
from neve.server.collection import gc_conclusion, rules_of
from neve.server.long_work import StopFlag, StopProgress, run_stoppable
from neve.server.telling import send_told
from neve.server.verification import verify_conclusion
from neve.store.check import verify_store
from neve.store.gc.collect import collect_garbage
from neve.store.nar_nodes import Nar
from neve.store.pathinfos.base import check_path_digest
from neve.store.services import Services
from neve.store.stats import collect_stats
from neve.store.wire import path_info_from_message, path_info_to_message

MAX_PAGE = 10_000
"""Most entries in one answer, and in one transaction of the backend."""

_PATH_INFOS_AT_ONCE = 1000
_PAGE_BYTES = 1024 * 1024
"""Path infos of about this many bytes go into one answer."""

_LONG_WORKS = 2
"""Verifications, collections and counts at once; each takes a thread and a core."""

PATH_SIZE = store_path.DIGEST_SIZE


class AdminHandlers:
    """The methods of AdminService, by their names in the protocol."""

    def __init__(self, services: Services, calls: Calls, *, read_only: bool = False) -> None:
        self._services = services
        self._calls = calls
        self._read_only = read_only
        self._long_works = asyncio.Semaphore(_LONG_WORKS)

    # Listing.

    async def ListBlobs(self, request: messages.ListRequest, _: Context) -> messages.ListResponse:  # noqa: N802
        after, limit = _position(request, DIGEST_SIZE)
        page = await self._calls.work(self._services.blobs.list, after, limit)
        return messages.ListResponse(digests=b"".join(page))

    async def ListDirectories(  # noqa: N802
        self, request: messages.ListRequest, _: Context
    ) -> messages.ListResponse:
        after, limit = _position(request, DIGEST_SIZE)
        page = await self._calls.work(self._services.directories.list, after, limit)
        return messages.ListResponse(digests=b"".join(page))

    async def ListPathInfos(  # noqa: N802
        self, request: messages.ListRequest, _: Context
    ) -> messages.ListPathInfosResponse:
        return await self._calls.work(self._list_path_infos, *_position(request, PATH_SIZE))

    def _list_path_infos(self, after: bytes, limit: int) -> messages.ListPathInfosResponse:
        """Less than there are where they are large, but one at least."""
        response = messages.ListPathInfosResponse()
        size = 0
        list_encoded = self._services.path_infos.list_encoded
        while limit and (page := list_encoded(after, min(limit, _PATH_INFOS_AT_ONCE))):
            for _, encoded in page:
                if isinstance(encoded, Corrupt):
                    raise encoded
                response.path_infos.add().ParseFromString(encoded)
                size += len(encoded)
                if size >= _PAGE_BYTES:
                    return response
            limit -= len(page)
            after = page[-1][0]
        return response

    # Deleting and keeping.

    async def DeleteBlobs(self, request: messages.DeleteRequest, _: Context) -> messages.DeleteResponse:  # noqa: N802
        return await self._delete(self._services.blobs.delete_many, request, DIGEST_SIZE)

    async def DeleteDirectories(  # noqa: N802
        self, request: messages.DeleteRequest, _: Context
    ) -> messages.DeleteResponse:
        return await self._delete(self._services.directories.delete_many, request, DIGEST_SIZE)

    async def DeletePathInfos(  # noqa: N802
        self, request: messages.DeleteRequest, _: Context
    ) -> messages.DeleteResponse:
        return await self._delete(self._services.path_infos.delete_many, request, PATH_SIZE)

    async def _delete(
        self, delete: Callable[[Sequence[bytes]], int], request: messages.DeleteRequest, size: int
    ) -> messages.DeleteResponse:
        check_writable(self._read_only)
        digests = split_run(request.digests, size, "digests")
        deleted = 0
        for start in range(0, len(digests), MAX_PAGE):
            deleted += await self._calls.commit(delete, digests[start : start + MAX_PAGE])
        return messages.DeleteResponse(deleted=deleted)

    async def Freshen(self, request: messages.FreshenRequest, _: Context) -> messages.FreshenResponse:  # noqa: N802
        check_writable(self._read_only)
        blobs = split_run(request.blobs, DIGEST_SIZE, "blobs")
        directories = split_run(request.directories, DIGEST_SIZE, "directories")
        missing = await self._calls.commit(self._freshen, blobs, directories)
        return messages.FreshenResponse(
            missing_blobs=[i for i, digest in enumerate(blobs) if digest in missing[0]],
            missing_directories=[i for i, digest in enumerate(directories) if digest in missing[1]],
        )

    def _freshen(
        self, blobs: Sequence[Digest], directories: Sequence[Digest]
    ) -> tuple[set[Digest], set[Digest]]:
        """Which blobs and which Directories are missing."""
        missing: set[Digest] = set()
        if blobs:
            with self._services.blobs.batch() as batch:
                missing.update(batch.keep_many(blobs))
                batch.commit()
        packs, service = self._services.packs, self._services.directories
        if packs is not None:
            return missing, set(packs.missing(DIRECTORIES, directories))
        return missing, set(service.freshen(directories))

    # Path infos.

    async def ReplacePathInfo(  # noqa: N802
        self, request: pathinfo_pb2.PathInfo, _: Context
    ) -> pathinfo_pb2.PathInfo:
        check_writable(self._read_only)
        return await self._calls.commit(self._replace, request)

    def _replace(self, message: pathinfo_pb2.PathInfo) -> pathinfo_pb2.PathInfo:
        path_info = path_info_from_message(message)
        return path_info_to_message(self._services.path_infos.put(path_info, replace=True))

    async def AddSignatures(  # noqa: N802
        self, request: messages.AddSignaturesRequest, _: Context
    ) -> pathinfo_pb2.PathInfo:
        check_writable(self._read_only)
        digest = check_path_digest(request.digest)
        signatures = [Signature(signature.name, signature.data) for signature in request.signatures]
        return path_info_to_message(
            await self._calls.commit(self._services.path_infos.add_signatures, digest, signatures)
        )

    async def Referrers(  # noqa: N802
        self, request: messages.ReferrersRequest, _: Context
    ) -> messages.ReferrersResponse:
        digest = check_path_digest(request.digest)
        found = await self._calls.work(self._services.path_infos.referrers, digest)
        return messages.ReferrersResponse(digests=b"".join(found))

    # The map of NARs.

    async def PutNar(self, request: messages.NarEntry, _: Context) -> messages.PutNarResponse:  # noqa: N802
        check_writable(self._read_only)
        _name, node = node_from_message(request.node)
        nar = Nar(request.nar_size, request.nar_sha256)
        file_sha256 = request.file_sha256 or None
        nar_nodes = self._services.nar_nodes
        await self._calls.commit(lambda: nar_nodes.put(node, nar, file_sha256=file_sha256))
        return messages.PutNarResponse()

    async def GetNarByHash(self, request: messages.GetNarByHashRequest, _: Context) -> messages.NarEntry:  # noqa: N802
        found = await self._calls.work(self._services.nar_nodes.node, request.sha256)
        if found is None:
            raise NotFound(f"no tree with the NAR {request.sha256.hex()} is known")
        entry = messages.NarEntry(nar_size=found[1])
        fill_node_message(entry.node, b"", found[0])
        return entry

    async def GetNarByNode(self, request: castore_pb2.Node, _: Context) -> messages.NarEntry:  # noqa: N802
        _name, node = node_from_message(request)
        nar = await self._calls.work(self._services.nar_nodes.nar, node)
        if nar is None:
            raise NotFound("the NAR of this tree is not known")
        return messages.NarEntry(node=request, nar_size=nar.size, nar_sha256=nar.sha256)

    # The whole store.

    async def Stats(self, _request: messages.StatsRequest, _: Context) -> messages.StatsResponse:  # noqa: N802
        def counted(stop: StopFlag) -> messages.StatsResponse:
            stats = collect_stats(self._services, StopProgress(stop))
            return messages.StatsResponse(**dataclasses.asdict(stats))

        async with self._long_works:
            return await run_stoppable(self._calls, counted)

    async def Verify(self, request: messages.VerifyRequest, context: Context) -> None:  # noqa: N802
        await send_told(
            self._calls,
            self._long_works,
            context,
            messages.VerifyResponse,
            lambda told: verify_store(self._services, told, nar_hashes=request.nar_hashes),
            verify_conclusion,
        )

    async def Gc(self, request: messages.GcRequest, context: Context) -> None:  # noqa: N802
        check_writable(self._read_only)
        rules = rules_of(request)
        await send_told(
            self._calls,
            self._long_works,
            context,
            messages.GcResponse,
            lambda told: collect_garbage(self._services, rules, told),
            gc_conclusion,
        )


class NoAdministration:
    """Refuses every method of AdminService: for addresses that everyone may connect to."""

    def __init__(self) -> None:
        for method in messages.DESCRIPTOR.services_by_name["AdminService"].methods:
            setattr(self, method.name, _refuse)


async def _refuse(_request: Any, _: Context) -> NoReturn:
    raise PermissionDenied(
        "administration is not allowed on this address; connect to one given with --admin-listen"
    )


def split_run(run: bytes, size: int, what: str) -> list[bytes]:
    """The digests of ``size`` bytes each that stand one behind the other. Raises ``InvalidRequest``."""
    if len(run) % size:
        raise InvalidRequest(f"{what} has {len(run)} bytes, must have a multiple of {size}")
    return [run[start : start + size] for start in range(0, len(run), size)]


def _position(request: messages.ListRequest, size: int) -> tuple[bytes, int]:
    """After what a page begins, and how long it may be."""
    if len(request.after) > size:
        raise InvalidRequest(f"after has {len(request.after)} bytes, digests have {size}")
    return request.after, min(request.limit or MAX_PAGE, MAX_PAGE)
