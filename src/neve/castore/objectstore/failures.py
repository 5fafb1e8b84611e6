"""What the errors of the library mean, as errors of ours, in one line and without anybody's secrets.

The library itself is not imported here: without it, its addresses are still refused with a word about that.
"""

from __future__ import annotations

import re

from neve.errors import DiskFull, InvalidRequest, NeveError, PermissionDenied, Unavailable, Unsupported
from neve.registry import shown_url

_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_STATUS = re.compile(r"status code: (\d{3} ?[A-Za-z ]*)")
_RETRIES = re.compile(r"after (\d+) retries")
_QUERY = re.compile(r"\?[^\s,)\"']*")
"""Of addresses in what the library says: signed ones have their signature there."""

_DENIED = frozenset(
    (
        *("AccessDenied", "AuthenticationFailed", "AuthorizationFailure", "AuthorizationHeaderMalformed"),
        *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken"),
        *("InvalidAuthenticationInfo", "RequestTimeTooSkewed", "SignatureDoesNotMatch"),
        "TokenRefreshRequired",
    )
)
"""Codes of credentials that are wrong, expired, or not allowed to. Some come with status 400."""

_NO_BUCKET = frozenset(("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"))

_METADATA = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "/metadata/identity/")
"""What the machines of the large providers ask to know who they are."""

_BROKEN_OFF = ("request or response body error", "error decoding response body")
"""How the library calls an answer that does not come to its end; it does not ask again."""

_LOCKED = "423"
"""The status of WebDAV servers where somebody else makes the same folder, or writes the same file."""

_MAX_REASON = 300
_MAX_LOOKED_AT = 16 * 1024
"""Characters of what is said, and of what is looked at for that."""


class BrokenOff(Unavailable):
    """An answer had begun, and did not come to its end; or somebody else was at it. Asking again may help."""


def is_of_library(error: Exception) -> bool:
    """Whether it is one that the library raises, and not a mistake of ours."""
    return isinstance(error, OSError | ValueError | NotImplementedError) or (
        type(error).__module__.startswith("obstore")
    )


def is_no_bucket(error: BaseException) -> bool:
    """Whether it is the bucket or container that is not there."""
    code = _CODE.search(str(error))
    return code is not None and code[1] in _NO_BUCKET


def translated(error: Exception, what: str) -> NeveError:
    """The error of ours; ``what`` says what was being done, in which store."""
    text = str(error).partition("\n\nDebug source:")[0]
    code = _CODE.search(text)
    status = _STATUS.search(text)
    if code is not None and code[1] in _NO_BUCKET:
        return Unavailable(f"{what}: there is no such bucket or container ({code[1]})")
    if any(path in text for path in _METADATA):
        return PermissionDenied(
            f"{what}: no credentials in the address or the environment, and this machine has none of its own"
        )
    reason = _reason(text)
    name = type(error).__name__
    if (
        name in ("PermissionDeniedError", "UnauthenticatedError")
        or (code is not None and code[1] in _DENIED)
        or (status and status[1][:3] in ("401", "403"))
    ):
        return PermissionDenied(f"{what}: {reason}")
    if name in ("NotSupportedError", "NotImplementedError"):
        return Unsupported(f"{what}: {reason}")
    if name == "InvalidPathError":
        return InvalidRequest(f"{what}: {reason}")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return DiskFull(f"{what}: disk full; free some space and try again")
    if "Permission denied" in text or "Read-only file system" in text:
        return PermissionDenied(f"{what}: {reason}")
    passes = any(words in text for words in _BROKEN_OFF) or (status and status[1][:3] == _LOCKED)
    kind = BrokenOff if passes else Unavailable
    return kind(f"{what}: {reason}")


def _reason(text: str) -> str:
    """Status, code and message of an answer; else what the library says itself."""
    code, status, message = _CODE.search(text), _STATUS.search(text), _MESSAGE.search(text)
    if code is None and status is None:
        reason = shown_url(_QUERY.sub("", text[:_MAX_LOOKED_AT]))  # Its address may have a password.
    else:
        parts = [found[1].strip() for found in (status, code) if found is not None]
        reason = ", ".join(parts) + (f": {message[1]}" if message is not None else "")
    reason = " ".join(reason.split())
    if len(reason) > _MAX_REASON:
        reason = reason[:_MAX_REASON] + "..."
    retries = _RETRIES.search(text)
    return f"{reason} (after {retries[1]} retries)" if retries is not None else reason
