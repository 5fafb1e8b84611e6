"""zstd frames, taken apart as far as it needs to bound what they become (RFC 8878).

The library gives out as much as a frame makes of the input it gets, and says nothing when a frame is cut
short. So the headers of frames and blocks are read here: a block never makes more than 128 KiB, input goes
to the library in whole blocks, and where a frame ends is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import zstandard

from neve.errors import LimitExceeded
from neve.nix._compressed import MAX_PIECE, SLICE, Source

MAX_WINDOW: Final = 128 * 1024 * 1024
"""Bytes of the past that a frame may refer to: what ``zstd`` takes without being told otherwise."""

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""The end of the magic number of a frame to skip; the first byte is 0x50 to 0x5f."""
_MAX_BLOCK: Final = 128 * 1024
_BLOCKS_AT_ONCE: Final = MAX_PIECE // _MAX_BLOCK
_BLOCK_HEADER: Final = 3
_CHECKSUM: Final = 4
_RLE, _RESERVED = 1, 3

_DICTIONARY_ID_SIZES: Final = (0, 1, 2, 4)
_CONTENT_SIZE_SIZES: Final = (0, 2, 4, 8)


def is_skippable(magic: bytes) -> bool:
    """Whether the four bytes begin a frame that holds nothing."""
    return magic[1:4] == _SKIPPABLE and 0x50 <= magic[0] <= 0x5F


def zstd_frames(source: Source) -> Iterator[bytes]:
    """The contents of all frames, in pieces of at most 1 MiB."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    while True:
        magic = source.take(4, "the magic number of a frame")
        if magic == _MAGIC:
            yield from _frame(source, decompressor)
        elif is_skippable(magic):
            _skip(source, int.from_bytes(source.take(4, "the size of a skippable frame"), "little"))
        else:
            raise source.invalid(f"{magic.hex()} is not the magic number of a frame")
        if source.at_end():
            return


def _skip(source: Source, size: int) -> None:
    while size:
        skipped = source.some(min(size, SLICE))
        if not skipped:
            raise source.truncated("a skippable frame")
        size -= len(skipped)


def _frame(source: Source, decompressor: zstandard.ZstdDecompressor) -> Iterator[bytes]:
    """One frame, behind its magic number."""
    header, has_checksum = _frame_header(source)
    frame = decompressor.decompressobj()
    waiting = [_MAGIC + header]
    last = False
    while not last:
        for _ in range(_BLOCKS_AT_ONCE):
            block, last = _block(source)
            waiting.append(block)
            if last:
                if has_checksum:
                    waiting.append(source.take(_CHECKSUM, "the checksum of a frame"))
                break
        try:
            contents = frame.decompress(b"".join(waiting))
        except zstandard.ZstdError as error:
            raise source.invalid(str(error)) from error
        waiting.clear()
        if contents:
            yield contents
    if not frame.eof:
        raise source.invalid("a frame goes on behind its last block")


def _frame_header(source: Source) -> tuple[bytes, bool]:
    """The header behind the magic number, and whether the frame ends with a checksum."""
    first = source.take(1, "the header of a frame")
    descriptor = first[0]
    single_segment = bool(descriptor & 0x20)
    if descriptor & 0x08:
        raise source.invalid("a reserved bit in the header of a frame is set")
    content_size = _CONTENT_SIZE_SIZES[descriptor >> 6]
    if single_segment and not content_size:
        content_size = 1
    ahead = 0 if single_segment else 1
    dictionary_id = _DICTIONARY_ID_SIZES[descriptor & 3]
    rest = source.take(ahead + dictionary_id + content_size, "the header of a frame")
    if single_segment:
        window = int.from_bytes(rest[dictionary_id:], "little") + (256 if content_size == 2 else 0)
    else:
        base = 1 << (10 + (rest[0] >> 3))
        window = base + base // 8 * (rest[0] & 7)
    if window > MAX_WINDOW:
        raise LimitExceeded(f"a zstd frame needs a window of {window} bytes, the limit is {MAX_WINDOW}")
    if any(rest[ahead : ahead + dictionary_id]):
        raise source.invalid("a frame needs a dictionary, and there is none")
    return first + rest, bool(descriptor & 0x04)


def _block(source: Source) -> tuple[bytes, bool]:
    """One block with its header, and whether it is the last one of its frame."""
    encoded = source.take(_BLOCK_HEADER, "the header of a block")
    header = int.from_bytes(encoded, "little")
    kind = header >> 1 & 3
    size = header >> 3
    if kind == _RESERVED:
        raise source.invalid("a block is of the reserved type")
    if size > _MAX_BLOCK:
        raise source.invalid(f"a block has {size} bytes, at most {_MAX_BLOCK} are allowed")
    contents = source.take(1 if kind == _RLE else size, "a block") if size or kind == _RLE else b""
    return encoded + contents, bool(header & 1)
