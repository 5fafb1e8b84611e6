"""The compressions of NARs in binary caches, undone while streaming.

Whatever the input claims, memory stays bounded: output comes in pieces of at most 1 MiB, and a decoder
that would need more than its limit is refused. Data that is damaged, cut short or followed by something
else is an error; several members or frames in a row are one stream, as their formats have it.

There is no I/O here: pieces of bytes in, pieces of bytes out.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from neve.errors import LimitExceeded, Unsupported
from neve.nix._compressed import MAX_MEMORY, MAX_PIECE, InvalidCompression, Source
from neve.nix._text import quoted
from neve.nix._zstd import is_skippable, zstd_frames

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["COMPRESSIONS", "MAX_PIECE", "SUFFIXES", "InvalidCompression", "decompressed", "sniffed"]

SUFFIXES: Final[dict[str, str]] = {
    "none": "",
    "xz": ".xz",
    "bzip2": ".bz2",
    "gzip": ".gz",
    "zstd": ".zst",
    "br": ".br",
    "lz4": ".lz4",
    "lzip": ".lzip",
}
"""What file names end in, by compression. Nix itself gives files compressed with gzip no ending."""

COMPRESSIONS: Final = tuple(SUFFIXES)
"""The names as narinfos have them."""

_BROTLI_OUTPUT: Final = MAX_PIECE // 4
"""The library passes its own limit by up to the double."""

_GZIP: Final = 31
"""For ``zlib``: the header and trailer of gzip, the largest window."""

_MAGIC: Final = (
    ("xz", b"\xfd7zXZ\x00"),
    ("gzip", b"\x1f\x8b\x08"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("lz4", b"\x04\x22\x4d\x18"),
    ("lzip", b"LZIP\x01"),
)
_BZIP2: Final = b"BZh"
_BZIP2_BLOCKS: Final = (b"1AY&SY", b"\x17rE8P\x90")
"""What follows the level: the beginning of a block, or of the end of an empty file."""


def sniffed(head: bytes) -> str:
    """The compression of a file by its first 16 bytes; ``none`` if it is none of those with a magic number
    (``br`` has none)."""
    for name, magic in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(_BZIP2) and head[3:4].isdigit() and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    # lz4 has frames to skip too, but nobody begins a file with them.
    return "zstd" if len(head) >= 4 and is_skippable(head) else "none"


def decompressed(pieces: Iterable[bytes], compression: str) -> Iterator[bytes]:
    """The contents of ``pieces``, which are compressed as a narinfo names it, in pieces of at most 1 MiB.

    Raises ``InvalidCompression`` while iterating, ``LimitExceeded`` if the decoder would need too much
    memory; at once ``Unsupported`` for another name or if the library for it is not installed.
    """
    decoder = _DECODERS.get(compression)
    if decoder is None:
        known = ", ".join(COMPRESSIONS)
        raise Unsupported(f"compression {quoted(compression)} is not known (known: {known})")
    return decoder(Source(pieces, compression))


def _stored(source: Source) -> Iterator[bytes]:
    while piece := source.some(MAX_PIECE):
        yield piece


# Formats whose files are one or several members, each read by a decoder of its own.


class _Member(Protocol):
    """The decoder of one member, as the standard library has them for bzip2 and xz."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def _member(source: Source, decoder: _Member) -> Iterator[bytes]:
    """The contents of one member; leaves ``source`` behind it."""
    while not decoder.eof:
        data = b""
        if decoder.needs_input:
            data = source.some()
            if not data:
                raise source.truncated("a member")
        try:
            contents = decoder.decompress(data, MAX_PIECE)
        except lzma.LZMAError as error:
            if "Memory usage limit" in str(error):
                limit = f"the limit of {MAX_MEMORY} bytes"
                raise LimitExceeded(f"a decoder of xz would need more than {limit}") from error
            raise source.invalid(str(error)) from error
        except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
            raise source.invalid(str(error)) from error
        if contents:
            yield contents
    source.give_back(decoder.unused_data)


def _members(source: Source, new: Callable[[], _Member]) -> Iterator[bytes]:
    yield from _member(source, new())
    while not source.at_end():
        yield from _member(source, new())


class _GzipMember:
    """``zlib`` in the shape of the others."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_GZIP)
        self._filled = False

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        # When the output was filled, there may be more of it although all input is used.
        return not self._filled

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = MAX_PIECE) -> bytes:
        contents = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        self._filled = len(contents) == max_length or bool(self._decoder.unconsumed_tail)
        return contents


def _gzip(source: Source) -> Iterator[bytes]:
    return _members(source, _GzipMember)


def _bzip2(source: Source) -> Iterator[bytes]:
    return _members(source, bz2.BZ2Decompressor)


def _lz4(source: Source) -> Iterator[bytes]:
    frame = _extra("lz4.frame", "lz4")
    return _members(source, frame.LZ4FrameDecompressor)


def _xz(source: Source) -> Iterator[bytes]:
    def new() -> _Member:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)

    yield from _member(source, new())
    while not source.at_end():
        if not _xz_padding(source):
            yield from _member(source, new())


def _xz_padding(source: Source) -> bool:
    """Skips padding, four zero bytes at a time, behind a stream. Tells whether there was some."""
    first = source.some(1)
    if first != b"\x00":
        source.give_back(first)
        return False
    rest = source.take(3, "the padding behind a stream")
    if any(rest):
        raise source.invalid("the padding behind a stream is not of zero bytes, four at a time")
    return True


# lzip: raw LZMA between a header and a trailer of its own, which the standard library does not know.

_LZIP_HEADER: Final = b"LZIP\x01"
_LZIP_TRAILER: Final = 20
_LZIP_SMALLEST: Final = 4 * 1024
_LZIP_LARGEST: Final = 512 * 1024 * 1024


def _lzip(source: Source) -> Iterator[bytes]:
    yield from _lzip_member(source)
    while not source.at_end():
        yield from _lzip_member(source)


def _lzip_member(source: Source) -> Iterator[bytes]:
    start = source.position
    header = source.take(len(_LZIP_HEADER), "the header of a member")
    if header != _LZIP_HEADER:
        raise source.invalid(f"{header.hex()} is not the header of a member")
    dictionary = _lzip_dictionary(source, source.take(1, "the header of a member")[0])
    lzma1 = {"id": lzma.FILTER_LZMA1, "dict_size": dictionary, "lc": 3, "lp": 0, "pb": 2}
    crc = size = 0
    for piece in _member(source, lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[lzma1])):
        crc = zlib.crc32(piece, crc)
        size += len(piece)
        yield piece
    trailer = source.take(_LZIP_TRAILER, "the trailer of a member")
    for what, stated, actual in (
        ("CRC32", trailer[:4], crc),
        ("size", trailer[4:12], size),
        ("compressed size", trailer[12:], source.position - start),
    ):
        number = int.from_bytes(stated, "little")
        if number != actual:
            raise source.invalid(f"the {what} of a member is {actual}, its trailer says {number}")


def _lzip_dictionary(source: Source, code: int) -> int:
    """The size of the dictionary in bytes: a power of two less some sixteenths of it."""
    size: int = 1 << (code & 0x1F)
    size -= size // 16 * (code >> 5)
    if not _LZIP_SMALLEST <= size <= _LZIP_LARGEST:
        raise source.invalid(f"a dictionary of {size} bytes is not of a size that lzip has")
    if size > MAX_MEMORY:
        raise LimitExceeded(f"a decoder of lzip would need a dictionary of {size} bytes, limit {MAX_MEMORY}")
    return size


def _brotli(source: Source) -> Iterator[bytes]:
    brotli = _extra("brotli", "brotli")
    if not hasattr(brotli.Decompressor, "can_accept_more_data"):
        raise Unsupported("this version of brotli cannot bound what it gives out; install neve[http] again")
    return _brotli_stream(source, brotli)


def _brotli_stream(source: Source, brotli: Any) -> Iterator[bytes]:
    """One stream: the format has neither members nor a checksum."""
    decoder = brotli.Decompressor()
    while not decoder.is_finished():
        accepts = decoder.can_accept_more_data()
        data = source.some() if accepts else b""
        try:
            contents = decoder.process(data, output_buffer_limit=_BROTLI_OUTPUT)
        except brotli.error as error:
            raise source.invalid("damaged, or something follows the end of the stream") from error
        # It takes more before it has given out all that it has, so that the end of the input says nothing.
        if accepts and not data and not contents and not decoder.is_finished():
            raise source.truncated("the stream")
        for start in range(0, len(contents), MAX_PIECE):
            yield contents[start : start + MAX_PIECE]
    if not source.at_end():
        raise source.invalid("something follows the end of the stream")


def _extra(module: str, package: str) -> ModuleType:
    """A library that only clients of caches need."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unsupported(
            f"{package} is not installed, which this compression needs: install neve[http]"
        ) from error


_DECODERS: Final[dict[str, Callable[[Source], Iterator[bytes]]]] = {
    "none": _stored,
    "xz": _xz,
    "bzip2": _bzip2,
    "gzip": _gzip,
    "zstd": zstd_frames,
    "br": _brotli,
    "lz4": _lz4,
    "lzip": _lzip,
}
