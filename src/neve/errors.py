"""The errors of neve: one hierarchy, sorted by who has to act.

Every failure that crosses a module boundary is one of these. Absence is not an error: a lookup that
finds nothing returns ``None``. Foreign exceptions (LMDB, gRPC, the operating system) are translated
where they appear and chained, so that callers never need to know which engine is below.

Servers map each class to one status, the command line maps all of them to one line and exit code 1.
"""

from __future__ import annotations

__all__ = [
    "Conflict",
    "Corrupt",
    "DiskFull",
    "InvalidRequest",
    "LimitExceeded",
    "NeveError",
    "NotFound",
    "PermissionDenied",
    "Unavailable",
    "Unsupported",
]


class NeveError(Exception):
    """Base of all errors of neve; never raised itself."""


class InvalidRequest(NeveError):
    """The caller, or the data that the caller handed in, is wrong. Trying again will not help."""


class Unsupported(InvalidRequest):
    """The request is well formed, but this backend or object cannot do it."""


class NotFound(NeveError):
    """Something that must be there is not: a blob a Directory refers to, a path asked for by name."""


class Conflict(NeveError):
    """Something else is already stored under this key."""


class Corrupt(NeveError):
    """Stored data does not match its digest or checksum. The message names the digest or the file."""


class PermissionDenied(NeveError):
    """The operating system or the peer refuses access."""


class LimitExceeded(NeveError):
    """A configured limit was passed. The message names the limit and its value."""


class Unavailable(NeveError):
    """The world is at fault for now: a peer is down, an I/O error, a lock. Trying again may help."""


class DiskFull(Unavailable):
    """No space is left on the device that holds the store."""
