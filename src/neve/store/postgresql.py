"""What lies beside path infos in a PostgreSQL database: the map of NARs, and small files."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from neve.castore.digest import b3_digest
from neve.castore.node import Node
from neve.errors import Corrupt, InvalidRequest
from neve.postgres.database import Connection, Database
from neve.postgres.records import seal, unseal
from neve.registry import Address
from neve.store.nar_nodes import (
    BY_HASH,
    BY_NODE,
    Nar,
    NarNodes,
    check_nar_hash,
    decode_nar_node,
    nar_records,
)
from neve.store.small_files import SmallFiles, file_key, key_after, kind_and_name
from neve.store.wire import encode_node

_SIZE = struct.Struct("<Q")
_SHA256 = 32
_AT_ONCE = 1000
"""Rows of some hundred bytes in one statement."""


class PostgresNarNodes(NarNodes):
    """The map in a database. Owns one use of ``database``."""

    def __init__(self, database: Database) -> None:
        self._rows = _SealedTable(database, "nar_nodes")
        self._database = database
        self._closed = False

    def put(self, node: Node, nar: Nar, *, file_sha256: bytes | None = None) -> None:
        self._rows.add(dict(nar_records(node, nar, file_sha256)))

    def put_many(self, entries: Sequence[tuple[Node, Nar]]) -> None:
        for start in range(0, len(entries), _AT_ONCE):
            part = entries[start : start + _AT_ONCE]
            # Of two for one key the first counts.
            self._rows.add(
                dict(reversed([one for node, nar in part for one in nar_records(node, nar, None)]))
            )

    def node(self, sha256: bytes) -> tuple[Node, int] | None:
        data = self._rows.get(BY_HASH + check_nar_hash(sha256))
        if data is None:
            return None
        try:
            return decode_nar_node(data), _SIZE.unpack_from(data)[0]
        except (InvalidRequest, struct.error) as error:
            raise Corrupt(f"the stored tree of NAR {sha256.hex()} is invalid: {error}") from error

    def nar(self, node: Node) -> Nar | None:
        data = self._rows.get(BY_NODE + b3_digest(encode_node(node)))
        if data is None:
            return None
        if len(data) != _SIZE.size + _SHA256:
            raise Corrupt(f"the stored NAR of a tree has {len(data)} bytes, must have {_SIZE.size + _SHA256}")
        return Nar(_SIZE.unpack_from(data)[0], data[_SIZE.size :])

    def list_hashes(self, after: bytes = b"", limit: int = 1000) -> Sequence[bytes]:
        page = self._rows.page(BY_HASH + after, limit, len(BY_HASH) + _SHA256)
        return [key[1:] for key in page if key.startswith(BY_HASH)]

    def small_files(self) -> SmallFiles:
        return PostgresSmallFiles(self._database)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._database.close()


class PostgresSmallFiles(SmallFiles):
    """The files in a database, which the caller keeps open."""

    def __init__(self, database: Database) -> None:
        self._rows = _SealedTable(database, "small_files")

    def get(self, kind: str, name: str) -> bytes | None:
        return self._rows.get(file_key(kind, name))

    def put(self, kind: str, name: str, contents: bytes) -> None:
        self._rows.set(file_key(kind, name), contents)

    def list(self, after: tuple[str, str] = ("", ""), limit: int = 1000) -> Sequence[tuple[str, str]]:
        return [_named(key) for key in self._rows.page(key_after(after), limit)]


def _named(key: bytes) -> tuple[str, str]:
    try:
        return kind_and_name(key)
    except UnicodeDecodeError as error:
        raise Corrupt(
            f"the row of {key[:100].hex()} in the table small_files has no name for a key"
        ) from error


class _SealedTable:
    """The table ``name``: ``key`` and ``data``, which is sealed."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._statements = {
            what: database.statement(text.replace("{t}", name)) for what, text in _STATEMENTS.items()
        }

    def get(self, key: bytes) -> bytes | None:
        row = self._database.read(
            lambda connection: connection.execute(self._statements["get"], [key], binary=True).fetchone()
        )
        return None if row is None else unseal(self._name, key, row[0])

    def add(self, rows: dict[bytes, bytes]) -> None:
        """Stores those whose keys are not there yet, or lead to a row that is damaged."""
        keys = sorted(rows)
        sealed = {key: seal(self._name, key, rows[key]) for key in keys}

        def change(connection: Connection) -> None:
            added = connection.execute(self._statements["add"], [keys, list(sealed.values())]).rowcount
            if added < len(keys):
                self._mend(connection, sealed)

        if keys:
            self._database.repeat(change)

    def _mend(self, connection: Connection, sealed: dict[bytes, bytes]) -> None:
        """Replaces those of some rows that do not match their seals."""
        found = connection.execute(self._statements["some"], [list(sealed)], binary=True).fetchall()
        for key, data in found:
            if data != sealed[key] and not _is_whole(self._name, key, data):
                connection.execute(self._statements["mend"], [sealed[key], key, data])

    def set(self, key: bytes, data: bytes) -> None:
        """Stores one row, in place of one with the same key."""
        sealed = seal(self._name, key, data)
        self._database.repeat(
            lambda connection: connection.execute(self._statements["set"], [key, sealed]).rowcount
        )

    def page(self, after: bytes, limit: int, size: int | None = None) -> list[bytes]:
        """Up to ``limit`` keys above ``after``, ascending; of ``size`` bytes, if that is given."""

        def ask(connection: Connection) -> list[bytes]:
            parameters = [after, size, size, limit]
            rows = connection.execute(self._statements["page"], parameters, binary=True).fetchall()
            return [key for (key,) in rows]

        return self._database.read(ask) if limit > 0 else []


def _is_whole(table: str, key: bytes, sealed: bytes) -> bool:
    try:
        unseal(table, key, sealed)
    except Corrupt:
        return False
    return True


_STATEMENTS = {
    "get": "select data from {s}.{t} where key = %b",
    "some": "select key, data from {s}.{t} where key = any(%b::bytea[])",
    "mend": "update {s}.{t} set data = %b where key = %b and data = %b",
    "add": """
        insert into {s}.{t} (key, data) select * from unnest(%b::bytea[], %b::bytea[]) on conflict do nothing
    """,
    "set": """
        insert into {s}.{t} as stored (key, data) values (%b, %b)
        on conflict (key) do update set data = excluded.data where stored.data <> excluded.data
    """,
    "page": """
        select key from {s}.{t} where key > %b and (%s::int is null or octet_length(key) = %s)
        order by key limit %s
    """,
}


def open_nar_nodes(address: Address) -> NarNodes:
    """``postgresql://user@host/database``"""
    return PostgresNarNodes(Database.open(address))
