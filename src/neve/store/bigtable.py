"""The map of NARs in a table of Bigtable, in a family of its own.

Other software that has the path infos in the same table reads every row of their family, and would take these
for damaged ones; rows that have nothing in that family it does not see. Keys begin with what the map begins
its keys with, a colon, and the digest in hex.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

from neve.bigtable.address import NAR_FAMILY, target_of
from neve.bigtable.messages import Row, Wanted
from neve.bigtable.table import BigTable
from neve.castore.digest import b3_digest
from neve.castore.node import Node
from neve.errors import Corrupt, InvalidRequest
from neve.registry import Address
from neve.store.nar_nodes import BY_HASH, BY_NODE, MemoryNarNodes, Nar, NarNodes, check_nar, check_nar_hash
from neve.store.wire import decode_node, encode_node

_SIZE = struct.Struct("<Q")
_SHA256 = 32
_PATTERN = rb"h:[0-9a-f]{64}"


class BigtableNarNodes(NarNodes):
    """The map in one family. Owns ``table``."""

    def __init__(self, table: BigTable) -> None:
        self._table = table

    def put(self, node: Node, nar: Nar, *, file_sha256: bytes | None = None) -> None:
        self._put(_rows(node, nar, file_sha256))

    def put_many(self, entries: Sequence[tuple[Node, Nar]]) -> None:
        self._put([row for node, nar in entries for row in _rows(node, nar, None)])

    def _put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Those that are there already stay, for an entry never changes, unless they are damaged."""
        different: dict[bytes, bytes] = {}
        for key, value in rows:
            different.setdefault(key, value)
        there = {row.key: _is_whole(row) for row in self._table.get(list(different))}
        self._table.insert_many([(key, different[key]) for key in different if key not in there])
        for key in (key for key, is_whole in there.items() if not is_whole):
            self._table.put(key, different[key])

    def node(self, sha256: bytes) -> tuple[Node, int] | None:
        value = self._value(_key(BY_HASH, check_nar_hash(sha256)))
        if value is None:
            return None
        try:
            return _tree(value)
        except (InvalidRequest, struct.error) as error:
            raise Corrupt(f"the stored tree of NAR {sha256.hex()} is invalid: {error}") from error

    def nar(self, node: Node) -> Nar | None:
        value = self._value(_key(BY_NODE, b3_digest(encode_node(node))))
        if value is None:
            return None
        if len(value) != _SIZE.size + _SHA256:
            raise Corrupt(
                f"the stored NAR of a tree has {len(value)} bytes, must have {_SIZE.size + _SHA256}"
            )
        return Nar(_SIZE.unpack_from(value)[0], value[_SIZE.size :])

    def _value(self, key: bytes) -> bytes | None:
        return next((row.cell.value for row in self._table.get([key])), None)

    def list_hashes(self, after: bytes = b"", limit: int = 1000) -> Sequence[bytes]:
        if limit <= 0:
            return []
        beginning = BY_HASH + b":"
        wanted = Wanted(
            after=_key(BY_HASH, after), before=BY_HASH + b";", pattern=_PATTERN, values=False, limit=limit
        )
        return [bytes.fromhex(row.key.removeprefix(beginning).decode()) for row in self._table.scan(wanted)]

    def close(self) -> None:
        self._table.close()


def _key(kind: bytes, digest: bytes) -> bytes:
    return kind + b":" + digest.hex().encode()


def _rows(node: Node, nar: Nar, file_sha256: bytes | None) -> list[tuple[bytes, bytes]]:
    hashes = check_nar(nar, file_sha256)
    encoded = encode_node(node)
    size = _SIZE.pack(nar.size)
    by_node = (_key(BY_NODE, b3_digest(encoded)), size + nar.sha256)
    return [by_node, *((_key(BY_HASH, sha256), size + encoded) for sha256 in hashes)]


def _tree(value: bytes) -> tuple[Node, int]:
    return decode_node(value[_SIZE.size :])[1], _SIZE.unpack_from(value)[0]


def _is_whole(row: Row) -> bool:
    """Whether it can be what the map tells."""
    try:
        value = row.cell.value
        if row.key.startswith(BY_NODE):
            return len(value) == _SIZE.size + _SHA256
        _tree(value)
    except (Corrupt, InvalidRequest, struct.error):
        return False
    return True


def open_nar_nodes(address: Address) -> NarNodes:
    """The map beside the path infos of an address; in memory, if that names no family for it, or is only
    read."""
    target = target_of(address, NAR_FAMILY)
    if target.nar_family is None or target.reads_only:
        return MemoryNarNodes()
    return BigtableNarNodes(BigTable(dataclasses.replace(target, family=target.nar_family)))
