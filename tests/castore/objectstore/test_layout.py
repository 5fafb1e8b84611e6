"""The layout of object stores: pure functions, and a store that was put by the description alone."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pyfastcdc import FastCDC

from neve.castore.blobs.base import Chunk
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.closure import ClosureLimits
from neve.castore.digest import EMPTY_BLOB, b3_digest
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import SizeRule
from neve.castore.objectstore.layout import (
    BLOBS,
    CHUNKS,
    DIRECTORIES,
    digest_in,
    key_of,
    pack_chunk,
    pack_closure,
    pack_list,
    packed_bound,
    unpack_chunk,
    unpack_closure,
    unpack_list,
)
from neve.errors import Corrupt, LimitExceeded
from neve.proto.tvix.castore.protos import castore_pb2, rpc_blobstore_pb2
from neve.testing.blob_reading import MIB, incompressible, put, repetitive
from neve.testing.directories import leaf, parent, put_closure, tree

DIGESTS = st.binary(min_size=32, max_size=32)
TABLES = st.sampled_from([CHUNKS, BLOBS, DIRECTORIES])
LIMITS = ClosureLimits()


# Keys.


def test_keys() -> None:
    text = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert key_of(BLOBS, EMPTY_BLOB) == f"blobs/b3/af13/{text}"
    assert key_of(CHUNKS, EMPTY_BLOB) == f"chunks/b3/af13/{text}"
    assert key_of(DIRECTORIES, EMPTY_BLOB) == f"dirs/b3/af13/{text}"


@given(TABLES, DIGESTS, TABLES)
def test_a_digest_is_found_in_its_key(table: str, digest: bytes, other: str) -> None:
    key = key_of(table, digest)
    assert digest_in(table, key) == digest_in(table, f"some/prefix/{key}") == digest
    assert (digest_in(other, key) is None) == (table != other)


@given(st.lists(DIGESTS, max_size=20))
def test_keys_are_in_the_order_of_digests(digests: list[bytes]) -> None:
    assert [key_of(BLOBS, digest) for digest in sorted(digests)] == sorted(
        key_of(BLOBS, digest) for digest in digests
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        "blobs/b3/af13/",
        f"blobs/b3/af14/{EMPTY_BLOB.hex()}",
        f"blobs/b3/af13/{EMPTY_BLOB.hex().upper()}",
        f"blobs/b3/af13/{EMPTY_BLOB.hex()}0",
        f"blobs/b3/af13/{EMPTY_BLOB.hex()}\n",
        f"blobs/b3/{EMPTY_BLOB.hex()}",
        f"blobs/sha256/af13/{EMPTY_BLOB.hex()}",
        f"blobs/b3/af13/{EMPTY_BLOB.hex()}#1",
    ],
)
def test_keys_of_somebody_else(key: str) -> None:
    assert digest_in(BLOBS, key) is None


# Contents.


@given(st.binary(max_size=5000))
def test_chunks(contents: bytes) -> None:
    digest = b3_digest(contents)
    packed = pack_chunk(contents)
    assert len(packed) <= packed_bound(len(contents))
    assert unpack_chunk(digest, packed, len(contents)) == contents
    assert unpack_chunk(digest, packed, len(contents) + 1) == contents
    if contents:
        with pytest.raises(LimitExceeded):
            unpack_chunk(digest, packed, len(contents) - 1)
    with pytest.raises(Corrupt):
        unpack_chunk(digest, packed[:-1], len(contents))
    with pytest.raises(Corrupt):
        unpack_chunk(b3_digest(b"other" + contents), packed, len(contents))


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=4))
def test_frames_of_any_kind(parts: list[bytes]) -> None:
    """Several, some of which state no size."""
    plain, silent = zstandard.ZstdCompressor(), zstandard.ZstdCompressor(write_content_size=False)
    compressors = itertools.cycle((plain, silent))
    packed = b"".join(next(compressors).compress(part) for part in parts)
    contents = b"".join(parts)
    assert unpack_chunk(b3_digest(contents), packed, len(contents)) == contents


def test_a_frame_that_becomes_much_more_is_not_followed() -> None:
    bomb = pack_chunk(bytes(200 * MIB))
    with pytest.raises(LimitExceeded):
        unpack_chunk(b3_digest(b""), bomb, MIB)


@given(st.lists(st.tuples(DIGESTS, st.integers(1, 1000)).map(lambda pair: Chunk(*pair)), max_size=6))
def test_lists(chunks: list[Chunk]) -> None:
    packed = pack_list(chunks)
    assert unpack_list(b3_digest(b""), packed, 1000) == (chunks if len(chunks) > 1 else [])
    assert (packed == b"") == (len(chunks) < 2)


@pytest.mark.parametrize("rule", SizeRule)
def test_closures(rule: SizeRule) -> None:
    order = [tree(rule)[number] for number in (5, 3, 4, 1, 2, 0)]
    root = order[0].digest
    packed = b"".join(pack_closure(one.encode() for one in order))
    assert list(unpack_closure(root, [packed], LIMITS)) == order
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    assert list(unpack_closure(root, pieces, LIMITS)) == order
    for end in range(len(packed)):
        with pytest.raises(Corrupt):
            list(unpack_closure(root, [packed[:end]], LIMITS))


def test_limits_of_closures() -> None:
    packed = b"".join(pack_closure([parent(leaf("a")).encode(), leaf("a").encode()]))
    root = parent(leaf("a")).digest
    for limits, name in ((ClosureLimits(20, 2), "max_directory_bytes"), (ClosureLimits(1000, 1), "max_dir")):
        with pytest.raises(LimitExceeded, match=name):
            list(unpack_closure(root, [packed], limits))
    huge = zstandard.compress(struct.pack(">I", 2**32 - 1) + b"x")
    with pytest.raises(LimitExceeded, match="4294967295 bytes"):
        list(unpack_closure(root, [huge], LIMITS))


# Whole stores.


def _write(root: Path, key: str, data: bytes) -> None:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _key(table: str, digest: bytes) -> str:
    return f"{table}/b3/{digest.hex()[:4]}/{digest.hex()}"


def _streamed(data: bytes) -> bytes:
    """As a program writes that compresses while it reads: the frame states no size."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join([compressor.compress(data), compressor.flush()])


def _put_blob(root: Path, contents: bytes, average: int = 256 * 1024) -> bytes:
    """By the description: the objects of a blob; returns its digest."""
    digest: bytes = blake3(contents).digest()
    cutter = FastCDC(average, min_size=average // 2, max_size=2 * average, normalized_chunking=1)
    chunks = [contents[cut.offset : cut.offset + cut.length] for cut in cutter.cut_buf(contents)]
    message = rpc_blobstore_pb2.StatBlobResponse()
    for chunk in chunks:
        _write(root, _key("chunks", blake3(chunk).digest()), _streamed(chunk))
        message.chunks.add(digest=blake3(chunk).digest(), size=len(chunk))
    _write(root, _key("blobs", digest), message.SerializeToString() if len(chunks) > 1 else b"")
    return digest


def _put_tree(root: Path, file: bytes, size: int) -> list[bytes]:
    """By the description: the object of a closure of three Directories; returns their digests."""
    inner = castore_pb2.Directory()
    inner.files.add(name=b"file", digest=file, size=size, executable=True)
    other = castore_pb2.Directory()
    other.symlinks.add(name=b"link", target=b"../file")
    encoded = [inner.SerializeToString(), other.SerializeToString()]
    digests = [blake3(each).digest() for each in encoded]
    top = castore_pb2.Directory()
    for name, digest in zip((b"a", b"b"), digests, strict=True):
        top.directories.add(name=name, digest=digest, size=1)
    first = top.SerializeToString()
    frames = b"".join(struct.pack(">I", len(each)) + each for each in (first, *encoded))
    _write(root, _key("dirs", blake3(first).digest()), _streamed(frames))
    return [blake3(first).digest(), *digests]


CONTENTS = [b"small", incompressible(1_000_003), repetitive(700_000), bytes(300_000), b""]


def test_a_store_that_was_put_by_the_description(tmp_path: Path) -> None:
    digests = [_put_blob(tmp_path, contents) for contents in CONTENTS]
    blobs = BLOB_SERVICES.open(f"objectstore+file://{tmp_path}")
    assert list(blobs.read_many(digests)) == CONTENTS
    assert blobs.missing(digests) == []
    assert blobs.list() == sorted(digest for digest in digests if digest != EMPTY_BLOB)
    assert len(blobs.chunks(digests[1]) or []) > 2
    blobs.close()
    tops = _put_tree(tmp_path, digests[0], 5)
    directories = DIRECTORY_SERVICES.open(f"objectstore+file://{tmp_path}")
    assert [one.digest for one in directories.get_recursive(tops[0])] == tops
    assert directories.list() == tops[:1]
    directories.close()


def _files(root: Path) -> dict[str, bytes]:
    """What lies there, without the compression: that may differ."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        key = str(path.relative_to(root))
        data = path.read_bytes()
        if not key.startswith("blobs/"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        found[key] = data
    return found


@pytest.mark.parametrize("average", [256 * 1024, 64 * 1024])
def test_ours_is_as_described(tmp_path: Path, average: int) -> None:
    described, ours = tmp_path / "described", tmp_path / "ours"
    blobs = BLOB_SERVICES.open(f"objectstore+file://{ours}?avg_chunk_size={average}")
    for contents in CONTENTS:
        assert put(blobs, contents) == _put_blob(described, contents, average)
    blobs.close()
    tops = _put_tree(described, b3_digest(b"small"), 5)
    theirs = DIRECTORY_SERVICES.open(f"objectstore+file://{described}")
    directories = DIRECTORY_SERVICES.open(f"objectstore+file://{ours}")
    assert put_closure(directories, reversed(list(theirs.get_recursive(tops[0])))) == tops[0]
    for service in (theirs, directories):
        service.close()
    assert _files(ours) == _files(described)


@pytest.fixture
def one_frame(tmp_path: Path) -> bytes:
    blobs = BLOB_SERVICES.open(f"objectstore+file://{tmp_path}/store")
    digest = put(blobs, b"contents")
    blobs.close()
    return (tmp_path / "store" / _key("chunks", digest)).read_bytes()


def test_a_chunk_is_one_frame(one_frame: bytes) -> None:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    assert decompressor.decompress(one_frame) == b"contents"
    assert decompressor.eof
    assert decompressor.unused_data == b""
