"""The pack file: an append-only log of frames, readable without any index.

::

    pack    = header frame*
    header  = "neve-pack" version:u8 reserved:u16 id:u32                        (16 bytes)
    frame   = head entries payload
    head    = "NvFr" kind:u8 codec:u8 reserved:u16 count:u32 entries_len:u32
              stored_len:u32 raw_len:u32 seq:u64 payload_check:16 head_check:16 (64 bytes)
    entry   = table:u8 tag:u8 key_len:u8 length:u32 key

Integers are little-endian. ``head_check`` is BLAKE3 (16 bytes) over the head before it and the
entries, ``payload_check`` the same over the payload as stored. The records of a frame lie one after
the other in the decompressed payload, in the order of the entries.

A *data* frame carries records. A *commit mark* carries none; it says that everything before it in
this pack was made durable and put into the index by the transaction ``seq``. Transactions are
numbered by the index, across processes, so the marks also order what several packs say of one key.
What lies behind the last mark was never acknowledged.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from neve.errors import Corrupt

PACK_MAGIC = b"neve-pack"
PACK_VERSION = 1
_PACK_HEADER = struct.Struct("<9sBHI")
HEADER_SIZE = _PACK_HEADER.size

FRAME_MAGIC = b"NvFr"
_HEAD = struct.Struct("<4sBBHIIIIQ16s")
HEAD_SIZE = _HEAD.size + 16
_ENTRY = struct.Struct("<BBBI")

DATA, COMMIT = 1, 2
RAW, ZSTD = 0, 1

TOMBSTONE = 0xFF
"""The tag of an entry that says: the key was deleted. Such a record has no bytes."""

MAX_RECORD = 80 * 1024 * 1024
"""Upper bound of one record in bytes: a Directory of 64 MiB, the largest object, and some air."""

_MAX_FRAME = MAX_RECORD + 1024 * 1024
_MAX_ENTRIES_LEN = 64 * 1024 * 1024
_SCAN_STEP = 1024 * 1024


class Entry(NamedTuple):
    """One record of a frame: where it belongs, and where it lies in the decompressed payload."""

    table: int
    tag: int
    key: bytes
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's head, as found at ``offset`` of a pack."""

    offset: int
    kind: int
    codec: int
    seq: int
    entries: tuple[Entry, ...]
    payload_offset: int
    stored_len: int
    raw_len: int
    payload_check: bytes

    @property
    def end(self) -> int:
        return self.payload_offset + self.stored_len


def check16(*parts: bytes | memoryview) -> bytes:
    """The 16-byte checksum used throughout: BLAKE3, truncated."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest(16)


def encode_header(pack_id: int) -> bytes:
    return _PACK_HEADER.pack(PACK_MAGIC, PACK_VERSION, 0, pack_id)


def check_header(data: bytes, pack_id: int, path: str) -> None:
    """Raises ``Corrupt`` unless ``data`` begins with the header of pack ``pack_id``."""
    if len(data) < HEADER_SIZE:
        raise Corrupt(f"{path}: truncated pack header ({len(data)} of {HEADER_SIZE} bytes)")
    magic, version, _, found = _PACK_HEADER.unpack_from(data)
    if magic != PACK_MAGIC or version != PACK_VERSION:
        raise Corrupt(f"{path}: not a pack of format {PACK_VERSION}")
    if found != pack_id:
        raise Corrupt(f"{path}: the header says pack {found}, the name says {pack_id}")


def encode_entries(records: list[tuple[int, int, bytes, int]]) -> bytes:
    """Encodes ``(table, tag, key, length)`` of each record of a frame."""
    pack = _ENTRY.pack
    return b"".join([pack(table, tag, len(key), length) + key for table, tag, key, length in records])


def encode_head(
    *, kind: int, codec: int, seq: int, count: int, entries: bytes, payload: bytes | memoryview, raw_len: int
) -> bytes:
    """The 64 bytes before the entries; the frame is this, ``entries``, ``payload``."""
    head = _HEAD.pack(
        FRAME_MAGIC, kind, codec, 0, count, len(entries), len(payload), raw_len, seq, check16(payload)
    )
    return head + check16(head, entries)


def commit_mark(seq: int) -> bytes:
    return encode_head(kind=COMMIT, codec=RAW, seq=seq, count=0, entries=b"", payload=b"", raw_len=0)


def read_frame(fd: int, offset: int) -> Frame | None:
    """The frame that begins at ``offset``, or None if no intact head is there. Payload unchecked."""
    head = os.pread(fd, HEAD_SIZE, offset)
    if len(head) < HEAD_SIZE or head[:4] != FRAME_MAGIC:
        return None
    fields = _HEAD.unpack_from(head)
    _, kind, codec, _, count, entries_len, stored_len, raw_len, seq, payload_check = fields
    if entries_len > _MAX_ENTRIES_LEN or stored_len > _MAX_FRAME or raw_len > _MAX_FRAME:
        return None
    table = os.pread(fd, entries_len, offset + HEAD_SIZE) if entries_len else b""
    if check16(head[: _HEAD.size], table) != head[_HEAD.size :]:
        return None
    try:
        entries = _decode_entries(table, count)
    except struct.error:
        return None
    return Frame(
        offset=offset,
        kind=kind,
        codec=codec,
        seq=seq,
        entries=entries,
        payload_offset=offset + HEAD_SIZE + entries_len,
        stored_len=stored_len,
        raw_len=raw_len,
        payload_check=payload_check,
    )


def _decode_entries(table: bytes, count: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    position = start = 0
    for _ in range(count):
        kind, tag, key_len, length = _ENTRY.unpack_from(table, position)
        position += _ENTRY.size
        entries.append(Entry(kind, tag, table[position : position + key_len], start, length))
        position += key_len
        start += length
    return tuple(entries)


def entry_places(table: bytes, kind: int) -> dict[bytes, tuple[int, int, int]]:
    """Tag, start and length of each record of table ``kind``, by key. Raises ``struct.error``.

    The same as ``decode_entries`` without an object for each entry: reading a tree is full of these.
    """
    places: dict[bytes, tuple[int, int, int]] = {}
    unpack, size = _ENTRY.unpack_from, _ENTRY.size
    position = start = 0
    while position < len(table):
        entry_kind, tag, key_len, length = unpack(table, position)
        position += size
        if entry_kind == kind:
            places[table[position : position + key_len]] = (tag, start, length)
        position += key_len
        start += length
    return places


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a pack (bytes ``start`` to ``end``) that holds no intact frame."""

    start: int
    end: int


def scan(fd: int, start: int = HEADER_SIZE) -> Iterator[Frame | Damage]:
    """Yields the frames of a pack in order, stepping over damaged ranges.

    A torn tail (a process that died while appending) shows as ``Damage`` up to the end of the file,
    like any other range without an intact frame; whether it matters, the caller knows from the marks.
    """
    size = os.fstat(fd).st_size
    offset = start
    while offset < size:
        frame = read_frame(fd, offset)
        if frame is not None and frame.end <= size:
            yield frame
            offset = frame.end
            continue
        following = _find_frame(fd, offset + 1, size)
        yield Damage(offset, following)
        offset = following


def _find_frame(fd: int, offset: int, size: int) -> int:
    """The offset of the next intact frame head, or ``size``."""
    while offset < size:
        block = os.pread(fd, _SCAN_STEP, offset)
        if not block:
            break
        at = block.find(FRAME_MAGIC)
        while at >= 0:
            frame = read_frame(fd, offset + at)
            if frame is not None and frame.end <= size:
                return offset + at
            at = block.find(FRAME_MAGIC, at + 1)
        # Blocks overlap so that a magic across their border is found.
        offset += max(1, len(block) - len(FRAME_MAGIC) + 1) if len(block) == _SCAN_STEP else len(block)
    return size
