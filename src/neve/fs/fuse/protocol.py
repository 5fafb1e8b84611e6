"""The FUSE protocol as bytes: requests in, replies out. No I/O, and nothing of what is asked for.

Layouts are those of ``linux/fuse.h``, version 7.38, little-endian. A request is a header and a body of
which the opcode tells the form; a reply is a header, and a body if it is no error. Requests may come from
a hostile guest: every length is checked, and what does not fit raises ``MalformedRequest``, nothing else.

``decode`` may be given views into memory that is used again: what it returns does not refer to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from neve.errors import InvalidRequest
from neve.fs.fuse.opcodes import NOTIFY_STORE, InitFlag, Opcode

__all__ = [
    "FOREVER",
    "MAJOR",
    "MAX_NAME_BYTES",
    "MINOR",
    "MIN_MINOR",
    "OUT_HEADER_BYTES",
    "Attributes",
    "Header",
    "MalformedRequest",
    "decode",
    "decode_header",
    "dirent",
    "direntplus",
    "encode_attributes",
    "encode_entry",
    "encode_init",
    "encode_lseek",
    "encode_missing_entry",
    "encode_opened",
    "encode_statfs",
    "encode_xattr_size",
    "error_reply",
    "reply_header",
]

MAJOR, MINOR = 7, 38
"""The version spoken here. The lower minor version of the two sides counts."""

MIN_MINOR = 23
"""From Linux 3.15 on, replies have the lengths that they have here."""

MAX_NAME_BYTES = 1024
"""Longest name that a kernel sends (FUSE_NAME_MAX); those of a Directory are shorter."""

FOREVER = 1 << 40
"""Seconds that what never changes may be kept."""

OUT_HEADER_BYTES = 16

Buffer = bytes | bytearray | memoryview


class MalformedRequest(InvalidRequest):
    """Bytes that are no request, or not the request that their header says."""


# Requests.


class Header(NamedTuple):
    """What every request begins with."""

    length: int
    """Of the whole request, in bytes."""
    opcode: int
    unique: int
    """Number of the request, which the reply repeats."""
    node: int
    """Inode that it is about."""
    uid: int
    gid: int
    pid: int
    extensions: int
    """Length of what may follow the body, in units of 8 bytes."""


class Init(NamedTuple):
    """The first request: what the kernel speaks."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    """64 bits, see ``InitFlag``."""


class Read(NamedTuple):
    """READ, READDIR and READDIRPLUS."""

    handle: int
    offset: int
    size: int


class Forgotten(NamedTuple):
    """An inode, and how many of the lookups that gave it are forgotten."""

    node: int
    lookups: int


class GetXattr(NamedTuple):
    """GETXATTR: ``size`` is what there is room for, 0 to be told how much is needed."""

    name: bytes
    size: int


class Lseek(NamedTuple):
    """LSEEK, only asked for data and holes."""

    handle: int
    offset: int
    whence: int


_HEADER = struct.Struct("<IIQQIIIHxx")
_U32_PADDED = struct.Struct("<Ixxxx")
_U64 = struct.Struct("<Q")
_INIT = struct.Struct("<IIII")
_FLAGS2 = struct.Struct("<I")
_INIT_EXT_BYTES = 64
_OPEN = struct.Struct("<II")
_READ = struct.Struct("<QQI20x")
_RELEASE = struct.Struct("<QII8x")
_GETATTR = struct.Struct("<IxxxxQ")
_LSEEK = struct.Struct("<QQIxxxx")
_FORGET_ONE = struct.Struct("<QQ")

HEADER_BYTES: Final = _HEADER.size


def decode_header(request: Buffer) -> Header:
    """The header. Raises ``MalformedRequest`` if there is none; then nobody can be answered."""
    if len(request) < HEADER_BYTES:
        raise MalformedRequest(f"a request of {len(request)} bytes is shorter than its header")
    return Header._make(_HEADER.unpack_from(request))


def decode(header: Header, request: Buffer) -> Any:
    """What a request asks for: of the type that ``BODIES`` has for its opcode, None if that has no body or
    is not known here. Raises ``MalformedRequest``."""
    if header.length != len(request):
        raise MalformedRequest(f"a request of {len(request)} bytes says that it has {header.length}")
    decoder = BODIES.get(header.opcode)
    if decoder is None:
        return None
    end = len(request) - 8 * header.extensions
    if end < HEADER_BYTES:
        raise MalformedRequest(f"the extensions of a request of {len(request)} bytes are longer than it is")
    return decoder(memoryview(request)[HEADER_BYTES:end])


def _unpack(layout: struct.Struct, body: memoryview) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise MalformedRequest(f"a body of {len(body)} bytes instead of {layout.size}")
    return layout.unpack(body)


def _number(layout: struct.Struct) -> Callable[[memoryview], int]:
    """A decoder of bodies of which the first field is all that counts."""
    return lambda body: _unpack(layout, body)[0]


def _name(body: memoryview) -> bytes:
    """A name, with the NUL behind it."""
    name = bytes(body)
    end = name.find(0)
    if end != len(name) - 1 or end < 1:
        raise MalformedRequest(f"a name of {len(name)} bytes is empty, or not ended by its only NUL byte")
    if end > MAX_NAME_BYTES:
        raise MalformedRequest(f"a name of {end} bytes is longer than {MAX_NAME_BYTES}")
    return name[:end]


def _init(body: memoryview) -> Init:
    if len(body) < _INIT.size:
        raise MalformedRequest(f"INIT has a body of {len(body)} bytes")
    major, minor, max_readahead, flags = _INIT.unpack_from(body)
    if flags & InitFlag.INIT_EXT:
        if len(body) < _INIT_EXT_BYTES:
            raise MalformedRequest(f"an extended INIT has a body of {len(body)} bytes")
        flags |= _FLAGS2.unpack_from(body, _INIT.size)[0] << 32
    return Init(major, minor, max_readahead, flags)


def _read(body: memoryview) -> Read:
    return Read._make(_unpack(_READ, body))


def _forgotten(body: memoryview) -> list[Forgotten]:
    if len(body) < _U64.size:
        raise MalformedRequest(f"BATCH_FORGET has a body of {len(body)} bytes")
    count = _U32_PADDED.unpack_from(body)[0]
    rest = body[_U32_PADDED.size :]
    if len(rest) != count * _FORGET_ONE.size:
        raise MalformedRequest(f"BATCH_FORGET of {count} inodes has {len(rest)} bytes of them")
    return list(map(Forgotten._make, _FORGET_ONE.iter_unpack(rest)))


def _getxattr(body: memoryview) -> GetXattr:
    if len(body) < _U32_PADDED.size:
        raise MalformedRequest(f"GETXATTR has a body of {len(body)} bytes")
    return GetXattr(_name(body[_U32_PADDED.size :]), _U32_PADDED.unpack_from(body)[0])


def _lseek(body: memoryview) -> Lseek:
    return Lseek._make(_unpack(_LSEEK, body))


def _nothing(body: memoryview) -> None:
    if body:
        raise MalformedRequest(f"a body of {len(body)} bytes where there is none")


BODIES: Mapping[int, Callable[[memoryview], object]] = {
    Opcode.LOOKUP: _name,
    Opcode.FORGET: _number(_U64),  # Lookups.
    Opcode.GETATTR: _number(_GETATTR),  # Flags.
    Opcode.READLINK: _nothing,
    Opcode.OPEN: _number(_OPEN),  # As for open(2).
    Opcode.READ: _read,
    Opcode.STATFS: _nothing,
    Opcode.RELEASE: _number(_RELEASE),  # The handle.
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _number(_U32_PADDED),  # How much there is room for.
    Opcode.FLUSH: _number(_RELEASE),
    Opcode.INIT: _init,
    Opcode.OPENDIR: _number(_OPEN),
    Opcode.READDIR: _read,
    Opcode.RELEASEDIR: _number(_RELEASE),
    Opcode.ACCESS: _number(_U32_PADDED),  # As for access(2).
    Opcode.INTERRUPT: _number(_U64),  # The request that is not waited for any more.
    Opcode.DESTROY: _nothing,
    Opcode.BATCH_FORGET: _forgotten,
    Opcode.READDIRPLUS: _read,
    Opcode.LSEEK: _lseek,
}


# Replies.


class Attributes(NamedTuple):
    """What stat(2) tells."""

    node: int
    size: int
    """In bytes."""
    mode: int


_TIME = 1
"""Seconds after the epoch: the time of everything in a store."""
_BLOCK = 512
_BLOCK_SIZE = 4096

_OUT_HEADER = struct.Struct("<IiQ")
_ATTR = "QQQQQQIIIIIIIIII"
_ATTR_OUT = struct.Struct("<QII" + _ATTR)
_ENTRY_OUT = struct.Struct("<QQQQII" + _ATTR)
_DIRENT = struct.Struct("<QQII")
_DIRENTPLUS_BYTES = _ENTRY_OUT.size + _DIRENT.size
_PLUS = struct.Struct("<Q32sQQQ36sI24sQQII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_OPEN_OUT = struct.Struct("<QIxxxx")
_STATFS = struct.Struct("<QQQQQIII28x")
_NOTIFY_STORE = struct.Struct("<IiQQQIxxxx")
_XATTR_SIZE = struct.Struct("<Ixxxx")

_PADDING: Final = (b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0")
_NO_PLUS: Final = bytes(_ENTRY_OUT.size)

# What is equal in all entries of a READDIRPLUS, of which there may be a million.
_PLUS_VALID: Final = struct.pack("<QQQII", 0, FOREVER, FOREVER, 0, 0)
_PLUS_TIMES: Final = struct.pack("<QQQIII", _TIME, _TIME, _TIME, 0, 0, 0)
_PLUS_OTHERS: Final = struct.pack("<IIIIII", 1, 0, 0, 0, _BLOCK_SIZE, 0)


def reply_header(unique: int, body_bytes: int) -> bytes:
    """What stands before the body of a reply."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + body_bytes, 0, unique)


def error_reply(unique: int, error: int) -> bytes:
    """A whole reply that says what is the matter: a number of ``errno``."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, -error, unique)


def failed_reply(header: bytes | memoryview, error: int) -> bytes:
    """Another whole reply to the same request, instead of the one with that header."""
    return error_reply(_OUT_HEADER.unpack(header)[2], error)


def encode_init(
    minor: int, max_readahead: int, flags: int, *, max_background: int, max_write: int, max_pages: int
) -> bytes:
    """Answers INIT: what of the kernel's abilities is used, and what is taken at once."""
    low, high = flags & 0xFFFFFFFF, flags >> 32
    congestion = max_background * 3 // 4
    return _INIT_OUT.pack(
        MAJOR, minor, max_readahead, low, max_background, congestion, max_write, 1, max_pages, 0, high
    )


def encode_entry(attributes: Attributes, valid: int = FOREVER) -> bytes:
    """Answers LOOKUP: an inode, which the kernel may know by that name for ``valid`` seconds."""
    node, size, mode = attributes
    return _ENTRY_OUT.pack(node, 0, valid, FOREVER, 0, 0, *_attr(node, size, mode))


def encode_missing_entry() -> bytes:
    """Answers LOOKUP where nothing is, and never will be."""
    return _ENTRY_OUT.pack(0, 0, FOREVER, 0, 0, 0, *_attr(0, 0, 0))


def encode_attributes(attributes: Attributes) -> bytes:
    """Answers GETATTR."""
    return _ATTR_OUT.pack(FOREVER, 0, 0, *_attr(*attributes))


def _attr(node: int, size: int, mode: int) -> tuple[int, ...]:
    blocks = -(-size // _BLOCK)
    return node, size, blocks, _TIME, _TIME, _TIME, 0, 0, 0, mode, 1, 0, 0, 0, _BLOCK_SIZE, 0


def encode_opened(flags: int, handle: int = 0) -> bytes:
    """Answers OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, flags)


def encode_statfs(name_bytes: int) -> bytes:
    """Answers STATFS: nothing is free, and how much there is, nobody knows."""
    return _STATFS.pack(0, 0, 0, 0, 0, _BLOCK_SIZE, name_bytes, _BLOCK_SIZE)


def encode_xattr_size(size: int) -> bytes:
    """Answers GETXATTR and LISTXATTR where there is room for nothing: how much is needed."""
    return _XATTR_SIZE.pack(size)


def encode_lseek(offset: int) -> bytes:
    """Answers LSEEK."""
    return _U64.pack(offset)


def notify_store(node: int, data: bytes) -> list[bytes]:
    """The parts of a message that nobody asked for: the contents of a file, from its beginning, for the
    kernel to keep."""
    head = _NOTIFY_STORE.pack(OUT_HEADER_BYTES + 24 + len(data), NOTIFY_STORE, 0, node, 0, len(data))
    return [head, data]


def dirent(node: int, following: int, kind: int, name: bytes) -> bytes:
    """One entry of an answer to READDIR: ``kind`` is the type of its mode, ``following`` where to go on."""
    return _DIRENT.pack(node, following, len(name), kind >> 12) + name + _PADDING[len(name) & 7]


def direntplus(node: int, size: int, mode: int, following: int, name: bytes) -> bytes:
    """One entry of an answer to READDIRPLUS; it counts as a lookup."""
    blocks = (size + 511) // _BLOCK
    length = len(name)
    return (
        _PLUS.pack(
            node, _PLUS_VALID, node, size, blocks, _PLUS_TIMES, mode, _PLUS_OTHERS, node, following, length,
            mode >> 12,
        )
        + name
        + _PADDING[length & 7]
    )  # fmt: skip


def direntplus_unknown(node: int, following: int, kind: int, name: bytes) -> bytes:
    """The same for an entry of which no more is told than by READDIR; it counts for nothing."""
    return _NO_PLUS + dirent(node, following, kind, name)


def dirent_bytes(name: bytes, *, plus: bool) -> int:
    """How long an entry of that name is."""
    head = _DIRENTPLUS_BYTES if plus else _DIRENT.size
    return head + ((len(name) + 7) & ~7)


def whole(unique: int, body: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The parts of a reply with that body."""
    return [reply_header(unique, sum(map(len, body))), *body]
