"""Path infos on a server. What it answers is checked before anyone sees it."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TypeVar

from neve.castore.ages import refuse_ages
from neve.errors import Corrupt, InvalidRequest, NotFound, PermissionDenied
from neve.nix import base32
from neve.nix.signing import Signature
from neve.nix.store_path import DIGEST_SIZE
from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2, rpc_pathinfo_pb2
from neve.registry import Address
from neve.rpc.channel import Connection, NotOffered
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest
from neve.store.remote import PATH_INFO_SERVICE, RemoteAdmin, calculated_nar
from neve.store.wire import decode_path_info, decode_path_name, path_info_from_message, path_info_to_message
from neve.telemetry import LOGGER

T = TypeVar("T")

_PAGE = 1000
_MAX_DIGESTS = 10_000
"""Most digests in one message."""


class GrpcPathInfoService(PathInfoService):
    """Path infos of one server. Owns one use of ``connection``.

    Deleting, replacing and telling referrers need the administration address of a neve daemon. Without
    it a page of ``list`` costs the whole listing, because a server may stream it in any order.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admin = RemoteAdmin(connection)

    def get(self, digest: bytes) -> PathInfo | None:
        request = rpc_pathinfo_pb2.GetPathInfoRequest(by_output_hash=check_path_digest(digest))
        try:
            message = self._connection.call(PATH_INFO_SERVICE, "Get", request)
        except NotFound:
            return None
        return self._expected(message, digest, "Get")

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        if path_info.nar is None:
            path_info = self._filled(path_info)
        message = path_info_to_message(path_info)
        if replace:
            name = "ReplacePathInfo"
            answer = self._admin.call(name, message, "replace a path info")
        else:
            name = "Put"
            answer = self._connection.call(PATH_INFO_SERVICE, name, message)
        return self._stored(answer, path_info, name)

    def _filled(self, path_info: PathInfo) -> PathInfo:
        """With what is known of the NAR, since newer servers refuse one without. It is the server that
        computes it and knows the references' names; if it cannot, it gets the path info as it is."""
        names = {path_info.digest: path_info.store_path}
        for digest in path_info.references:
            if digest not in names:
                if (found := self.get(digest)) is None:
                    return path_info
                names[digest] = found.store_path
        try:
            nar = calculated_nar(self._connection, path_info.node)
        except (NotFound, NotOffered, PermissionDenied) as error:
            LOGGER.debug("%s is sent without its NAR's hash: %s", path_info.store_path, error)
            return path_info
        references = tuple(names[digest] for digest in path_info.references)
        return dataclasses.replace(
            path_info, nar=NarDetails(size=nar.size, sha256=nar.sha256, reference_names=references)
        )

    def list(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[PathInfo]:
        return self._admin.unless_refused(
            lambda: self._page(after, limit), lambda: self._smallest(after, limit)
        )

    def list_encoded(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        return self._admin.unless_refused(
            lambda: self._messages(after, limit, self._encoded),
            lambda: super(GrpcPathInfoService, self).list_encoded(after, limit),
        )

    def lists_in_pages(self) -> bool:
        return self._admin.unless_refused(lambda: self._page(b"", 1) is not None, lambda: False)

    def _encoded(self, message: pathinfo_pb2.PathInfo) -> tuple[bytes, bytes]:
        encoded = message.SerializeToString(deterministic=True)
        try:
            return decode_path_name(encoded).digest, encoded
        except InvalidRequest as error:
            raise self._invalid("ListPathInfos", error) from error

    def _page(self, after: bytes, limit: int) -> Sequence[PathInfo]:
        def decoded(message: pathinfo_pb2.PathInfo) -> tuple[bytes, PathInfo]:
            path_info = self._valid(message, "ListPathInfos")
            return path_info.digest, path_info

        return [path_info for _, path_info in self._messages(after, limit, decoded)]

    def _messages(
        self, after: bytes, limit: int, read: Callable[[pathinfo_pb2.PathInfo], tuple[bytes, T]]
    ) -> Sequence[tuple[bytes, T]]:
        """What ``read`` makes of the messages of a page, each by its digest."""
        found: list[tuple[bytes, T]] = []
        while len(found) < limit:
            wanted = min(limit - len(found), _MAX_DIGESTS)
            request = rpc_admin_pb2.ListRequest(after=after, limit=wanted)
            page = self._admin.call("ListPathInfos", request, "list path infos in pages").path_infos
            if not page:
                break
            for message in page[:wanted]:
                digest, one = read(message)
                if digest <= after:
                    raise Corrupt(f"{self._connection.url}: ListPathInfos: the answer is not in order")
                found.append((digest, one))
                after = digest
        return found

    def _smallest(self, after: bytes, limit: int) -> Sequence[PathInfo]:
        above = (path_info for path_info in self if path_info.digest > after)
        return heapq.nsmallest(limit, above, key=attrgetter("digest"))

    def __iter__(self) -> Iterator[PathInfo]:
        """All path infos as the server streams them. Whoever is slow to take them must expect that
        the server ends the stream."""
        request = rpc_pathinfo_pb2.ListPathInfoRequest()
        for encoded in self._connection.receive(PATH_INFO_SERVICE, "List", request, raw=True):
            try:
                path_info = decode_path_info(encoded)
            except InvalidRequest as error:
                raise self._invalid("List", error) from error
            yield path_info

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        refuse_ages(self, unused_for)
        for digest in digests:
            check_path_digest(digest)
        deleted = 0
        for start in range(0, len(digests), _MAX_DIGESTS):
            request = rpc_admin_pb2.DeleteRequest(digests=b"".join(digests[start : start + _MAX_DIGESTS]))
            deleted += self._admin.call("DeletePathInfos", request, "delete path infos").deleted
        return deleted

    def add_signatures(self, digest: bytes, signatures: Sequence[Signature]) -> PathInfo:
        check_path_digest(digest)
        if self._admin.may_be_offered:
            request = rpc_admin_pb2.AddSignaturesRequest(
                digest=digest, signatures=_signature_messages(signatures)
            )
            try:
                message = self._admin.call("AddSignatures", request, "add signatures")
            except (NotOffered, PermissionDenied) as error:
                LOGGER.debug("adding signatures by putting the path info again: %s", error)
            else:
                return self._expected(message, digest, "AddSignatures")
        return super().add_signatures(digest, signatures)

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        request = rpc_admin_pb2.ReferrersRequest(digest=check_path_digest(digest))
        run: bytes = self._admin.call("Referrers", request, "tell referrers").digests
        if len(run) % DIGEST_SIZE:
            raise Corrupt(
                f"{self._connection.url}: Referrers: the answer has {len(run)} bytes, "
                f"must have a multiple of {DIGEST_SIZE}"
            )
        return [run[start : start + DIGEST_SIZE] for start in range(0, len(run), DIGEST_SIZE)]

    def close(self) -> None:
        self._admin.close()

    # What the server answers.

    def _valid(self, message: pathinfo_pb2.PathInfo, call: str) -> PathInfo:
        try:
            return path_info_from_message(message)
        except InvalidRequest as error:
            raise self._invalid(call, error) from error

    def _invalid(self, call: str, error: InvalidRequest) -> Corrupt:
        return Corrupt(f"{self._connection.url}: {call}: the path info in the answer is invalid: {error}")

    def _expected(self, message: pathinfo_pb2.PathInfo, digest: bytes, call: str) -> PathInfo:
        path_info = self._valid(message, call)
        if path_info.digest != digest:
            raise Corrupt(
                f"{self._connection.url}: {call}: the answer is about {path_info.store_path}, "
                f"asked for was {base32.encode(digest)}"
            )
        return path_info

    def _stored(self, message: pathinfo_pb2.PathInfo, given: PathInfo, call: str) -> PathInfo:
        stored = self._valid(message, call)
        same_nar = given.nar is None or (
            stored.nar is not None
            and (stored.nar.size, stored.nar.sha256) == (given.nar.size, given.nar.sha256)
        )
        if stored.store_path != given.store_path or stored.node != given.node or not same_nar:
            raise Corrupt(
                f"{self._connection.url}: {call}: {given.store_path} was given, "
                f"and the answer is about {stored.store_path} or other contents"
            )
        return stored


def _signature_messages(signatures: Iterable[Signature]) -> Iterator[pathinfo_pb2.NARInfo.Signature]:
    return (pathinfo_pb2.NARInfo.Signature(name=one.name, data=one.data) for one in signatures)


def open_grpc(address: Address) -> GrpcPathInfoService:
    """``grpc+unix:///socket``, ``grpc+http://host:port``, ``grpc+https://host:port``"""
    return GrpcPathInfoService(Connection.open(address))
