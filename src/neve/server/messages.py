"""Reading requests: what is no message, or too long, is refused like any other wrong request."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from neve.errors import InvalidRequest, LimitExceeded
from neve.rpc.methods import Deserializer, Method

MAX_PARTS_BYTES = 8 * 1024 * 1024
"""Longest message of many parts. Reading one, of a byte or two each, takes everybody's time, a tenth of
a second for so much, and several times its size. What is longer must be one part: contents, a Directory."""

_LENGTH_DELIMITED = 2


def reader(method: Method, longest: int) -> Deserializer:
    """Reads a request. Raises ``InvalidRequest`` if it is none, ``LimitExceeded`` if it is too long."""

    def read(data: bytes) -> Any:
        if len(data) > longest:
            raise LimitExceeded(
                f"{method.name}: a message of {len(data)} bytes, the limit is {longest} (max_request_bytes)"
            )
        check_parts(data)
        try:
            return method.request.FromString(data)
        except DecodeError as error:
            raise InvalidRequest(f"{method.name}: {error}") from error

    return read


def check_parts(data: bytes) -> None:
    """Raises ``LimitExceeded`` if a message is longer than ``MAX_PARTS_BYTES`` and its first field is not
    all of it."""
    if len(data) > MAX_PARTS_BYTES and not _is_one_part(data):
        raise LimitExceeded(
            f"a message of {len(data)} bytes in several parts, the limit for such is {MAX_PARTS_BYTES}"
        )


def _is_one_part(data: bytes) -> bool:
    tag, position = _varint(data, 0)
    length, position = _varint(data, position)
    return tag & 7 == _LENGTH_DELIMITED and position + length == len(data)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, and where it ends; what is none makes no part that fills a message."""
    number = 0
    for shift, byte in enumerate(data[position : position + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, position + shift + 1
    return 0, position
