"""Errors of ``neve.errors`` as HTTP statuses. The one place that knows both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from neve.errors import (
    Conflict,
    Corrupt,
    DiskFull,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.serving import metrics

Header = tuple[bytes, bytes]

_MAX_LINE = 2000
"""Characters of a message that travel: enough for a list of missing paths, and still to be read."""

# Subclasses before their bases. Nix tries again after 5xx, but for 501.
_STATUSES: tuple[tuple[type[NeveError], int], ...] = (
    (Unsupported, 501),
    (InvalidRequest, 400),
    (NotFound, 404),
    (Conflict, 409),
    (Corrupt, 500),
    (PermissionDenied, 403),
    (LimitExceeded, 413),
    (DiskFull, 507),
    (Unavailable, 503),
)


_REFUSALS = {401: "PermissionDenied", 403: "PermissionDenied", 502: "Unavailable"}
"""Kinds of errors by statuses that stand for themselves."""


class Refused(InvalidRequest):
    """A request that is refused with a status of its own, for reasons that only HTTP knows."""

    def __init__(self, status: int, message: str, headers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@contextlib.contextmanager
def far_errors() -> Iterator[None]:
    """In the block, a store is asked for something that is well formed: what it says is wrong then, came
    from a store further away, and is not the client's fault (502)."""
    try:
        yield
    except Refused:
        raise
    except (InvalidRequest, LimitExceeded) as error:
        raise Refused(502, str(error)) from error


def status_of(error: NeveError) -> int:
    """The status for an error."""
    if isinstance(error, Refused):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def kind_of(error: NeveError) -> str:
    """What an error is counted as."""
    refused = error.status if isinstance(error, Refused) else 0
    return _REFUSALS.get(refused) or metrics.kind_of(error)


def line_of(error: NeveError) -> bytes:
    """What to tell about an error: one line of UTF-8, with nothing in it that would steer a terminal."""
    text = str(error)
    if len(text) > _MAX_LINE:
        text = f"{text[:_MAX_LINE]} ..."
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.encode() + b"\n"
