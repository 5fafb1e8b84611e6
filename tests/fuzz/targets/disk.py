"""What lies on a disk, which may be anybody's: stores, caches, and tables of the kernel."""

from __future__ import annotations

import functools
import itertools
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from neve.castore.ingest.statcache import StatCache, TreeStamp
from neve.errors import Corrupt, InvalidRequest, Unavailable
from neve.packstore import layout, pack
from neve.packstore.datafile import DATA_FILE, check_data_file
from neve.packstore.frames import decompress
from neve.packstore.index import Index
from neve.packstore.layout import STORE_FILE, read_description
from neve.packstore.location import Location, decode_location, decode_number, encode_location
from neve.packstore.pack import Damage, entry_places
from tests.fuzz.target import Bound, Target

KEY = bytes(range(32))
"""Of the packs."""

_MAX_RAW = 1 << 20


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="neve-fuzz-")


@functools.cache
def folder(name: str) -> Path:
    """A folder that is there until the process ends."""
    made = Path(_scratch().name) / name
    made.mkdir()
    return made


@functools.cache
def _file(name: str) -> int:
    return os.memfd_create(name)


def _written(name: str, *parts: bytes) -> int:
    file = _file(name)
    os.ftruncate(file, 0)
    os.pwrite(file, b"".join(parts), 0)
    return file


def _scan(file: int) -> None:
    """Frames and damage lie side by side from the beginning to the end, and frames hold what they say."""
    size = os.fstat(file).st_size
    at = 0
    for found in pack.scan(file, KEY, 0):
        if isinstance(found, Damage):
            assert (found.start, at < found.end <= size) == (at, True)
            at = found.end
            continue
        assert (found.offset, at < found.end <= size) == (at, True)
        at = found.end
        entries_len = found.payload_offset - found.offset - pack.HEAD_SIZE
        table = os.pread(file, entries_len, found.offset + pack.HEAD_SIZE)
        for kind in {entry.table for entry in found.entries}:
            last = {e.key: (e.tag, e.start, e.length) for e in found.entries if e.table == kind}
            assert entry_places(table, kind) == last
        if found.kind == pack.DATA and pack.payload_intact(file, found) and found.raw_len <= _MAX_RAW:
            stored = os.pread(file, found.stored_len, found.payload_offset)
            raw = decompress(found.codec, stored, found.raw_len, found.payload_offset)
            assert len(raw) == found.raw_len
    assert at == size


def _pack(data: bytes) -> None:
    _scan(_written("pack", data))


def _sealed_pack(data: bytes) -> None:
    """A frame whose checks are right, whatever it says: made by somebody who has read the key."""
    kind, codec, count, raw_len, entries_len = struct.unpack_from("<BBHIH", data.ljust(10, b"\0"))
    entries, payload = data[10 : 10 + entries_len], data[10 + entries_len :]
    head = pack.encode_head(
        *(KEY,),
        kind=kind,
        codec=codec,
        seq=1,
        count=count,
        entries=entries,
        payload=payload,
        raw_len=raw_len,
    )
    _scan(_written("sealed-pack", head, entries, payload, b"and something else"))


def _pack_header(data: bytes) -> None:
    pack.check_header(data, 7, KEY, "pack")
    assert data[: pack.HEADER_SIZE] == pack.encode_header(7, KEY)


def _frame(data: bytes) -> None:
    """What a place in the index points to."""
    size = int.from_bytes(data[:3], "little")
    assert len(decompress(pack.ZSTD, data[3:], size, 0)) == size


def _location(data: bytes) -> None:
    """Behind a key of 32 bytes."""
    key, value = data[:32], data[32:]
    assert encode_location(key, decode_location(key, value)) == value


def _sealed_location(data: bytes) -> None:
    """The same with its checksum; and a number."""
    key, body = data[:32], data[32:].ljust(29, b"\0")[:29]
    value = body + zlib.crc32(key + body).to_bytes(4, "little")
    decode_location(key, value)
    decode_number(key, body[:8] + zlib.crc32(key + body[:8]).to_bytes(4, "little"))


def _store_file(data: bytes) -> None:
    (folder("store") / STORE_FILE).write_bytes(data)
    read_description(folder("store"))


def _sealed_store_file(data: bytes) -> None:
    """The same with its checksum."""
    try:
        document = json.loads(data)
        document["check"] = layout._check_of(document)
        data = json.dumps(document).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Corrupt("no object") from None
    _store_file(data)


@functools.cache
def _index() -> bytes:
    """The data file of an index with something in it."""
    path = folder("index-made")
    index = Index(path, create=True)
    for number in range(3):
        with index.write() as txn:
            where = Location(1, 0, 0, 5, 5, 0, 0, 5)
            txn.put_absent(1, [(b"%032d" % (key * 7 + number), where) for key in range(40)])
    index.close()
    return (path / DATA_FILE).read_bytes()


def _patches(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where, in two bytes (in units of 8 bytes), how many, and what."""
    at = 0
    while at + 3 <= len(data):
        place, size = struct.unpack_from("<HB", data, at)
        yield place * 8, data[at + 3 : at + 3 + size]
        at += 3 + size


def _index_file(data: bytes) -> None:
    """An index with patches: what is not refused is one that LMDB can be left alone with."""
    contents = bytearray(_index())
    for place, patch in itertools.islice(_patches(data), 16):
        contents[place : place + len(patch)] = patch
    (folder("index") / DATA_FILE).write_bytes(contents)
    check_data_file(folder("index"))


def _index_beginning(data: bytes) -> None:
    """A file of this and nothing else."""
    (folder("index") / DATA_FILE).write_bytes(data)
    check_data_file(folder("index"))


def _stat_cache(data: bytes) -> None:
    """Rubbish counts as not there."""
    cache = StatCache(folder("stat-cache"))
    cache._file(b"key").write_bytes(data)
    stamp = TreeStamp()
    result = cache.get(b"key", stamp)
    assert result is None or json.loads(data)["stamp"] == stamp.digest().hex()


_ENTRY = struct.pack("<BBBI", 1, 2, 32, 5) + bytes(32)

TARGETS = (
    # What is looked through is read a megabyte at a time.
    Target("pack", _pack, (Corrupt,), memory=Bound(3 * _MAX_RAW, 200), words=(pack.FRAME_MAGIC, _ENTRY)),
    Target("sealed-pack", _sealed_pack, (Corrupt,), memory=Bound(3 * _MAX_RAW, 200), words=(_ENTRY,)),
    Target("pack-header", _pack_header, (Corrupt,)),
    Target("frame", _frame, (Corrupt,), memory=Bound(33 * _MAX_RAW, 64)),
    Target("location", _location, (Corrupt,)),
    Target("sealed-location", _sealed_location, (Corrupt,)),
    Target("store-file", _store_file, (Corrupt, InvalidRequest), words=(b'"format":', b'"version":', b"{")),
    Target(
        "sealed-store-file",
        _sealed_store_file,
        (Corrupt, InvalidRequest),
        words=(b'"key":', b'"settings":', b"null", b"[]", b"1e400"),
    ),
    Target(
        "index-file",
        _index_file,
        (Corrupt, Unavailable),
        memory=Bound(2 * 1024 * 1024, 64),
        steps=Bound(4000, 100),
        longest=512,
        rounds=200,
    ),
    Target("index-beginning", _index_beginning, (Corrupt,), memory=Bound(256 * 1024, 64)),
    Target("stat-cache", _stat_cache, (), words=(b'"key":', b'"stamp":', b'"started_ns":', b"[" * 200)),
)
