"""What the tables have in common whose records are dated: presence, pages, deleting.

A record was used when it was put, and when somebody was told that it is there: he may count on it. That
is noted at most once an hour, because noting it writes the record anew. The clock is the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from neve.errors import NeveError, PermissionDenied
from neve.postgres.database import Connection, Database
from neve.telemetry import LOGGER

FRESH_SECONDS = 3600
"""How much older than it is told to be a record's last use may be."""

AT_ONCE = 1000
"""Digests in one statement; some tens of kilobytes, and milliseconds."""


_OLDEST = "1e10"
"""Seconds: nothing is told to be older."""


class DatedTable:
    """The table ``name``: ``digest``, ``data`` and ``used_at``."""

    def __init__(
        self,
        database: Database,
        name: str,
        size: int,
        with_them: Callable[[Connection, Sequence[bytes]], object] = lambda connection, digests: None,
    ) -> None:
        """``size`` is that of digests in bytes: listings have no rows with other keys, which are not ours.
        ``with_them`` deletes what else there is of records, in the same transaction."""
        self._database = database
        self._with_them = with_them
        self._statements = {
            what: database.statement(
                text.replace("{t}", name).replace("{size}", str(size)).replace("{oldest}", _OLDEST)
            )
            for what, text in _STATEMENTS.items()
        }

    def present(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of ``digests`` that are there, and stay for who was told so."""
        return {digest for part in parts(digests) for digest in self._there("present", [part])}

    def whole(self, sums: Mapping[bytes, bytes]) -> set[bytes]:
        """Those digests that are there with data of the sha256 that they have in ``sums``; they stay."""
        found: set[bytes] = set()
        for part in parts(list(sums)):
            found |= self._there("whole", [part, [sums[digest] for digest in part]])
        return found

    def _there(self, question: str, parameters: Sequence[object]) -> set[bytes]:
        def ask(connection: Connection) -> set[bytes]:
            rows = connection.execute(self._statements[question], parameters, binary=True).fetchall()
            stale = [digest for digest, is_stale in rows if is_stale]
            return {digest for digest, is_stale in rows if not is_stale} | self.use(connection, stale)

        return self._database.repeat(ask)

    def use(self, connection: Connection, digests: Sequence[bytes]) -> set[bytes]:
        """Notes that these are used; those of them that are still there."""
        if not digests:
            return set()
        rows = connection.execute(self._statements["use"], [digests], binary=True).fetchall()
        return {digest for (digest,) in rows}

    def note_used(self, digests: Sequence[bytes]) -> None:
        """Notes that these were given out. Where nothing can be written that is not worth a failure."""
        for part in parts(digests):
            try:
                self._database.repeat(lambda connection, part=part: self.use(connection, part))  # type: ignore[misc]
            except PermissionDenied as error:
                LOGGER.debug("it is not noted that records are in use: %s", error)
                return
            except NeveError as error:
                LOGGER.warning("it is not noted that records are in use: %s", error)
                return

    def page(self, after: bytes, limit: int) -> list[bytes]:
        """Up to ``limit`` digests greater than ``after``, ascending."""
        return [digest for digest, _ in self.page_with_ages(after, limit)]

    def page_with_ages(self, after: bytes, limit: int) -> list[tuple[bytes, float]]:
        """What ``page`` gives, and how many seconds ago each was used: that, or up to ``FRESH_SECONDS``
        less."""
        if limit <= 0:
            return []

        def ask(connection: Connection) -> list[tuple[bytes, float]]:
            return connection.execute(self._statements["page"], [after, limit], binary=True).fetchall()

        return self._database.read(ask)

    def delete(self, digests: Sequence[bytes], unused_for: float | None) -> int:
        """Deletes those of ``digests`` that nobody has used in the last ``unused_for`` seconds, or all; how
        many. Whether they were used is looked at when nobody can do so any more."""
        return sum([self._delete(part, unused_for) for part in parts(digests)])

    def _delete(self, digests: Sequence[bytes], unused_for: float | None) -> int:
        def change(connection: Connection) -> int:
            with connection.transaction():
                rows = connection.execute(
                    self._statements["lock"], [digests, unused_for, unused_for], binary=True
                ).fetchall()
                locked = [digest for (digest,) in rows]
                if locked:
                    self._with_them(connection, locked)
                    connection.execute(self._statements["delete"], [locked])
                return len(locked)

        return self._database.write(change)


def parts(digests: Sequence[bytes]) -> list[Sequence[bytes]]:
    """``digests`` in portions for one statement each."""
    return [digests[start : start + AT_ONCE] for start in range(0, len(digests), AT_ONCE)]


# Rows are locked in the order of their digests, so that nobody waits for somebody who waits for him.
# An administrator may have dated one ``infinity``, so that it stays.
_STATEMENTS = {
    "present": f"""
        select digest, used_at < now() - interval '{FRESH_SECONDS} s'
        from {{s}}.{{t}} where digest = any(%b::bytea[])
    """,
    "whole": f"""
        select digest, used_at < now() - interval '{FRESH_SECONDS} s'
        from {{s}}.{{t}} join unnest(%b::bytea[], %b::bytea[]) as given (digest, sum) using (digest)
        where pg_catalog.sha256(data) = sum
    """,
    "use": """
        update {s}.{t} set used_at = now() where digest in (
            select digest from {s}.{t} where digest = any(%b::bytea[]) order by digest for update
        ) returning digest
    """,
    "page": """
        select digest, least(greatest(
            extract(epoch from now())::float8 - extract(epoch from used_at)::float8, 0), {oldest})
        from {s}.{t} where digest > %b and octet_length(digest) = {size} order by digest limit %s
    """,
    "lock": """
        select digest from {s}.{t} where digest = any(%b::bytea[])
        and (%s::float8 is null or used_at <= now() - make_interval(secs => %s))
        order by digest for update
    """,
    "delete": "delete from {s}.{t} where digest = any(%b::bytea[])",
}
