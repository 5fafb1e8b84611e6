"""Making what ``neve.nix.compression`` undoes."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

_brotli: Any = importlib.import_module("brotli")
_lz4: Any = importlib.import_module("lz4.frame")


def compress_br(contents: bytes) -> bytes:
    compressed: bytes = _brotli.compress(contents, quality=5)
    return compressed


def compress_lz4(contents: bytes) -> bytes:
    compressed: bytes = _lz4.compress(contents, content_checksum=True)
    return compressed


def compress_lzip(contents: bytes) -> bytes:
    header = b"LZIP\x01" + bytes([20])
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20}]
    body = lzma.compress(contents, format=lzma.FORMAT_RAW, filters=filters)
    trailer = zlib.crc32(contents).to_bytes(4, "little") + len(contents).to_bytes(8, "little")
    return header + body + trailer + (len(header) + len(body) + 20).to_bytes(8, "little")


def compress_zstd(contents: bytes) -> bytes:
    """With a checksum and without a size."""
    return zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(contents)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "xz": lambda contents: lzma.compress(contents, preset=0),
    "bzip2": lambda contents: bz2.compress(contents, 1),
    "gzip": lambda contents: gzip.compress(contents, 1),
    "zstd": compress_zstd,
    "br": compress_br,
    "lz4": compress_lz4,
    "lzip": compress_lzip,
}
