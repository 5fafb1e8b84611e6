"""What a server does for a store as a whole: its administration, its map of NARs, its NAR hashes.

Administration is ours (``neve.admin.v1``), other servers do not have it, and a daemon offers it on the
addresses it is told to only. What can be done without it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from neve.castore.node import Node
from neve.castore.wire import fill_node_message, node_from_message, node_to_message
from neve.errors import Corrupt, InvalidRequest, NotFound, PermissionDenied
from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.tvix.store.protos import rpc_pathinfo_pb2
from neve.registry import Address
from neve.rpc.channel import Connection, NotOffered
from neve.store.nar.render import NarCalculation
from neve.store.nar_nodes import MemoryNarNodes, Nar, NarNodes, check_nar, check_nar_hash
from neve.telemetry import LOGGER

T = TypeVar("T")

ADMIN_SERVICE = rpc_admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
PATH_INFO_SERVICE = rpc_pathinfo_pb2.DESCRIPTOR.services_by_name["PathInfoService"]

LONG_TIMEOUT = 3600.0
"""Seconds for calls after which the server reads a whole tree or index before it answers."""


class RemoteAdmin:
    """The administration of one server. Owns one use of ``connection``. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.url = connection.url
        self._is_refused = False
        self._closed = False

    @property
    def may_be_offered(self) -> bool:
        """False once a call has shown that the server does not let us administer it."""
        return self.connection.offers(ADMIN_SERVICE) and not self._is_refused

    def call(self, name: str, request: Any, what: str, *, timeout: float | None = None) -> Any:
        """The answer of a method. Raises what the server answers; ``NotOffered``, which names the server
        and ``what`` it cannot do, if it has no administration; ``PermissionDenied``."""
        try:
            return self.connection.call(ADMIN_SERVICE, name, request, timeout=timeout)
        except NotOffered as error:
            raise self._not_offered(what) from error

    def verify(self, *, nar_hashes: bool) -> Iterator[rpc_admin_pb2.VerifyResponse]:
        """Lets the server verify itself; gives its messages. Raises like ``call``."""
        request = rpc_admin_pb2.VerifyRequest(nar_hashes=nar_hashes)
        try:
            yield from self.connection.receive(ADMIN_SERVICE, "Verify", request)
        except NotOffered as error:
            raise self._not_offered("verify itself") from error

    def gc(self, request: rpc_admin_pb2.GcRequest) -> Iterator[rpc_admin_pb2.GcResponse]:
        """Lets the server collect its store; gives its messages. Raises like ``call``."""
        try:
            yield from self.connection.receive(ADMIN_SERVICE, "Gc", request)
        except NotOffered as error:
            raise self._not_offered("collect its store") from error

    def _not_offered(self, what: str) -> NotOffered:
        self.connection.lacks(ADMIN_SERVICE)
        return NotOffered(f"{self.url} cannot {what}: only the administration address of a neve daemon can")

    def unless_refused(self, ask: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """``ask`` where the server lets us administer it, else ``otherwise``; finds out by the first
        call. For calls that change nothing: a server that is read-only refuses the others to everyone."""
        if self.may_be_offered:
            try:
                return ask()
            except (NotOffered, PermissionDenied) as error:
                LOGGER.debug("doing without administration: %s", error)
                self._is_refused = True
        return otherwise()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.connection.close()


class GrpcNarCalculation(NarCalculation):
    """NAR hashes as a server computes and remembers them; ``otherwise`` is for servers that do not."""

    def __init__(self, connection: Connection, otherwise: NarCalculation) -> None:
        self._connection = connection
        self._otherwise = otherwise

    def calculate_nar(self, node: Node) -> Nar:
        try:
            return calculated_nar(self._connection, node)
        except NotOffered as error:
            LOGGER.debug("rendering the NAR here: %s", error)
            return self._otherwise.calculate_nar(node)


class GrpcNarNodes(NarNodes):
    """The map of NARs of a server. Owns ``admin``.

    The map only saves work, so where the server does not let us have it, one in memory takes its place.
    """

    is_ours = False

    def __init__(self, admin: RemoteAdmin) -> None:
        self._admin = admin
        self._memory = MemoryNarNodes()
        self._takes_entries = True

    def put(self, node: Node, nar: Nar, *, file_sha256: bytes | None = None) -> None:
        check_nar(nar, file_sha256)
        if self._takes_entries and self._admin.may_be_offered:
            entry = rpc_admin_pb2.NarEntry(
                nar_size=nar.size, nar_sha256=nar.sha256, file_sha256=file_sha256 or b""
            )
            fill_node_message(entry.node, b"", node)
            try:
                self._admin.call("PutNar", entry, "remember NARs")
                return
            except (NotOffered, PermissionDenied) as error:
                LOGGER.debug("remembering NARs in memory: %s", error)
                self._takes_entries = False
        self._memory.put(node, nar, file_sha256=file_sha256)

    def node(self, sha256: bytes) -> tuple[Node, int] | None:
        request = rpc_admin_pb2.GetNarByHashRequest(sha256=check_nar_hash(sha256))
        entry = self._entry("GetNarByHash", request)
        if entry is None:
            return self._memory.node(sha256)
        try:
            return node_from_message(entry.node)[1], entry.nar_size
        except InvalidRequest as error:
            raise Corrupt(f"{self._admin.url}: GetNarByHash: the answer is invalid: {error}") from error

    def nar(self, node: Node) -> Nar | None:
        entry = self._entry("GetNarByNode", node_to_message(b"", node))
        if entry is None:
            return self._memory.nar(node)
        return Nar(entry.nar_size, received_sha256(entry.nar_sha256, f"{self._admin.url}: GetNarByNode"))

    def _entry(self, name: str, request: Any) -> rpc_admin_pb2.NarEntry | None:
        def ask() -> rpc_admin_pb2.NarEntry | None:
            try:
                entry: rpc_admin_pb2.NarEntry = self._admin.call(name, request, "tell NARs")
                return entry
            except NotFound:
                return None

        return self._admin.unless_refused(ask, lambda: None)

    def close(self) -> None:
        self._admin.close()


def calculated_nar(connection: Connection, node: Node) -> Nar:
    """The NAR as the server computes it. Raises ``NotFound``, ``NotOffered``."""
    # Without a name: newer servers insist.
    request = node_to_message(b"", node)
    answer = connection.call(PATH_INFO_SERVICE, "CalculateNAR", request, timeout=LONG_TIMEOUT)
    return Nar(answer.nar_size, received_sha256(answer.nar_sha256, f"{connection.url}: CalculateNAR"))


def received_sha256(digest: bytes, where: str) -> bytes:
    """``digest`` if it has 32 bytes. Raises ``Corrupt`` naming ``where`` it came from."""
    if len(digest) != 32:
        raise Corrupt(f"{where}: the NAR hash in the answer has {len(digest)} bytes, must have 32")
    return digest


def open_admin(address: Address) -> RemoteAdmin:
    """The administration of the server at an address. Raises as ``Connection.open`` does."""
    return RemoteAdmin(Connection.open(address))
