"""The pack file: an append-only log of frames, readable without any index.

::

    pack    = header frame*
    header  = "neve-pack" version:u8 reserved:u16 id:u32 key:32 check:16          (64 bytes)
    frame   = head entries payload
    head    = "NvFr" kind:u8 codec:u8 reserved:u16 count:u32 entries_len:u32 stored_len:u32
              raw_len:u32 seq:u64 payload_check:16 entries_check:16 head_check:16 (80 bytes)
    entry   = table:u8 tag:u8 key_len:u8 length:u32 key

Integers are little-endian. Checks are BLAKE3 (16 bytes): of the entries, of the payload as stored, and,
keyed, of the head (header) before the check. The records of a frame lie one after the other in the
decompressed payload, in the order of the entries.

A *data* frame carries records. A *commit mark* carries none; it says that everything before it in
this pack was made durable by the transaction ``seq``, or an earlier one, before that went into the
index. Transactions are numbered by the index, across processes, so the marks also order what several
packs say of one key. What lies behind the last mark was never acknowledged. Where a transaction goes to
several packs, each mark but the first has as ``raw_len`` the id of the pack that was marked before: what
lies there comes first, and the rest refers to it.

A data frame with a ``seq`` of its own holds changes: each record replaces what the key had, or deletes
it. Records of the others, which are staged before their transaction is known, are added where the key
has nothing (or something of a lower tag).

The key is random, one for each store, and the same in all its packs. It tells frames of this store from
bytes that look like some: a blob may be made of frames, and behind a damaged head the search for the next
one goes through whatever lies there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

from neve.errors import Corrupt

PACK_MAGIC = b"neve-pack"
PACK_VERSION = 1
KEY_SIZE = 32
CHECK_SIZE = 16
_PACK_HEADER = struct.Struct("<9sBHI32s")
HEADER_SIZE = _PACK_HEADER.size + CHECK_SIZE

FRAME_MAGIC = b"NvFr"
_HEAD = struct.Struct("<4sBBHIIIIQ16s16s")
HEAD_SIZE = _HEAD.size + CHECK_SIZE
_ENTRY = struct.Struct("<BBBI")
_ENTRY_OF_DIGEST = struct.Struct("<BBBI32s")
"""With a key of the usual length."""

DATA, COMMIT = 1, 2
RAW, ZSTD = 0, 1

TOMBSTONE = 0xFF
"""The tag of an entry that says: the key was deleted. Such a record has no bytes."""

TABLES = range(1, 9)
"""The numbers of the tables; every store has all of them, in use or not."""

MAX_SEQ = 1 << 63
"""Greatest number of a transaction that is believed: the next ones must have room above it."""

_MAX_STORED = (1 << 30) - 1
"""Bytes of a payload as it is stored, which a location in the index has room for."""

MAX_RECORD = 80 * 1024 * 1024
"""Upper bound of one record in bytes: a Directory of 64 MiB, the largest object, and some air."""

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
    """A frame's head and entries, as found at ``offset`` of a pack."""

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
    return hasher.digest(CHECK_SIZE)


def _keyed_check(data: bytes, key: bytes) -> bytes:
    return blake3(data, key=key).digest(CHECK_SIZE)


def encode_header(pack_id: int, key: bytes) -> bytes:
    header = _PACK_HEADER.pack(PACK_MAGIC, PACK_VERSION, 0, pack_id, key)
    return header + _keyed_check(header, key)


def check_header(data: bytes, pack_id: int, key: bytes, path: str) -> None:
    """Raises ``Corrupt`` unless ``data`` begins with the header of pack ``pack_id`` of this store."""
    if len(data) < HEADER_SIZE:
        raise Corrupt(f"{path}: truncated pack header ({len(data)} of {HEADER_SIZE} bytes)")
    magic, version, _, found, found_key = _PACK_HEADER.unpack_from(data)
    if magic != PACK_MAGIC or version != PACK_VERSION:
        raise Corrupt(f"{path}: not a pack of format {PACK_VERSION}")
    if found != pack_id:
        raise Corrupt(f"{path}: the header says pack {found}, the name says {pack_id}")
    if found_key != key:
        raise Corrupt(f"{path}: the pack belongs to another store")
    if data[:HEADER_SIZE] != encode_header(pack_id, key):
        raise Corrupt(f"{path}: the pack header is damaged")


def encode_entries(records: list[tuple[int, int, bytes, int]]) -> bytes:
    """Encodes ``(table, tag, key, length)`` of each record of a frame."""
    pack = _ENTRY.pack
    return b"".join([pack(table, tag, len(key), length) + key for table, tag, key, length in records])


def encode_head(
    key: bytes,
    *,
    kind: int,
    codec: int,
    seq: int,
    count: int,
    entries: bytes,
    payload: bytes | memoryview,
    raw_len: int,
) -> bytes:
    """What comes before the entries; the frame is this, ``entries``, ``payload``."""
    sizes = (count, len(entries), len(payload), raw_len)
    head = _HEAD.pack(FRAME_MAGIC, kind, codec, 0, *sizes, seq, check16(payload), check16(entries))
    return head + _keyed_check(head, key)


def commit_mark(seq: int, key: bytes, after: int = 0) -> bytes:
    """``after``: the pack that was marked before by the same transaction, 0 if this is the first."""
    return encode_head(key, kind=COMMIT, codec=RAW, seq=seq, count=0, entries=b"", payload=b"", raw_len=after)


def read_frame(fd: int, offset: int, key: bytes) -> Frame | None:
    """The frame that begins at ``offset``, or None if no intact one is there. Payload unchecked."""
    head = os.pread(fd, HEAD_SIZE, offset)
    if len(head) < HEAD_SIZE or head[:4] != FRAME_MAGIC:
        return None
    if _keyed_check(head[: _HEAD.size], key) != head[_HEAD.size :]:
        return None
    _, kind, codec, _, count, entries_len, stored_len, raw_len, seq, payload_check, entries_check = (
        _HEAD.unpack_from(head)
    )
    table = os.pread(fd, entries_len, offset + HEAD_SIZE) if entries_len else b""
    if check16(table) != entries_check:
        return None
    if not _makes_sense(kind, codec, count, stored_len, seq):
        return None
    entries = _decode_entries(table, count, raw_len)
    if entries is None:
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


def _makes_sense(kind: int, codec: int, count: int, stored_len: int, seq: int) -> bool:
    """Whether we would write such a head: checks keep nobody from writing nonsense who has read the key."""
    if kind == COMMIT:
        return count == stored_len == 0 and seq <= MAX_SEQ
    return kind == DATA and codec in (RAW, ZSTD) and stored_len <= _MAX_STORED and seq <= MAX_SEQ


def _decode_entries(table: bytes, count: int, raw_len: int) -> tuple[Entry, ...] | None:
    """The entries of a payload of ``raw_len`` bytes; None if they make no sense."""
    if len(table) == count * _ENTRY_OF_DIGEST.size:
        rows = list(_ENTRY_OF_DIGEST.iter_unpack(table))
        if all(row[2] == 32 for row in rows):
            return _entries_of_digests(rows, raw_len)
    entries: list[Entry] = []
    position = start = 0
    while position + _ENTRY.size <= len(table):
        kind, tag, key_len, length = _ENTRY.unpack_from(table, position)
        if kind not in TABLES or not key_len:
            return None
        position += _ENTRY.size
        entries.append(Entry(kind, tag, table[position : position + key_len], start, length))
        position += key_len
        start += length
    fits = position == len(table) and len(entries) == count and (start <= raw_len or not entries)
    return tuple(entries) if fits else None


def _entries_of_digests(
    rows: list[tuple[int, int, int, int, bytes]], raw_len: int
) -> tuple[Entry, ...] | None:
    """The same where all keys have 32 bytes, as nearly everywhere: a verification is full of these."""
    starts = list(accumulate([row[3] for row in rows], initial=0))
    if any(row[0] not in TABLES for row in rows) or (rows and starts[-1] > raw_len):
        return None
    return tuple(
        [
            Entry(kind, tag, key, start, length)
            for (kind, tag, _, length, key), start in zip(rows, starts, strict=False)
        ]
    )


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


def scan(fd: int, key: bytes, start: int = HEADER_SIZE) -> Iterator[Frame | Damage]:
    """Yields the frames of a pack in order, stepping over damaged ranges.

    A torn tail (a process that died while appending) shows as ``Damage`` up to the end of the file,
    like any other range without an intact frame; whether it matters, the caller knows from the marks.
    """
    size = os.fstat(fd).st_size
    offset = start
    while offset < size:
        frame = read_frame(fd, offset, key)
        if frame is not None and frame.end <= size:
            yield frame
            offset = frame.end
            continue
        following = _find_frame(fd, offset + 1, size, key)
        yield Damage(offset, following)
        offset = following


def _find_frame(fd: int, offset: int, size: int, key: bytes) -> int:
    """The offset of the next intact frame, or ``size``."""
    while offset < size:
        block = os.pread(fd, _SCAN_STEP, offset)
        if not block:
            break
        at = block.find(FRAME_MAGIC)
        while at >= 0:
            frame = read_frame(fd, offset + at, key)
            if frame is not None and frame.end <= size:
                return offset + at
            at = block.find(FRAME_MAGIC, at + 1)
        # Blocks overlap so that a magic across their border is found.
        offset += max(1, len(block) - len(FRAME_MAGIC) + 1)
    return size


def payload_intact(fd: int, frame: Frame) -> bool:
    """Whether the payload of ``frame`` is what was written."""
    return check16(os.pread(fd, frame.stored_len, frame.payload_offset)) == frame.payload_check
