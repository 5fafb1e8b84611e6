"""Where a record lies, and how the index writes it down.

Every value of the index ends with a CRC-32 over key and value, because LMDB has no checksums.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from neve.errors import Corrupt

REPAIR = "run: neve verify --rebuild-index"

_BODY = struct.Struct("<BQIIIII")
_VALUE_SIZE = _BODY.size + 4
_OFFSET_BITS = 40

_RESIDUE = 0x2144DF1C
"""The CRC-32 of whatever is followed by its own CRC-32, least byte first."""


class Location(NamedTuple):
    """Where a record lies. ``place`` is pack id and payload offset in one number (see ``pack_of``)."""

    tag: int
    place: int
    codec: int
    stored_len: int
    raw_len: int
    entries_len: int
    """Bytes of the frame's entry table, which lies right before ``place``."""
    start: int
    length: int


def make_place(pack_id: int, offset: int) -> int:
    return pack_id << _OFFSET_BITS | offset


def moved(locations: Iterable[Location], place: int) -> list[Location]:
    """The same records of the same frame, with its payload at ``place``."""
    return [
        Location(tag, place, codec, stored_len, raw_len, entries_len, start, length)
        for tag, _, codec, stored_len, raw_len, entries_len, start, length in locations
    ]


def pack_of(place: int) -> int:
    return place >> _OFFSET_BITS


def offset_of(place: int) -> int:
    return place & ((1 << _OFFSET_BITS) - 1)


def encode_location(key: bytes, location: tuple[int, int, int, int, int, int, int, int]) -> bytes:
    """``location`` is a ``Location``, or a tuple of the same."""
    tag, place, codec, stored_len, raw_len, entries_len, start, length = location
    body = _BODY.pack(tag, place, stored_len | codec << 30, raw_len, entries_len, start, length)
    return body + zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "little")


def encode_locations(
    frame: tuple[int, int, int, int, int], records: Iterable[tuple[bytes, int, int, int]]
) -> list[bytes]:
    """The same for records of one frame: key, tag, start and length of each. ``frame`` is what their
    locations have in common, in the same order as there."""
    place, codec, stored_len, raw_len, entries_len = frame
    stored = stored_len | codec << 30
    pack, crc32 = _BODY.pack, zlib.crc32
    bodies = [
        (key, pack(tag, place, stored, raw_len, entries_len, start, length))
        for key, tag, start, length in records
    ]
    return [body + crc32(body, crc32(key)).to_bytes(4, "little") for key, body in bodies]


def decode_location(key: bytes, value: bytes) -> Location:
    """Raises ``Corrupt`` naming the key if the value's checksum does not fit."""
    check_location(key, value)
    tag, place, stored, raw_len, entries_len, start, length = _BODY.unpack_from(value)
    return Location(tag, place, stored >> 30, stored & 0x3FFFFFFF, raw_len, entries_len, start, length)


def check_location(key: bytes, value: bytes) -> None:
    """Raises what ``decode_location`` would."""
    if len(value) != _VALUE_SIZE or zlib.crc32(value, zlib.crc32(key)) != _RESIDUE:
        raise _damaged(key)


def encode_number(key: bytes, number: int) -> bytes:
    """The value of a counter, or of a pack's committed length."""
    body = number.to_bytes(8, "little")
    return body + zlib.crc32(key + body).to_bytes(4, "little")


def decode_number(key: bytes, value: bytes) -> int:
    """Raises ``Corrupt`` naming the key if the value's checksum does not fit."""
    body = value[:8]
    if len(value) != 12 or zlib.crc32(key + body) != int.from_bytes(value[8:], "little"):
        raise _damaged(key)
    return int.from_bytes(body, "little")


def _damaged(key: bytes) -> Corrupt:
    return Corrupt(f"the index entry of {key.hex()} is damaged; {REPAIR}")
