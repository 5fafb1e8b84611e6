"""The codec, against the layouts of ``linux/fuse.h``."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest

from neve.fs.fuse import protocol
from neve.fs.fuse.opcodes import InitFlag, Opcode
from neve.fs.fuse.protocol import (
    Attributes,
    Forgotten,
    GetXattr,
    Header,
    Init,
    Lseek,
    MalformedRequest,
    Read,
    decode,
    decode_header,
)

from .asking import ATTR, IN_HEADER, Attr, dirents, entry, request

SMALL = b"\x01\x00\x00\x00"

# Opcode, body, what it says.
REQUESTS: list[tuple[Opcode, bytes, Any]] = [
    (Opcode.LOOKUP, b"name\0", b"name"),
    (Opcode.LOOKUP, b"\xff\n\0", b"\xff\n"),
    (Opcode.LOOKUP, b"x" * 1024 + b"\0", b"x" * 1024),
    (Opcode.FORGET, struct.pack("<Q", 3), 3),
    (Opcode.GETATTR, struct.pack("<IIQ", 1, 0, 5), 1),
    (Opcode.READLINK, b"", None),
    (Opcode.OPEN, struct.pack("<II", 0o100000, 0), 0o100000),
    (Opcode.READ, struct.pack("<QQIIQII", 7, 1 << 40, 4096, 2, 9, 0, 0), Read(7, 1 << 40, 4096)),
    (Opcode.STATFS, b"", None),
    (Opcode.RELEASE, struct.pack("<QIIQ", 7, 0, 0, 0), 7),
    (Opcode.GETXATTR, struct.pack("<II", 64, 0) + b"user.x\0", GetXattr(b"user.x", 64)),
    (Opcode.LISTXATTR, struct.pack("<II", 64, 0), 64),
    (Opcode.FLUSH, struct.pack("<QIIQ", 7, 0, 0, 0), 7),
    (Opcode.INIT, struct.pack("<IIII", 7, 31, 131072, 0x3FFFFFFF), Init(7, 31, 131072, 0x3FFFFFFF)),
    (
        Opcode.INIT,
        struct.pack("<IIIII44x", 7, 45, 131072, 1 << 30 | 5, 3),
        Init(7, 45, 131072, 3 << 32 | 1 << 30 | 5),
    ),
    (Opcode.OPENDIR, struct.pack("<II", 0o200000, 0), 0o200000),
    (Opcode.READDIR, struct.pack("<QQIIQII", 0, 2, 4096, 0, 0, 0, 0), Read(0, 2, 4096)),
    (Opcode.RELEASEDIR, struct.pack("<QIIQ", 7, 0, 0, 0), 7),
    (Opcode.ACCESS, struct.pack("<II", 4, 0), 4),
    (Opcode.INTERRUPT, struct.pack("<Q", 12), 12),
    (Opcode.DESTROY, b"", None),
    (
        Opcode.BATCH_FORGET,
        struct.pack("<IIQQQQ", 2, 0, 5, 1, 6, 1 << 63),
        [Forgotten(5, 1), Forgotten(6, 1 << 63)],
    ),
    (Opcode.BATCH_FORGET, struct.pack("<II", 0, 0), []),
    (Opcode.READDIRPLUS, struct.pack("<QQIIQII", 0, 2, 4096, 0, 0, 0, 0), Read(0, 2, 4096)),
    (Opcode.LSEEK, struct.pack("<QQII", 0, 2, 3, 0), Lseek(0, 2, 3)),
]


def test_every_known_body_is_in_the_table() -> None:
    assert {opcode for opcode, _, _ in REQUESTS} == set(protocol.BODIES)


@pytest.mark.parametrize(("opcode", "body", "expected"), REQUESTS)
def test_requests(opcode: Opcode, body: bytes, expected: Any) -> None:
    whole = IN_HEADER.pack(40 + len(body), opcode, 1 << 40, 9, 1000, 100, 77, 0, 0) + body
    memory = bytearray(whole)
    header = decode_header(memory)
    assert header == Header(40 + len(body), opcode, 1 << 40, 9, 1000, 100, 77, 0)
    decoded = decode(header, memoryview(memory))
    # What was decoded does not depend on the memory that it was in.
    memory[:] = bytes(len(memory))
    assert decoded == expected


@pytest.mark.parametrize(("opcode", "body", "expected"), REQUESTS)
def test_bodies_that_are_too_short_or_too_long(opcode: Opcode, body: bytes, expected: Any) -> None:
    lengths = itertools.chain(range(len(body)), range(len(body) + 1, len(body) + 20))
    for length in lengths:
        changed = body[:length] + b"x" * (length - len(body))
        if opcode == Opcode.INIT and length >= (64 if len(body) == 64 else 16):
            continue  # It grows from version to version.
        whole = request(opcode, 1, 1, changed)
        with pytest.raises(MalformedRequest, match="bytes"):
            decode(decode_header(whole), whole)


@pytest.mark.parametrize("length", [0, 1, 39])
def test_what_is_too_short_for_a_header(length: int) -> None:
    with pytest.raises(MalformedRequest, match="shorter than its header"):
        decode_header(bytes(length))


@pytest.mark.parametrize("said", [0, 39, 40, 44, 46, 1 << 31])
def test_a_length_that_is_not_true(said: int) -> None:
    whole = struct.pack("<I", said) + request(Opcode.LOOKUP, 1, 1, b"name\0")[4:]
    with pytest.raises(MalformedRequest, match=f"of 45 bytes says that it has {said}"):
        decode(decode_header(whole), whole)


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b"\0"),
        (Opcode.LOOKUP, b"name"),
        (Opcode.LOOKUP, b"na\0me\0"),
        (Opcode.LOOKUP, b"name\0\0"),
        (Opcode.LOOKUP, b"x" * 1025 + b"\0"),
        (Opcode.GETXATTR, SMALL * 2 + b"\0"),
        (Opcode.GETXATTR, SMALL * 2 + b"user.x"),
        (Opcode.BATCH_FORGET, struct.pack("<IIQQ", 2, 0, 5, 1)),
        (Opcode.BATCH_FORGET, struct.pack("<IIQQ", 0xFFFFFFFF, 0, 5, 1)),
        (Opcode.INIT, struct.pack("<IIII", 7, 45, 0, 1 << 30)),
    ],
)
def test_bodies_that_do_not_hold_what_they_say(opcode: Opcode, body: bytes) -> None:
    whole = request(opcode, 1, 1, body)
    with pytest.raises(MalformedRequest):
        decode(decode_header(whole), whole)


def test_extensions_are_no_part_of_the_body() -> None:
    body = b"name\0" + bytes(16)
    whole = IN_HEADER.pack(40 + len(body), Opcode.LOOKUP, 1, 1, 0, 0, 0, 2, 0) + body
    assert decode(decode_header(whole), whole) == b"name"
    for units in (3, 0xFFFF):
        lying = IN_HEADER.pack(40 + len(body), Opcode.LOOKUP, 1, 1, 0, 0, 0, units, 0) + body
        with pytest.raises(MalformedRequest, match="extensions"):
            decode(decode_header(lying), lying)


def test_what_is_not_known_has_no_body() -> None:
    for opcode in (Opcode.WRITE, Opcode.IOCTL, 0, 99, 4096, 0xFFFFFFFF):
        whole = request(opcode, 1, 1, b"whatever")
        assert decode(decode_header(whole), whole) is None


# Replies.

ATTRIBUTES = Attributes(77, 1025, 0o100555)
EXPECTED = Attr(77, 1025, 3, 1, 1, 1, 0, 0, 0, 0o100555, 1, 0, 0, 0, 4096, 0)


def test_headers() -> None:
    assert protocol.reply_header(9, 5) == struct.pack("<IiQ", 21, 0, 9)
    assert protocol.error_reply(9, 2) == struct.pack("<IiQ", 16, -2, 9)
    assert protocol.failed_reply(protocol.reply_header(9, 5), 5) == struct.pack("<IiQ", 16, -5, 9)


def test_init() -> None:
    flags = 5 << 32 | InitFlag.MAX_PAGES
    made = protocol.encode_init(38, 1 << 20, flags, max_background=64, max_write=4096, max_pages=256)
    assert made == struct.pack(
        "<IIIIHHIIHHI7I", 7, 38, 1 << 20, 1 << 22, 64, 48, 4096, 1, 256, 0, 5, *[0] * 7
    )
    assert len(made) == 64


def test_entries() -> None:
    made = protocol.encode_entry(ATTRIBUTES)
    assert len(made) == 128
    assert entry(made) == (77, protocol.FOREVER, EXPECTED)
    missing = entry(protocol.encode_missing_entry())
    assert (missing.node, missing.valid) == (0, protocol.FOREVER)


def test_attributes() -> None:
    made = protocol.encode_attributes(ATTRIBUTES)
    assert made == struct.pack("<QII", protocol.FOREVER, 0, 0) + ATTR.pack(*EXPECTED)


def test_other_replies() -> None:
    assert protocol.encode_opened(8, 3) == struct.pack("<QII", 3, 8, 0)
    assert protocol.encode_statfs(255) == struct.pack("<5Q4I6I", *[0] * 5, 4096, 255, 4096, 0, *[0] * 6)
    assert protocol.encode_xattr_size(70) == struct.pack("<II", 70, 0)
    assert protocol.encode_lseek(7) == struct.pack("<Q", 7)
    assert protocol.notify_store(5, b"data") == [struct.pack("<IiQQQII", 44, 4, 0, 5, 0, 4, 0), b"data"]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_directory_entries(length: int) -> None:
    name = b"n" * length
    plain = protocol.dirent(77, 5, 0o100444, name)
    plus = protocol.direntplus(77, 1025, 0o100555, 6, name)
    unknown = protocol.direntplus_unknown(78, 7, 0o40555, name)
    for made, is_plus in ((plain, False), (plus, True), (unknown, True)):
        assert len(made) == protocol.dirent_bytes(name, plus=is_plus)
        assert len(made) % 8 == 0
    assert list(dirents(plain * 2, plus=False)) == [(77, 5, 8, name, None)] * 2
    first, second = dirents(plus + unknown, plus=True)
    assert first == (77, 6, 8, name, (77, protocol.FOREVER, EXPECTED))
    assert second[:4] == (78, 7, 4, name)
    assert second.entry is not None
    assert second.entry.node == 0
