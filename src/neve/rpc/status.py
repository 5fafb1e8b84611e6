"""Errors of ``neve.errors`` as gRPC statuses, and back. The one place that knows both.

A status alone tells less than our errors do (a full disk and a limit share one), so our servers name
the class in a trailer; statuses of other servers are taken by their code.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import grpc

from neve import errors
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

ERROR_TRAILER = "neve-error"
"""The trailer that names the class of the error."""

_MAX_DETAILS = 2000
"""Bytes of a message that travel, in the form that they travel in: headers are limited to some kilobytes."""

# Subclasses before their bases.
_CODES: tuple[tuple[type[NeveError], grpc.StatusCode], ...] = (
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ALREADY_EXISTS),
    (Corrupt, grpc.StatusCode.DATA_LOSS),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (LimitExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DiskFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
)

_BY_NAME: dict[str, type[NeveError]] = {kind.__name__: kind for kind, _ in _CODES}

_BY_CODE: dict[grpc.StatusCode, type[NeveError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.DATA_LOSS: Corrupt,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
}


class Status(NamedTuple):
    """What a server answers instead of a result."""

    code: grpc.StatusCode
    details: str
    kind: str
    """The class of the error, for the trailer."""


def status_of(error: NeveError) -> Status:
    """The status for an error."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Status(code, shortened(str(error)), kind.__name__)
    return Status(grpc.StatusCode.UNKNOWN, shortened(str(error)), "")


def shortened(details: str) -> str:
    """``details`` as they can travel: neither too long nor with what no UTF-8 can express.

    What is not printable ASCII travels as three bytes for each byte of its UTF-8.
    """
    text = details[:_MAX_DETAILS].encode("utf-8", "backslashreplace").decode()
    sizes = (1 if " " <= c <= "~" and c != "%" else 3 * len(c.encode()) for c in text)
    end = sum(total <= _MAX_DETAILS for total in accumulate(sizes))
    return text if end == len(text) and len(details) <= _MAX_DETAILS else f"{text[:end]} ..."


def one_line(text: str) -> str:
    """``text``, which may be anybody's, without anything that is not printable."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def error_of(failure: grpc.RpcError, doing: str) -> NeveError:
    """The error for a failed call; ``doing`` names the server and the call.

    A peer that breaks off, does not answer in time or answers nonsense is ``Unavailable``.
    """
    code = code_of(failure) or grpc.StatusCode.UNKNOWN
    details = one_line(details_of(failure))
    named = trailers_of(failure).get(ERROR_TRAILER)
    kind = _BY_NAME.get(named) if isinstance(named, str) else None
    if kind is not None and dict(_CODES)[kind] is code:
        return kind(f"{doing}: {details}")
    kind = _BY_CODE.get(code, Unavailable)
    return kind(f"{doing}: {details} ({code.name})")


def trailers_of(failure: grpc.RpcError) -> dict[str, str | bytes]:
    """The trailers that came with the status."""
    trailers: Any = _call(failure, "trailing_metadata") or ()
    return dict(trailers)


def details_of(failure: grpc.RpcError) -> str:
    """What the status says besides its code."""
    return str(_call(failure, "details") or "no reason given")


def code_of(failure: grpc.RpcError) -> grpc.StatusCode | None:
    """The status code of a failed call."""
    code = _call(failure, "code")
    return code if isinstance(code, grpc.StatusCode) else None


def _call(failure: grpc.RpcError, name: str) -> object:
    """What a method of the failure gives: the library's failures are calls too, but not by their type."""
    method = getattr(failure, name, None)
    return method() if callable(method) else None


assert {kind.__name__ for kind, _ in _CODES} <= set(errors.__all__)
