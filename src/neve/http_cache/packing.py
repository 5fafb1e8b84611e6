"""Compressing NARs the way somebody has uploaded them.

Nix remembers for weeks under which name, and in which compression, it has uploaded a NAR, and asks for just
that file. What is kept is the tree, so the file is made again: in its compression, though not with its
bytes, which nobody compares. The fastest setting of each is taken.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

_GZIP = 31
"""For zlib: the header and trailer of gzip, the largest window."""


class Compressor(Protocol):
    """Makes one member, as the standard library has them."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Brotli:
    def __init__(self) -> None:
        self._compressor: Any = importlib.import_module("brotli").Compressor(quality=1)

    def compress(self, data: bytes, /) -> bytes:
        packed: bytes = self._compressor.process(data)
        return packed

    def flush(self) -> bytes:
        packed: bytes = self._compressor.finish()
        return packed


class _Lz4:
    def __init__(self) -> None:
        self._compressor: Any = importlib.import_module("lz4.frame").LZ4FrameCompressor()
        self._head: bytes = self._compressor.begin()

    def compress(self, data: bytes, /) -> bytes:
        head, self._head = self._head, b""
        packed: bytes = self._compressor.compress(data)
        return head + packed

    def flush(self) -> bytes:
        packed: bytes = self._compressor.flush()
        return self._head + packed


class _Lzip:
    """Raw LZMA between a header and a trailer (the format's manual, "File format")."""

    _HEADER = b"LZIP\x01\x14"
    _TRAILER_BYTES = 20

    def __init__(self) -> None:
        filters = [{"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 1 << 20}]
        self._compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
        self._head = self._HEADER
        self._crc = self._size = self._packed = 0

    def compress(self, data: bytes, /) -> bytes:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        return self._counted(self._compressor.compress(data))

    def flush(self) -> bytes:
        body = self._counted(self._compressor.flush())
        sizes = (self._size, self._packed + self._TRAILER_BYTES)
        return b"".join((body, self._crc.to_bytes(4, "little"), *(n.to_bytes(8, "little") for n in sizes)))

    def _counted(self, packed: bytes) -> bytes:
        packed, self._head = self._head + packed, b""
        self._packed += len(packed)
        return packed


COMPRESSORS: Final[dict[str, Callable[[], Compressor]]] = {
    "gzip": lambda: zlib.compressobj(1, wbits=_GZIP),
    "xz": lambda: lzma.LZMACompressor(preset=0),
    "bzip2": lambda: bz2.BZ2Compressor(1),
    "br": _Brotli,
    "lz4": _Lz4,
    "lzip": _Lzip,
}
"""By the names of narinfos. zstd has a way of its own (``zstd_frames``)."""
