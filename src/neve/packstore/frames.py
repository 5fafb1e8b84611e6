"""Making frames: several records, one compress call, one append.

Compression is zstd's fast search with a table of 32 Ki entries and matches from 7 bytes: of a kernel
source tree it leaves as much as level 1, in a tenth less time. A double-fast search would leave 6 % less,
but takes a third more time, and compressing is what an import spends most of its time on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import zstandard

from neve.errors import Corrupt, LimitExceeded
from neve.packstore import pack
from neve.packstore.layout import pack_name
from neve.packstore.location import Location, offset_of, pack_of

FRAME_TARGET = 256 * 1024
"""Small records are gathered up to about this many bytes a frame: larger frames compress 3 % better,
and cost a random read four times as much."""

MAX_FRAME_RECORDS = 4096
"""No frame has more records than this, however small they are: it bounds the table of entries."""

_SAMPLE_BYTES = 4096

_WINDOW_LOG, _CHAIN_LOG, _HASH_LOG, _MIN_MATCH = 18, 13, 15, 7


class Record(NamedTuple):
    """One record to store."""

    tag: int
    key: bytes
    data: bytes | memoryview


class EncodedFrame(NamedTuple):
    """A frame ready to be appended: ``head + entries + payload``. ``places`` are relative."""

    head: bytes
    entries: bytes
    payload: bytes | memoryview
    codec: int
    raw_len: int

    @property
    def size(self) -> int:
        return len(self.head) + len(self.entries) + len(self.payload)


class _Codecs(threading.local):
    """Compression contexts; one serves one thread at a time."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(
                window_log=_WINDOW_LOG,
                chain_log=_CHAIN_LOG,
                hash_log=_HASH_LOG,
                search_log=1,
                min_match=_MIN_MATCH,
                target_length=0,
                strategy=zstandard.STRATEGY_FAST,
                write_content_size=True,
                write_checksum=False,
            )
        )
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def compress(raw: bytes | memoryview, *, alone: bool = False) -> bytes | None:
    """``raw`` as one zstd frame that states its length, or None if that is no smaller.

    ``alone``: it is a single record. Then samples tell whether it is worth trying at all.
    """
    if not raw or (alone and not is_compressible(raw)):
        return None
    packed = _codecs.compressor.compress(raw)
    return packed if len(packed) < len(raw) else None


def is_compressible(raw: bytes | memoryview) -> bool:
    """Whether samples of a long ``raw`` become smaller; a short one is always tried."""
    if len(raw) < 16 * _SAMPLE_BYTES:
        return True
    for place in (0, len(raw) // 3, 2 * len(raw) // 3):
        if len(_codecs.compressor.compress(raw[place : place + _SAMPLE_BYTES])) < _SAMPLE_BYTES * 31 // 32:
            return True
    return False


class Packed(NamedTuple):
    """The payload of a frame: its records as they are, or one zstd frame of them that states ``raw_len``."""

    payload: bytes | memoryview
    raw_len: int
    codec: int


def encode_frame(
    table: int, records: Sequence[Record], store_key: bytes, seq: int = 0, packed: Packed | None = None
) -> EncodedFrame:
    """Builds a data frame of ``records``, compressed if that makes it smaller.

    ``seq`` is for changes only: the transaction that makes them. ``packed`` are the records' contents as
    they were compressed before.
    """
    for tag, key, data in records:
        if len(data) > pack.MAX_RECORD:
            raise LimitExceeded(f"record {key.hex()} has {len(data)} bytes, the limit is {pack.MAX_RECORD}")
        assert tag < pack.TOMBSTONE or not data
    payload, raw_len, codec = packed or _payload(records)
    entries = pack.encode_entries([(table, tag, key, len(data)) for tag, key, data in records])
    head = pack.encode_head(
        store_key,
        kind=pack.DATA,
        codec=codec,
        seq=seq,
        count=len(records),
        entries=entries,
        payload=payload,
        raw_len=raw_len,
    )
    return EncodedFrame(head, entries, payload, codec, raw_len)


def _payload(records: Sequence[Record]) -> Packed:
    """The records' contents, compressed if that makes them smaller."""
    raw = records[0].data if len(records) == 1 else b"".join([r.data for r in records])
    packed = compress(raw, alone=len(records) == 1)
    return Packed(raw, len(raw), pack.RAW) if packed is None else Packed(packed, len(raw), pack.ZSTD)


def group_records(records: Iterable[Record], target: int = FRAME_TARGET) -> Iterator[list[Record]]:
    """Splits records into groups of about ``target`` bytes, in order; a large record is alone."""
    group: list[Record] = []
    size = 0
    for record in records:
        if group and (size + len(record.data) > target or len(group) == MAX_FRAME_RECORDS):
            yield group
            group, size = [], 0
        group.append(record)
        size += len(record.data)
    if group:
        yield group


def locations(frame: EncodedFrame, records: Sequence[Record], place: int) -> list[Location]:
    """The locations of ``records`` once the payload of ``frame`` lies at ``place``."""
    result: list[Location] = []
    codec, stored_len, raw_len = frame.codec, len(frame.payload), frame.raw_len
    entries_len = len(frame.entries)
    start = 0
    for tag, _, data in records:
        length = len(data)
        result.append(Location(tag, place, codec, stored_len, raw_len, entries_len, start, length))
        start += length
    return result


def decompress(codec: int, stored: bytes, raw_len: int, place: int) -> bytes:
    """The payload of the frame at ``place``. Raises ``Corrupt`` naming it.

    The size in the zstd header decides how much is allocated, so it is compared with the index first.
    """
    if codec == pack.RAW:
        raw = stored
    else:
        try:
            if zstandard.frame_content_size(stored) != raw_len:
                raise Corrupt(f"{describe_place(place)}: the compressed frame's header is damaged")
            raw = _codecs.decompressor.decompress(stored)
        except zstandard.ZstdError as error:
            raise Corrupt(f"{describe_place(place)}: the compressed frame is damaged ({error})") from error
    if len(raw) != raw_len:
        raise Corrupt(f"{describe_place(place)}: {len(raw)} bytes, {raw_len} expected")
    return raw


def describe_place(place: int) -> str:
    """A place for messages."""
    return f"pack {pack_name(pack_of(place))} at {offset_of(place)}"
