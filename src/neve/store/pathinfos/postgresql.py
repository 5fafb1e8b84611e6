"""Path infos in a PostgreSQL database, with a second table that tells who refers to whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any

from psycopg import Rollback

from neve.errors import Conflict, Corrupt, LimitExceeded, NeveError
from neve.nix import base32
from neve.nix.signing import Signature
from neve.nix.store_path import DIGEST_SIZE, StorePath
from neve.postgres.database import Connection, Database
from neve.postgres.records import SEAL_SIZE, seal, unseal
from neve.postgres.table import FRESH_SECONDS, DatedTable
from neve.registry import Address
from neve.store.path_info import InvalidPathInfo, PathInfo
from neve.store.pathinfos.base import (
    MAX_PATH_INFO_BYTES,
    PathInfoService,
    check_length,
    check_path_digest,
    path_not_found,
    to_be_stored,
)
from neve.store.wire import decode_path_info, decode_path_name, encode_path_info

TABLE = "path_infos"

_PAGE = 1000
_PAGE_BYTES = 16 * 1024 * 1024
"""What a page holds is not longer, but for one path info: a page of the longest would have a gigabyte."""

_REFERRERS = 10_000

_MAX_ROW_BYTES = MAX_PATH_INFO_BYTES + SEAL_SIZE
"""A row of ours has no more. Of others so much is read that they are seen to be none."""


class PostgresPathInfoService(PathInfoService):
    """Path infos of one database. Owns one use of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._table = DatedTable(database, TABLE, DIGEST_SIZE, self._forget_references)
        self._statements = {what: database.statement(text) for what, text in _STATEMENTS.items()}
        self._closed = False

    # Getting.

    def get(self, digest: bytes) -> PathInfo | None:
        row = self._row("get", check_path_digest(digest))
        return None if row is None else _decoded(digest, row[0])

    def version(self, digest: bytes) -> object | None:
        row = self._row("version", check_path_digest(digest))
        return None if row is None else row[0]

    def _row(self, what: str, digest: bytes) -> tuple[Any, bool] | None:
        """What a question for one path gives; the path is told to be there."""

        def ask(connection: Connection) -> tuple[Any, bool] | None:
            return connection.execute(self._statements[what], [digest], binary=True).fetchone()

        row = self._database.read(ask)
        if row is not None and row[1]:
            self._table.note_used([digest])
        return row

    # Putting.

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        found = None if replace else self.get(path_info.digest)
        if found is not None and to_be_stored(found, path_info) == found:
            return found
        if found is None and not replace:
            check_length(path_info)
            if self._database.repeat(lambda connection: self._insert(connection, [path_info])):
                return path_info
        [result] = self._change([path_info], replace=replace)
        if isinstance(result, NeveError):
            raise result
        return result

    def put_many(self, path_infos: Sequence[PathInfo]) -> Sequence[PathInfo | NeveError]:
        """All of them by one transaction."""
        return self._change(path_infos) if path_infos else []

    def _change(
        self, path_infos: Sequence[PathInfo], *, replace: bool = False
    ) -> Sequence[PathInfo | NeveError]:
        digests = list({path_info.digest for path_info in path_infos})

        def change(connection: Connection) -> Sequence[PathInfo | NeveError]:
            while True:
                with connection.transaction() as transaction:
                    stored, stale = self._locked(connection, digests)
                    changes = _Changes(stored, replace=replace)
                    results = [changes.put(path_info) for path_info in path_infos]
                    new = changes.new()
                    if self._insert(connection, new) == len(new):
                        self._update(connection, changes.changed())
                        self._table.use(connection, stale)
                        return results
                    # Somebody has put one of them in between.
                    raise Rollback(transaction)

        return self._database.repeat(change)

    def add_signatures(self, digest: bytes, signatures: Sequence[Signature]) -> PathInfo:
        check_path_digest(digest)

        def change(connection: Connection) -> PathInfo:
            with connection.transaction():
                stored, stale = self._locked(connection, [digest])
                if digest not in stored:
                    raise path_not_found(digest)
                before = _decoded(digest, stored[digest])
                result: PathInfo = to_be_stored(before, before.with_signatures(signatures))
                if result != before:
                    self._update(connection, [result])
                self._table.use(connection, stale)
                return result

        return self._database.repeat(change)

    # The steps of a transaction.

    def _locked(
        self, connection: Connection, digests: Sequence[bytes]
    ) -> tuple[dict[bytes, bytes], Sequence[bytes]]:
        """Those of the rows that are there, and which of them are to be noted as used; until the end of the
        transaction nobody else changes them."""
        rows = connection.execute(self._statements["lock"], [digests], binary=True).fetchall()
        return {digest: data for digest, data, _ in rows}, [digest for digest, _, stale in rows if stale]

    def _insert(self, connection: Connection, new: Sequence[PathInfo]) -> int:
        """Stores what is not there yet; how many that were."""
        if not new:
            return 0
        row = connection.execute(self._statements["insert"], [*_columns(new), *_references(new)]).fetchone()
        return row[0] if row else 0

    def _update(self, connection: Connection, changed: Sequence[PathInfo]) -> None:
        """Stores what is there in another state."""
        if changed:
            connection.execute(self._statements["update"], _columns(changed))
            self._forget_references(connection, [path_info.digest for path_info in changed])
            connection.execute(self._statements["refer"], _references(changed))

    def _forget_references(self, connection: Connection, referrers: Sequence[bytes]) -> None:
        connection.execute(self._statements["forget"], [referrers])

    # Listing.

    def list(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[PathInfo]:
        return [_decoded(digest, data) for digest, data in self._page(after, limit)]

    def names(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[StorePath]:
        return [_decoded(digest, data, decode_path_name) for digest, data in self._page(after, limit)]

    def list_encoded(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        return [(digest, _unsealed(digest, data)) for digest, data in self._page(after, limit)]

    def _page(self, after: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Digests and rows: up to ``limit``, less if they are long."""
        if limit <= 0:
            return []

        def ask(connection: Connection) -> Sequence[tuple[bytes, bytes]]:
            parameters = [after, limit, _PAGE_BYTES]
            return connection.execute(self._statements["page"], parameters, binary=True).fetchall()

        return self._database.read(ask)

    def list_with_ages(self, after: bytes = b"", limit: int = _PAGE) -> Sequence[tuple[bytes, float]]:
        return self._table.page_with_ages(after, limit)

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        found: MutableSequence[bytes] = []
        after = b""
        check_path_digest(digest)

        def ask(connection: Connection) -> Sequence[tuple[bytes]]:
            parameters = [digest, after, _REFERRERS]
            return connection.execute(self._statements["referrers"], parameters, binary=True).fetchall()

        while page := self._database.read(ask):
            found += [referrer for (referrer,) in page]
            after = found[-1]
        return found

    # Care.

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        return self._table.delete([check_path_digest(digest) for digest in digests], unused_for)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._database.close()


class _Changes:
    """What becomes of rows, sealed as they are ``stored``, when path infos are put there."""

    def __init__(self, stored: Mapping[bytes, bytes], *, replace: bool) -> None:
        self._stored = stored
        self._replace = replace
        self._results: dict[bytes, PathInfo] = {}

    def put(self, path_info: PathInfo) -> PathInfo | NeveError:
        """What is stored then, or why it cannot be."""
        try:
            before = None if self._replace else self._before(path_info.digest)
            result = to_be_stored(before, path_info)
        except (Conflict, Corrupt, LimitExceeded) as error:
            return error
        if result != before:
            self._results[result.digest] = result
        return result

    def _before(self, digest: bytes) -> PathInfo | None:
        if digest in self._results:
            return self._results[digest]
        stored = self._stored.get(digest)
        return None if stored is None else _decoded(digest, stored)

    def new(self) -> list[PathInfo]:
        return [self._results[digest] for digest in sorted(self._results.keys() - self._stored.keys())]

    def changed(self) -> list[PathInfo]:
        return [self._results[digest] for digest in sorted(self._results.keys() & self._stored.keys())]


def _columns(path_infos: Sequence[PathInfo]) -> list[list[bytes]]:
    digests = [path_info.digest for path_info in path_infos]
    return [digests, [seal(TABLE, one.digest, encode_path_info(one)) for one in path_infos]]


def _references(path_infos: Sequence[PathInfo]) -> list[list[bytes]]:
    """Who is referred to, and by whom."""
    pairs = sorted({(reference, one.digest) for one in path_infos for reference in one.references})
    return [[reference for reference, _ in pairs], [referrer for _, referrer in pairs]]


def _decoded(digest: bytes, sealed: bytes, decode: Callable[[bytes], Any] = decode_path_info) -> Any:
    """What ``decode`` makes of a row. Raises ``Corrupt`` naming the path, also if it is another's."""
    shown = base32.encode(digest)
    encoded = _unsealed(digest, sealed)
    if isinstance(encoded, Corrupt):
        raise encoded
    try:
        decoded: PathInfo | StorePath = decode(encoded)
    except InvalidPathInfo as error:
        raise Corrupt(f"the stored path info of {shown} is invalid: {error}") from error
    if decoded.digest != digest:
        raise Corrupt(f"the stored path info of {shown} is that of {base32.encode(decoded.digest)}")
    return decoded


def _unsealed(digest: bytes, sealed: bytes) -> bytes | Corrupt:
    try:
        return unseal(TABLE, digest, sealed)
    except Corrupt as error:
        return Corrupt(f"the stored path info of {base32.encode(digest)} is damaged: {error}")


def open_postgresql(address: Address) -> PostgresPathInfoService:
    """``postgresql://user@host/database``"""
    return PostgresPathInfoService(Database.open(address))


_DATA = f"substr(data, 1, {_MAX_ROW_BYTES + 1})"

# Rows are locked in the order of their digests, so that nobody waits for somebody who waits for him.
_STATEMENTS = {
    "get": f"""
        select {_DATA}, used_at < now() - interval '{FRESH_SECONDS} s' from {{s}}.path_infos where digest = %b
    """,
    "version": f"""
        select revision, used_at < now() - interval '{FRESH_SECONDS} s'
        from {{s}}.path_infos where digest = %b
    """,
    "lock": f"""
        select digest, {_DATA}, used_at < now() - interval '{FRESH_SECONDS} s'
        from {{s}}.path_infos where digest = any(%b::bytea[]) order by digest for update
    """,
    "insert": """
        with new as (
            insert into {s}.path_infos (digest, data)
            select * from unnest(%b::bytea[], %b::bytea[]) on conflict do nothing returning digest
        ), referring as (
            insert into {s}.path_references (reference, referrer)
            select * from unnest(%b::bytea[], %b::bytea[]) as pair (reference, referrer)
            where referrer in (select digest from new) on conflict do nothing
        )
        select count(*)::int from new
    """,
    "update": """
        update {s}.path_infos as stored
        set data = changed.data, revision = nextval('{s}.revisions'), used_at = now()
        from unnest(%b::bytea[], %b::bytea[]) as changed (digest, data)
        where stored.digest = changed.digest
    """,
    "forget": "delete from {s}.path_references where referrer = any(%b::bytea[])",
    "refer": """
        insert into {s}.path_references (reference, referrer)
        select * from unnest(%b::bytea[], %b::bytea[]) on conflict do nothing
    """,
    "page": f"""
        select digest, data from (
            select digest, data, sum(octet_length(data)) over (order by digest) - octet_length(data) as before
            from (
                select digest, {_DATA} as data from {{s}}.path_infos
                where digest > %b and octet_length(digest) = {DIGEST_SIZE} order by digest limit %s
            ) as page
        ) as measured
        where before < %s order by digest
    """,
    "referrers": """
        select referrer from {s}.path_references
        where reference = %b and referrer > %b order by referrer limit %s
    """,
}
