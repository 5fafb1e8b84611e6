"""What the text formats share: quoting input in messages, decoding, decimal sizes, base64."""

from __future__ import annotations

import binascii
import re

from neve.errors import InvalidRequest, LimitExceeded

MAX_U64 = 2**64 - 1

QUOTE_LIMIT = 120
"""Characters of foreign input that a message repeats: enough for any base name prefix or hash, and
a message stays one readable line whatever was sent."""

_DECIMAL = re.compile(r"[0-9]{1,20}")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")


class InvalidText(InvalidRequest):
    """A text is not what its format asks for. The message names the position or the value."""


def quoted(value: str | bytes) -> str:
    """``value`` for a message: escaped, and cut after ``QUOTE_LIMIT`` characters."""
    if len(value) <= QUOTE_LIMIT:
        return repr(value)
    return f"{value[:QUOTE_LIMIT]!r}... ({len(value)} long)"


def decode_utf8(data: str | bytes, what: str, limit: int) -> str:
    """``data`` as text. Raises ``LimitExceeded`` above ``limit`` bytes, ``InvalidText`` if no UTF-8."""
    if isinstance(data, str):
        # Surrogates are counted here and refused by the field that holds them.
        size = len(data) if data.isascii() else len(data.encode("utf-8", "surrogatepass"))
    else:
        size = len(data)
    if size > limit:
        raise LimitExceeded(f"{what} of {size} bytes: the limit is {limit} bytes")
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidText(f"{what} is no UTF-8 at byte {error.start}: {error.reason}") from error


def split_line(line: str) -> tuple[str, str]:
    """The key and the value of a ``Key: value`` line; ``Key:`` has an empty value."""
    key, colon, value = line.partition(":")
    if not colon or not key:
        raise InvalidText(f"expected 'Key: value', got {quoted(line)}")
    if value and value[0] != " ":
        raise InvalidText(f"expected a space after {quoted(key + ':')}, got {quoted(value)}")
    return key, value[1:]


def parse_u64(text: str) -> int:
    """A decimal number from 0 to 2^64 - 1, ASCII digits only."""
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidText(f"expected a decimal number of at most 20 digits, got {quoted(text)}")
    number = int(text)
    if number > MAX_U64:
        raise InvalidText(f"expected at most {MAX_U64}, got {number}")
    return number


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding, on one line."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def decode_base64(text: str, size: int, *, padding_optional: bool = False) -> bytes:
    """The ``size`` bytes that ``text``, standard base64, stands for.

    Spare bits in the last character are ignored, as Nix does: hashes written by people carry them.
    The error does not repeat ``text``, which may be a secret key.
    """
    padding = -size % 3
    digits = (size * 8 + 5) // 6
    body = text.rstrip("=")
    given = len(text) - len(body)
    bad = _NOT_BASE64.search(body)
    if bad is not None:
        raise InvalidText(f"character {bad.group()!r} at position {bad.start()} is not base64")
    if len(body) != digits:
        raise InvalidText(
            f"{len(body)} base64 characters without padding, expected {digits} for {size} bytes"
        )
    if given > padding or (given < padding and not padding_optional):
        raise InvalidText(f"{given} characters of base64 padding, expected {padding}")
    return binascii.a2b_base64(body + "=" * padding)
