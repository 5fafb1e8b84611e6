"""NarNodes: which stored tree has which NAR, in both directions.

From the sha256 of a NAR (or of a compressed file that holds one) to the tree, so that the same NAR is
not fetched or taken in twice; and from a tree to its NAR's hash and size, so that it is computed once.
Both are facts about contents: an entry never changes.
"""

from __future__ import annotations

import struct
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directories.local import DIRECTORIES
from neve.castore.node import MAX_SIZE, DirectoryNode, FileNode, Node
from neve.errors import Corrupt, InvalidRequest, Unsupported
from neve.packstore.frames import Record
from neve.packstore.store import PackStore, Table
from neve.store.wire import decode_node, encode_node
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from neve.store.small_files import SmallFiles

NAR_NODES = Table(4, "nar-nodes")

BY_HASH, BY_NODE = b"h", b"n"
"""What keys begin with: before the sha256 of a NAR or file, and before the BLAKE3 of an encoded node."""

_TAG = 1
_SIZE = struct.Struct("<Q")


class Nar(NamedTuple):
    """Size in bytes and sha256 (32 bytes) of a NAR."""

    size: int
    sha256: bytes


class NarNodes(ABC):
    """The map. Thread-safe; an entry is durable when ``put`` returns.

    It outlives what it tells of: a tree that it names may have been deleted from the store since.
    Hashes of another length than 32 bytes are an ``InvalidRequest``.
    """

    is_ours = True
    """Whether what it tells was computed on our side, and is not the word of a server."""

    @abstractmethod
    def put(self, node: Node, nar: Nar, *, file_sha256: bytes | None = None) -> None:
        """Remembers the NAR of ``node``, which the caller has computed itself; ``file_sha256`` is the
        hash of a compressed file that holds it."""

    def put_many(self, entries: Sequence[tuple[Node, Nar]]) -> None:
        """Puts entries, durable on return."""
        for node, nar in entries:
            self.put(node, nar)

    @abstractmethod
    def node(self, sha256: bytes) -> tuple[Node, int] | None:
        """The tree of the NAR (or file) with this sha256, and the NAR's size in bytes."""

    @abstractmethod
    def nar(self, node: Node) -> Nar | None:
        """The NAR of this tree, if it is known."""

    def list_hashes(self, after: bytes = b"", limit: int = 1000) -> Sequence[bytes]:
        """Up to ``limit`` sha256 above ``after``, ascending, for which ``node`` tells something. May be
        ``Unsupported``."""
        raise Unsupported(f"{type(self).__name__} cannot list its entries")

    def small_files(self) -> SmallFiles | None:
        """What a binary cache keeps beside store paths, where something else can lie beside the map. To be
        used until that is closed."""
        return None

    def close(self) -> None:
        """Lets go of files and connections. Can be called again."""
        return


class MemoryNarNodes(NarNodes):
    """Holds the map for as long as it lives."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, tuple[Node, int]] = {}
        self._nars: dict[Node, Nar] = {}
        self._lock = threading.Lock()

    def put(self, node: Node, nar: Nar, *, file_sha256: bytes | None = None) -> None:
        hashes = check_nar(nar, file_sha256)
        with self._lock:
            self._nars.setdefault(node, nar)
            for sha256 in hashes:
                self._nodes.setdefault(sha256, (node, nar.size))

    def node(self, sha256: bytes) -> tuple[Node, int] | None:
        return self._nodes.get(check_nar_hash(sha256))

    def nar(self, node: Node) -> Nar | None:
        return self._nars.get(node)

    def list_hashes(self, after: bytes = b"", limit: int = 1000) -> Sequence[bytes]:
        with self._lock:
            hashes = sorted(self._nodes)
        start = bisect_right(hashes, after)
        return hashes[start : start + limit]


class LocalNarNodes(NarNodes):
    """The map in the embedded store. Owns one use of ``store``."""

    def __init__(self, store: PackStore) -> None:
        self._store = store
        self._closed = False

    @property
    def store(self) -> PackStore:
        """The embedded store, in which other tables may lie beside this one."""
        return self._store

    def put(self, node: Node, nar: Nar, *, file_sha256: bytes | None = None) -> None:
        self._put(_records(node, nar, file_sha256), [node])

    def put_many(self, entries: Sequence[tuple[Node, Nar]]) -> None:
        records = [record for node, nar in entries for record in _records(node, nar, None)]
        self._put(records, [node for node, _ in entries])

    def _put(self, records: Sequence[Record], nodes: Sequence[Node]) -> None:
        by_key = {record.key: record for record in records}
        absent = self._store.missing(NAR_NODES, list(by_key))
        if len(absent) < len(by_key) and not self._are_there(nodes):
            # A collection may just be dropping what the map knows of a tree that was gone, and is being put.
            absent = list(by_key)
        if absent:
            with self._store.writer.session() as session:
                self._store.stage(NAR_NODES, [by_key[key] for key in absent], session)
                self._store.writer.commit(session)

    def _are_there(self, nodes: Sequence[Node]) -> bool:
        """Whether the store has the trees, and not only what was staged of them."""
        for table, kind in ((BLOBS, FileNode), (DIRECTORIES, DirectoryNode)):
            digests = {node.digest for node in nodes if isinstance(node, kind)} - {EMPTY_BLOB}
            if len(self._store.find(table, list(digests))) < len(digests):
                return False
        return True

    def node(self, sha256: bytes) -> tuple[Node, int] | None:
        data = self._store.get(NAR_NODES, BY_HASH + check_nar_hash(sha256))
        if data is None:
            return None
        try:
            return decode_nar_node(data), _SIZE.unpack_from(data)[0]
        except InvalidRequest as error:
            raise Corrupt(f"the stored tree of NAR {sha256.hex()} is invalid: {error}") from error

    def nar(self, node: Node) -> Nar | None:
        data = self._store.get(NAR_NODES, BY_NODE + b3_digest(encode_node(node)))
        return None if data is None else Nar(_SIZE.unpack_from(data)[0], data[_SIZE.size :])

    def list_hashes(self, after: bytes = b"", limit: int = 1000) -> Sequence[bytes]:
        page = self._store.page(NAR_NODES, BY_HASH + after, limit)
        return [key[1:] for key, _ in page if key.startswith(BY_HASH)]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()


def known_nar(nar_nodes: NarNodes, node: Node) -> Nar | None:
    """What ``nar_nodes.nar`` tells, for who can find it out himself: nothing, if that is damaged."""
    try:
        return nar_nodes.nar(node)
    except Corrupt as error:
        LOGGER.warning("the NAR hash of a tree is computed anew: %s", error)
        return None


def known_node(nar_nodes: NarNodes, sha256: bytes) -> tuple[Node, int] | None:
    """What ``nar_nodes.node`` tells, for who can find it out himself: nothing, if that is damaged."""
    try:
        return nar_nodes.node(sha256)
    except Corrupt as error:
        LOGGER.warning("the tree of a NAR is not known: %s", error)
        return None


def decode_nar_node(data: bytes) -> Node:
    """The tree in a record whose key begins with ``BY_HASH``. Raises ``InvalidRequest``."""
    return decode_node(data[_SIZE.size :])[1]


def _records(node: Node, nar: Nar, file_sha256: bytes | None) -> list[Record]:
    return [Record(_TAG, key, data) for key, data in nar_records(node, nar, file_sha256)]


def nar_records(node: Node, nar: Nar, file_sha256: bytes | None) -> list[tuple[bytes, bytes]]:
    """Keys and data of an entry, for engines that know nothing else. Raises ``InvalidRequest``."""
    hashes = check_nar(nar, file_sha256)
    encoded = encode_node(node)
    size = _SIZE.pack(nar.size)
    by_node = BY_NODE + b3_digest(encoded), size + nar.sha256
    return [by_node, *((BY_HASH + sha256, size + encoded) for sha256 in hashes)]


def check_nar(nar: Nar, file_sha256: bytes | None) -> list[bytes]:
    """The hashes to remember a NAR by. Raises ``InvalidRequest``, also if its size is out of range."""
    if not 0 <= nar.size <= MAX_SIZE:
        raise InvalidRequest(f"NAR size {nar.size} does not fit 64 bits")
    return [check_nar_hash(sha256) for sha256 in (nar.sha256, file_sha256) if sha256 is not None]


def check_nar_hash(sha256: bytes) -> bytes:
    """Returns ``sha256`` if it has 32 bytes, else raises ``InvalidRequest`` with the length it has."""
    if len(sha256) != 32:
        raise InvalidRequest(f"NAR hash has {len(sha256)} bytes, must have 32")
    return sha256
