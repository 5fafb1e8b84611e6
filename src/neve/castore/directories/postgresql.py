"""Directories in a PostgreSQL database: a row each, under its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import DIGEST_SIZE, Digest, b3_digest, check_digest, format_digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService, directory_not_found
from neve.castore.directories.spool import SpoolingPutter
from neve.castore.directory import Directory, child_digests
from neve.errors import Corrupt, InvalidRequest
from neve.postgres.database import Connection, Database
from neve.postgres.table import AT_ONCE, FRESH_SECONDS, DatedTable
from neve.registry import Address

_PORTION_BYTES = 4 * 1024 * 1024
"""Encodings in one answer, and in one statement; a longer one goes alone."""


class PostgresDirectoryService(DirectoryService):
    """Directories of one database. Owns one use of ``database``.

    Others may write there, so what comes from it is checked like what comes from a server.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._table = DatedTable(database, "directories", DIGEST_SIZE)
        self._select = database.statement(_SELECT)
        self._insert = database.statement(_INSERT)
        self._closed = False

    # Getting.

    def get(self, digest: Digest) -> Directory | None:
        return self.get_many([digest]).get(digest)

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        wanted = list(dict.fromkeys(map(check_digest, digests)))
        return {
            digest: _decoded(digest, encoded) for digest, encoded in self._each(wanted) if encoded is not None
        }

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        return (_decoded(one, encoded) for one, encoded in self._closure(digest))

    def get_recursive_encoded(self, digest: Digest) -> Iterator[bytes]:
        return (encoded for _, encoded in self._closure(digest))

    def _closure(self, root: Digest) -> Iterator[tuple[Digest, bytes]]:
        """Digests and encodings, breadth first: a question a level, more for a level of some megabytes."""
        known = {check_digest(root)}
        wanted = [root]
        while wanted:
            following: list[Digest] = []
            for digest, encoded in self._each(wanted):
                if encoded is None:
                    if digest == root:
                        return
                    raise directory_not_found(digest)
                for child in _children(digest, encoded):
                    if child not in known:
                        known.add(child)
                        following.append(child)
                yield digest, encoded
            wanted = following

    def _each(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes | None]]:
        """Proven encodings, in this order, None for what is not there. A portion is held at a time."""
        start = 0
        while start < len(digests):
            rows = self._portion(digests[start : start + AT_ONCE])
            for digest, (encoded, _) in zip(digests[start : start + len(rows)], rows, strict=True):
                if encoded is not None and b3_digest(encoded) != digest:
                    raise Corrupt(
                        f"the stored bytes of Directory {format_digest(digest)} do not match its digest"
                    )
                yield digest, encoded
            start += len(rows)

    def _portion(self, digests: Sequence[Digest]) -> list[tuple[bytes | None, bool]]:
        """As many of the first as fit into an answer, one at least."""

        def ask(connection: Connection) -> list[tuple[bytes | None, bool]]:
            return connection.execute(self._select, [digests, _PORTION_BYTES], binary=True).fetchall()

        rows = self._database.read(ask)
        self._table.note_used(
            [digest for digest, (_, is_stale) in zip(digests, rows, strict=False) if is_stale]
        )
        return rows

    # Putting.

    def put(self, directory: Directory) -> Digest:
        self.put_many([directory])
        return directory.digest

    def put_many(self, directories: Sequence[Directory]) -> None:
        self.put_encoded((directory.digest, directory.encode()) for directory in directories)

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        return _Putter(self, limits)

    def put_encoded(self, encoded: Iterable[tuple[Digest, bytes]]) -> None:
        """Stores valid encodings under their digests, children first. Some megabytes are one transaction, and
        none is visible before those in front of it."""
        group: dict[Digest, bytes] = {}
        size = 0
        for digest, data in encoded:
            if group and (size + len(data) > _PORTION_BYTES or len(group) == AT_ONCE):
                self._put_group(group)
                group, size = {}, 0
            group[digest] = data
            size += len(data)
        if group:
            self._put_group(group)

    def _put_group(self, group: dict[Digest, bytes]) -> None:
        whole = self._table.whole({digest: hashlib.sha256(data).digest() for digest, data in group.items()})
        # In this order, so that nobody waits for somebody who waits for him.
        absent = sorted(group.keys() - whole)
        if absent:
            data = [group[digest] for digest in absent]
            self._database.repeat(lambda connection: connection.execute(self._insert, [absent, data]))

    # Care.

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return self._table.page(after, limit)

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> Sequence[tuple[Digest, float]]:
        return self._table.page_with_ages(after, limit)

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        return self._table.delete([check_digest(digest) for digest in digests], unused_for)

    def freshen(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        there = self._table.present([check_digest(digest) for digest in digests])
        return [digest for digest in digests if digest not in there]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._database.close()


class _Putter(SpoolingPutter):
    """Sends the closure once it is known to be valid."""

    def __init__(self, service: PostgresDirectoryService, limits: ClosureLimits) -> None:
        super().__init__(limits)
        self._service = service

    def _commit(self) -> None:
        self._service.put_encoded(self._spooled())


def _decoded(digest: Digest, encoded: bytes) -> Directory:
    try:
        return Directory.decode(encoded, digest=digest)
    except InvalidRequest as error:
        raise Corrupt(f"stored Directory {format_digest(digest)} is invalid: {error}") from error


def _children(digest: Digest, encoded: bytes) -> Iterable[Digest]:
    try:
        return [check_digest(child) for child in child_digests(encoded)]
    except InvalidRequest as error:
        raise Corrupt(f"stored Directory {format_digest(digest)} is invalid: {error}") from error


def open_postgresql(address: Address) -> PostgresDirectoryService:
    """``postgresql://user@host/database``"""
    return PostgresDirectoryService(Database.open(address))


# What lies in front of each tells whether it still fits. Where long values lie, their length is known without
# reading them.
_SELECT = f"""
    select data, is_stale from (
        select data, number,
            coalesce(used_at < now() - interval '{FRESH_SECONDS} s', false) as is_stale,
            sum(size) over (order by number) - size as before
        from unnest(%b::bytea[]) with ordinality as asked (digest, number)
        left join {{s}}.directories d using (digest)
        cross join lateral (select coalesce(octet_length(data), 0) as size) as measured
    ) as found
    where before < %s order by number
"""

_INSERT = """
    insert into {s}.directories as stored (digest, data) select * from unnest(%b::bytea[], %b::bytea[])
    on conflict (digest) do update set data = excluded.data, used_at = now()
    where stored.data is distinct from excluded.data
"""
"""A row that is there is damaged, or somebody has just put it."""
