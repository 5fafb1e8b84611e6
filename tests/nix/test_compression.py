from __future__ import annotations

import gzip
import hashlib
import itertools
import lzma
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import InvalidRequest, LimitExceeded, Unavailable, Unsupported
from neve.nix.compression import (
    COMPRESSIONS,
    MAX_PIECE,
    SUFFIXES,
    InvalidCompression,
    decompressed,
    sniffed,
)
from neve.nix.narinfo import NarInfo

from .compressing import COMPRESSORS, compress_br
from .vectors import narinfo_files

COMPRESSED = [name for name in COMPRESSIONS if name != "none"]
WITH_MAGIC = [name for name in COMPRESSED if name != "br"]
SAMPLE = b"a sample of some bytes, of some bytes " * 7


def whole(data: bytes, compression: str, cuts: list[int] | None = None) -> bytes:
    """The contents of ``data``, handed in cut at ``cuts``; no piece of it is too long or empty."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts or []), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    result = list(decompressed(pieces, compression))
    assert all(0 < len(piece) <= MAX_PIECE for piece in result)
    return b"".join(result)


def test_the_names() -> None:
    assert set(COMPRESSIONS) == set(SUFFIXES) == set(COMPRESSORS)
    assert len(set(SUFFIXES.values())) == len(SUFFIXES)


@pytest.mark.parametrize("narinfo", narinfo_files(), ids=lambda path: f"{path.parent.name}-{path.stem[:4]}")
def test_what_nix_wrote(narinfo: Path) -> None:
    info = NarInfo.parse(narinfo.read_bytes())
    data = (narinfo.parent / info.url).read_bytes()
    assert sniffed(data[:16]) == info.compression
    contents = whole(data, info.compression)
    assert (len(contents), hashlib.sha256(contents).digest()) == (info.nar_size, info.nar_sha256)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(contents=st.binary(max_size=2000), repeat=st.integers(1, 300), cuts=st.lists(st.integers(0, 3000)))
def test_round_trip_however_it_is_cut(
    compression: str, contents: bytes, repeat: int, cuts: list[int]
) -> None:
    expected = contents * repeat
    assert whole(COMPRESSORS[compression](expected), compression, cuts) == expected


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_byte_at_a_time(compression: str) -> None:
    data = COMPRESSORS[compression](SAMPLE)
    assert whole(data, compression, list(range(len(data)))) == SAMPLE


@pytest.mark.parametrize("compression", WITH_MAGIC)
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=6), cuts=st.lists(st.integers(0, 500)))
def test_several_members_are_one_stream(compression: str, parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(COMPRESSORS[compression], parts))
    assert whole(data, compression, cuts) == b"".join(parts)


@pytest.mark.parametrize("compression", COMPRESSED)
def test_cut_anywhere(compression: str) -> None:
    data = COMPRESSORS[compression](SAMPLE)
    for length in range(len(data)):
        for cuts in ([], [length // 2]):
            with pytest.raises(InvalidCompression, match=f"^{compression} data"):
                whole(data[:length], compression, cuts)


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("garbage", [b"x", b"\0", b"\0" * 4 + b"\1", b"something else entirely, and long"])
def test_something_behind_the_end(compression: str, garbage: bytes) -> None:
    data = COMPRESSORS[compression](SAMPLE)
    for cuts in ([], [len(data)], [len(data) - 1, len(data) + 1]):
        with pytest.raises(InvalidCompression, match=f"^{compression} data"):
            whole(data + garbage, compression, cuts)


@pytest.mark.parametrize("compression", COMPRESSED)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused_or_has_a_bounded_meaning(compression: str, garbage: bytes) -> None:
    # Nothing but our own errors, whatever comes; brotli takes some short garbage for a stream.
    for data in (garbage, COMPRESSORS[compression](SAMPLE)[:20] + garbage):
        try:
            contents = whole(data, compression)
        except (InvalidCompression, LimitExceeded):
            continue
        assert compression == "br" or SAMPLE.startswith(contents)


@pytest.mark.parametrize("compression", [name for name in COMPRESSED if name != "br"])
def test_a_flipped_bit_never_changes_the_contents(compression: str) -> None:
    data = COMPRESSORS[compression](SAMPLE)
    for place, bit in itertools.product(range(len(data)), (0, 5)):
        flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        try:
            contents = whole(flipped, compression)
        except (InvalidCompression, LimitExceeded):
            continue
        # Times and flags in headers, and empty frames to skip, mean nothing.
        assert contents in (SAMPLE, b"")


# Bombs


def zeros_zstd(size: int, *, stated: bool) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor().compressobj(**({"size": size} if stated else {}))
    zeros = bytes(1 << 20)
    for _ in range(size >> 20):
        yield compressor.compress(zeros)
    yield compressor.flush()


GIBIBYTE = 1 << 30
MEMBER = 1 << 26
BOMBS: dict[str, tuple[str, Callable[[], Iterator[bytes]]]] = {
    "zstd": ("zstd", lambda: zeros_zstd(GIBIBYTE, stated=False)),
    "zstd that states its size": ("zstd", lambda: zeros_zstd(GIBIBYTE, stated=True)),
    "xz": ("xz", lambda: itertools.repeat(lzma.compress(bytes(MEMBER), preset=1), GIBIBYTE // MEMBER)),
    "gzip": ("gzip", lambda: itertools.repeat(gzip.compress(bytes(MEMBER), 1), GIBIBYTE // MEMBER)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_gibibyte_of_zeros_comes_in_pieces(name: str) -> None:
    compression, compressed = BOMBS[name]
    data = list(compressed())
    assert sum(map(len, data)) < GIBIBYTE // 100
    size = 0
    tracemalloc.start()
    try:
        for piece in decompressed(data, compression):
            assert 0 < len(piece) <= MAX_PIECE
            size += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == GIBIBYTE
    assert peak < 32 * 1024 * 1024


@pytest.mark.parametrize("compression", ["bzip2", "br", "lz4", "lzip"])
def test_zeros_come_in_pieces_from_the_others_too(compression: str) -> None:
    data = COMPRESSORS[compression](bytes(1 << 26))
    tracemalloc.start()
    try:
        pieces = decompressed([data], compression)
        assert sum(len(piece) for piece in pieces if len(piece) <= MAX_PIECE) == 1 << 26
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_bomb_can_be_left_after_the_first_piece() -> None:
    given: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in itertools.count():
            given.append(number)
            yield zstandard.compress(bytes(MAX_PIECE))

    output = decompressed(pieces(), "zstd")
    assert next(output)
    assert len(given) == 1


def test_no_more_memory_than_the_limit_for_a_dictionary() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}]
    with pytest.raises(LimitExceeded, match=f"xz would need more than the limit of {256 << 20} bytes"):
        whole(lzma.compress(SAMPLE, filters=filters), "xz")
    lzip = bytearray(COMPRESSORS["lzip"](SAMPLE))
    lzip[5] = 29
    with pytest.raises(LimitExceeded, match=f"dictionary of {512 << 20} bytes"):
        whole(bytes(lzip), "lzip")
    lzip[5] = 30
    with pytest.raises(InvalidCompression, match="not of a size that lzip has"):
        whole(bytes(lzip), "lzip")
    with pytest.raises(LimitExceeded, match=f"window of {256 << 20} bytes, the limit is {128 << 20}"):
        whole(ZSTD_MAGIC + bytes([0, 18 << 3]), "zstd")
    # A frame of one segment needs its whole size as window.
    with pytest.raises(LimitExceeded, match="window"):
        whole(ZSTD_MAGIC + bytes([0xE0]) + (1 << 40).to_bytes(8, "little"), "zstd")


def test_what_xz_writes_at_its_best_is_below_the_limit() -> None:
    assert whole(lzma.compress(SAMPLE, preset=9 | lzma.PRESET_EXTREME), "xz") == SAMPLE


# zstd, taken apart here

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@given(
    contents=st.binary(max_size=400_000),
    checksum=st.booleans(),
    sized=st.booleans(),
    level=st.sampled_from([-5, 1, 19]),
    cuts=st.lists(st.integers(0, 400_000), max_size=8),
)
def test_zstd_frames_of_every_shape(
    contents: bytes, checksum: bool, sized: bool, level: int, cuts: list[int]
) -> None:
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=sized)
    assert whole(compressor.compress(contents), "zstd", cuts) == contents
    streamed = compressor.compressobj()
    parts = [streamed.compress(contents[i : i + 50_000]) for i in range(0, len(contents), 50_000)]
    flushed = streamed.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + streamed.flush()
    assert whole(b"".join(parts) + flushed, "zstd", cuts) == contents


def skippable(contents: bytes, kind: int = 0) -> bytes:
    return bytes([0x50 + kind]) + b"\x2a\x4d\x18" + len(contents).to_bytes(4, "little") + contents


def test_zstd_frames_to_skip() -> None:
    frame = zstandard.compress(SAMPLE)
    data = skippable(b"") + frame + skippable(b"x" * 100_000, 15) + frame
    assert whole(data, "zstd") == whole(data, "zstd", [4, 9, 70_000]) == SAMPLE * 2
    assert sniffed(data[:16]) == "zstd"
    with pytest.raises(InvalidCompression, match="within a skippable frame"):
        whole(frame + skippable(b"x" * 100_000)[:-1], "zstd")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ZSTD_MAGIC + b"\x08\x00", "a reserved bit"),
        (ZSTD_MAGIC + b"\x01\x50\x07", "needs a dictionary"),
        (ZSTD_MAGIC + b"\x00\x50" + (3 << 1 | 1).to_bytes(3, "little"), "reserved type"),
        (ZSTD_MAGIC + b"\x00\x50" + (131_073 << 3 | 1).to_bytes(3, "little"), "131073 bytes, at most 131072"),
        (ZSTD_MAGIC + b"\x20\x05" + (2 << 3 | 1).to_bytes(3, "little") + b"xy", "before byte 11"),
        (ZSTD_MAGIC + b"\x04\x50" + (2 << 3 | 1).to_bytes(3, "little") + b"xy" + bytes(4), "before byte 15"),
    ],
    ids=["reserved bit", "dictionary", "reserved block", "large block", "wrong size", "wrong checksum"],
)
def test_zstd_that_breaks_a_rule(data: bytes, message: str) -> None:
    with pytest.raises(InvalidCompression, match=message):
        whole(data, "zstd")


def test_zstd_blocks_of_one_repeated_byte() -> None:
    header = ZSTD_MAGIC + b"\x00\x58"
    block = (131_072 << 3 | 1 << 1).to_bytes(3, "little") + b"z"
    last = (1).to_bytes(3, "little")
    assert whole(header + block * 100 + last, "zstd") == b"z" * (131_072 * 100)


# The others


@pytest.mark.parametrize("position", [-1, -9, -17])
def test_lzip_with_a_trailer_that_lies(position: int) -> None:
    data = bytearray(COMPRESSORS["lzip"](SAMPLE))
    data[position] ^= 1
    with pytest.raises(InvalidCompression, match=r"of a member is .*, its trailer says"):
        whole(bytes(data), "lzip")


def test_xz_streams_with_padding_between_them() -> None:
    one = lzma.compress(SAMPLE)
    assert whole(one + bytes(8) + one + bytes(4), "xz") == SAMPLE * 2
    with pytest.raises(InvalidCompression, match="padding"):
        whole(one + bytes(6), "xz")


def test_brotli_that_fills_its_buffer_at_the_end_of_the_input() -> None:
    contents = b"some bytes" * 400_000
    assert whole(compress_br(contents), "br") == contents


@pytest.mark.parametrize(
    "head", [b"", b"\r" + bytes(7) + b"nix-arch", b"BZh9x", b"BZ", b"\x28\xb5", b"\xfd7zX"]
)
def test_heads_that_are_none_of_them(head: bytes) -> None:
    assert sniffed(head) == "none"


@pytest.mark.parametrize("compression", WITH_MAGIC)
@pytest.mark.parametrize("contents", [b"", SAMPLE])
def test_sniffing(compression: str, contents: bytes) -> None:
    assert sniffed(COMPRESSORS[compression](contents)[:16]) == compression


def test_an_unknown_compression() -> None:
    with pytest.raises(Unsupported, match=r"compression 'rar' is not known \(known: none, xz, "):
        decompressed([b""], "rar")


@pytest.mark.parametrize(("compression", "module"), [("br", "brotli"), ("lz4", "lz4.frame")])
def test_a_library_that_is_not_installed(
    compression: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unsupported, match=r"install neve\[http\]"):
        decompressed([b""], compression)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_errors_of_the_input_pass_through(compression: str) -> None:
    class BrokenError(OSError):
        pass

    def pieces(error: Exception) -> Iterator[bytes]:
        yield COMPRESSORS[compression](SAMPLE)[:5]
        raise error

    for error in (BrokenError("gone"), Unavailable("gone"), EOFError(), InvalidRequest("no")):
        with pytest.raises(type(error)) as raised:
            list(decompressed(pieces(error), compression))
        assert raised.value is error
