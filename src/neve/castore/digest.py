"""Content addresses: BLAKE3 digests of 32 bytes, and their text forms.

A blob is addressed by the digest of its contents, a Directory by the digest of its canonical
encoding. In memory a digest is plain ``bytes``.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeAlias

from blake3 import blake3

from neve.errors import InvalidRequest

__all__ = [
    "DIGEST_SIZE",
    "EMPTY_BLOB",
    "Digest",
    "InvalidDigest",
    "b3_digest",
    "check_digest",
    "format_digest",
    "format_snix_digest",
    "parse_digest",
]

Digest: TypeAlias = bytes
"""A BLAKE3 digest, 32 bytes."""

DIGEST_SIZE = 32

_PREFIX = "b3:"
_SNIX_PREFIX = "blake3-"


class InvalidDigest(InvalidRequest):
    """Not a BLAKE3 digest: the wrong length, or text that is no digest."""


def b3_digest(data: bytes | bytearray | memoryview) -> Digest:
    """The BLAKE3 digest of ``data``."""
    return blake3(data).digest()


EMPTY_BLOB: Digest = b3_digest(b"")
"""Address of the blob of no bytes, and of the Directory without entries, whose encoding is empty."""


def check_digest(data: bytes, what: str = "digest") -> Digest:
    """Returns ``data`` if it has 32 bytes. ``InvalidDigest`` names ``what`` and the length it has."""
    if len(data) != DIGEST_SIZE:
        raise InvalidDigest(f"{what} has {len(data)} bytes, must have {DIGEST_SIZE}")
    return data


def format_digest(digest: Digest) -> str:
    """``b3:`` and standard padded base64, the text form everywhere in neve."""
    return _PREFIX + base64.b64encode(digest).decode("ascii")


def format_snix_digest(digest: Digest) -> str:
    """``blake3-`` and standard padded base64, the text form of the snix tools."""
    return _SNIX_PREFIX + base64.b64encode(digest).decode("ascii")


def parse_digest(text: str) -> Digest:
    """Reads either text form. ``InvalidDigest`` says what is wrong with ``text``."""
    for prefix in (_PREFIX, _SNIX_PREFIX):
        if text.startswith(prefix):
            encoded = text[len(prefix) :]
            break
    else:
        raise InvalidDigest(f"digest {text!r} does not begin with {_PREFIX!r}")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidDigest(f"digest {text!r} is not padded base64: {error}") from error
    check_digest(digest, f"digest {text!r}")
    # The decoder overlooks the unused low bits of the last character; a digest has one spelling only.
    if base64.b64encode(digest).decode("ascii") != encoded:
        raise InvalidDigest(f"digest {text!r} is not padded base64: unused bits are set")
    return digest
