"""What the server and its client library say, as errors of ours: the one place that knows both."""

from __future__ import annotations

import psycopg

from neve.errors import Corrupt, DiskFull, LimitExceeded, NeveError, PermissionDenied, Unavailable

_NOT_LET_IN = (
    *("authentication failed", "no pg_hba.conf entry", "permission denied", "no password supplied"),
    "requires a valid client certificate",
)
"""What a server says of a connection that it refuses; that has no SQLSTATE. In other languages than English
it is told as any other failure to connect."""

DEADLOCKS = ("40001", "40P01")
"""Everything was undone because of others, and can be done again."""

_LET_NOBODY_IN_YET = (
    "starting up",
    "shutting down",
    "recovery",
    "too many clients",
    "remaining connection slots",
)

_POOLER = "is there PgBouncer in front of the database? Then give pooler=transaction in the address"

_HINTS = {
    "26000": _POOLER,
    "42P05": _POOLER,
    "25006": "the database takes no changes: it is read-only, or a replica",
    "53100": "disk full on the server",
    "53300": "no connection is left; raise max_connections there, or lower pool= in the address",
    "57014": "not done in time (timeout= in the address)",
}


def translated(error: psycopg.Error, where: str) -> NeveError:
    """The error of ours for one of psycopg's; ``where`` is the address for messages."""
    state = error.sqlstate or ""
    reason = _HINTS.get(state)
    said = _said(error)
    message = f"{where}: {said}" if reason is None else f"{where}: {reason} ({said})"
    if state == "53100":
        return DiskFull(message)
    if state in ("42501", "25006") or state.startswith("28"):
        return PermissionDenied(message)
    if state in ("XX001", "XX002"):
        return Corrupt(message)
    if state.startswith("54"):
        return LimitExceeded(message)
    return Unavailable(message)


def not_connected(error: psycopg.Error, where: str) -> NeveError:
    """The error of ours for a connection that did not come about."""
    said = _said(error)
    pgconn = error.pgconn
    if pgconn is not None and pgconn.needs_password:
        return PermissionDenied(
            f"{where}: a password is needed: write it into ~/.pgpass or another file (passfile=), "
            f"or give it as PGPASSWORD ({said})"
        )
    if "unsupported startup parameter" in said:
        return Unavailable(f"{where} cannot be reached: {_POOLER} ({said})")
    if any(words in said for words in _NOT_LET_IN):
        return PermissionDenied(f"{where}: {said}")
    return Unavailable(f"{where} cannot be reached: {said}")


def may_be_let_in_soon(error: psycopg.Error) -> bool:
    """Whether the server is there, but has no room for another connection right now."""
    said = _said(error)
    return any(words in said for words in _LET_NOBODY_IN_YET)


def _said(error: psycopg.Error) -> str:
    """On one line, the SQLSTATE behind it."""
    primary = error.diag.message_primary
    text = " ".join((primary or str(error) or type(error).__name__).split())
    return f"{text} [{error.sqlstate}]" if error.sqlstate else text
