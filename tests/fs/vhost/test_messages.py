"""Messages of vhost-user: what each of them says, and every way in which one can be wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.fs.vhost.messages import (
    MAX_PAYLOAD_BYTES,
    BadMessage,
    ConfigSpace,
    Header,
    MemoryTable,
    Nothing,
    Number,
    Payload,
    RegionDescription,
    Request,
    VringAddress,
    VringFile,
    VringState,
    parse_header,
    parse_payload,
    reply_config,
    reply_number,
    reply_state,
)

U64_MAX = (1 << 64) - 1


def u32(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}Q", *numbers)


CASES: list[tuple[Request, bytes, int, Payload]] = [
    *(
        (request, b"", 0, Nothing())
        for request in Request
        if request.name.startswith("GET_") and request < 24 and request != Request.GET_VRING_BASE
    ),
    (Request.SET_OWNER, b"", 0, Nothing()),
    (Request.RESET_OWNER, b"", 0, Nothing()),
    (Request.RESET_DEVICE, b"", 0, Nothing()),
    (Request.SET_FEATURES, u64(U64_MAX), 0, Number(U64_MAX)),
    (Request.SET_PROTOCOL_FEATURES, u64(9), 0, Number(9)),
    (Request.SET_VRING_NUM, u32(1, 1024), 0, VringState(1, 1024)),
    (Request.SET_VRING_NUM, u32(1, 1), 0, VringState(1, 1)),
    (Request.SET_VRING_BASE, u32(2, 65535), 0, VringState(2, 65535)),
    (Request.GET_VRING_BASE, u32(2, 7), 0, VringState(2, 7)),
    (Request.SET_VRING_ENABLE, u32(2, 1), 0, VringState(2, 1)),
    (Request.SET_VRING_ENABLE, u32(2, 0), 0, VringState(2, 0)),
    (Request.SET_VRING_ADDR, u32(3, 0) + u64(1, 2, 3, 4), 0, VringAddress(3, 1, 2, 3)),
    (Request.SET_VRING_KICK, u64(255), 1, VringFile(255, True)),
    (Request.SET_VRING_CALL, u64(0x101), 0, VringFile(1, False)),
    (Request.SET_VRING_ERR, u64(1), 1, VringFile(1, True)),
    (Request.SET_MEM_TABLE, u32(1, 0) + u64(1, 2, 3, 4), 1, MemoryTable((RegionDescription(1, 2, 3, 4),))),
    (
        Request.SET_MEM_TABLE,
        u32(8, 0) + u64(*range(32)),
        8,
        MemoryTable(tuple(RegionDescription(i, i + 1, i + 2, i + 3) for i in range(0, 32, 4))),
    ),
    (Request.GET_CONFIG, u32(4, 3, 1) + b"abc", 0, ConfigSpace(4, 1, b"abc")),
    (Request.SET_CONFIG, u32(0, 0, 0), 0, ConfigSpace(0, 0, b"")),
]


@pytest.mark.parametrize(("request_", "payload", "files", "expected"), CASES)
def test_what_a_message_says(request_: Request, payload: bytes, files: int, expected: Payload) -> None:
    assert parse_payload(request_, payload, files) == expected


def test_every_request_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(Request)


@pytest.mark.parametrize(("request_", "payload", "files", "expected"), CASES)
def test_length_and_descriptors_must_be_right(
    request_: Request, payload: bytes, files: int, expected: Payload
) -> None:
    for wrong in (payload[:-1], payload + b"\0"):
        if wrong != payload:
            with pytest.raises(BadMessage, match=f"^{request_.name} "):
                parse_payload(request_, wrong, files)
    for number in (files - 1, files + 1):
        with pytest.raises(BadMessage, match=f"{request_.name} with {number} descriptors instead of {files}"):
            parse_payload(request_, payload, number)


@pytest.mark.parametrize(
    ("request_", "payload", "files", "reason"),
    [
        (Request.SET_VRING_NUM, u32(0, 0), 0, "SET_VRING_NUM: 0 is no size of a queue"),
        (Request.SET_VRING_NUM, u32(0, 3), 0, "3 is no size"),
        (Request.SET_VRING_NUM, u32(0, 2048), 0, "2048 is no size"),
        (Request.SET_VRING_NUM, u32(0, 1 << 31), 0, "2147483648 is no size"),
        (Request.SET_VRING_BASE, u32(0, 65536), 0, "SET_VRING_BASE: 65536 is no index of a split ring"),
        (Request.SET_VRING_ENABLE, u32(0, 2), 0, "SET_VRING_ENABLE: 2 is neither on nor off"),
        (Request.SET_VRING_ADDR, u32(0, 1) + u64(1, 2, 3, 4), 0, "flags 0x1, but logging was not offered"),
        (Request.SET_VRING_KICK, u64(0x200), 1, "SET_VRING_KICK: 0x200 is no index of a ring"),
        (Request.SET_VRING_CALL, u64(1 << 63), 1, "is no index of a ring"),
        (Request.SET_MEM_TABLE, b"", 0, "SET_MEM_TABLE with 0 bytes"),
        (Request.SET_MEM_TABLE, u32(0, 0), 0, "SET_MEM_TABLE with 0 regions, at most are 8"),
        (Request.SET_MEM_TABLE, u32(9, 0) + u64(*range(36)), 9, "with 9 regions"),
        (Request.SET_MEM_TABLE, u32(1 << 31, 0), 0, "with 2147483648 regions"),
        (Request.SET_MEM_TABLE, u32(2, 0) + u64(1, 2, 3, 4), 2, "32 bytes for 2 regions of 32"),
        (Request.GET_CONFIG, u32(0, 0), 0, "GET_CONFIG with 8 bytes"),
        (Request.GET_CONFIG, u32(0, 4, 0) + b"abc", 0, "GET_CONFIG for 4 bytes has 3"),
    ],
)
def test_bad_payloads(request_: Request, payload: bytes, files: int, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        parse_payload(request_, payload, files)


def test_an_unknown_request() -> None:
    with pytest.raises(BadMessage, match="request 19 is not supported here"):
        parse_payload(19, u64(1), 0)


def test_heads() -> None:
    assert parse_header(u32(5, 0x1, 264)) == Header(5, False, 264)
    assert parse_header(u32(5, 0x9, MAX_PAYLOAD_BYTES)) == Header(5, True, MAX_PAYLOAD_BYTES)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (u32(1, 0, 0), "version 0, known is 1"),
        (u32(1, 2, 0), "version 2"),
        (u32(1, 5, 0), "a reply to GET_FEATURES, but nothing was asked"),
        (u32(77, 1, MAX_PAYLOAD_BYTES + 1), "request 77 with 4097 bytes, at most are 4096"),
        (u32(1, 1, 0xFFFFFFFF), "GET_FEATURES with 4294967295 bytes"),
    ],
)
def test_bad_heads(raw: bytes, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        parse_header(raw)


def test_replies() -> None:
    assert reply_number(Request.GET_FEATURES, 1 << 40) == u32(1, 5, 8) + u64(1 << 40)
    assert reply_state(Request.GET_VRING_BASE, VringState(1, 9)) == u32(11, 5, 8) + u32(1, 9)
    asked = ConfigSpace(36, 0, bytes(4))
    assert reply_config(asked, u32(1)) == u32(24, 5, 16) + u32(36, 4, 0) + u32(1)
    assert reply_config(asked, b"") == u32(24, 5, 12) + u32(36, 0, 0)


@given(st.integers(0, 50) | st.integers(0, (1 << 32) - 1), st.binary(max_size=300), st.integers(0, 8))
def test_any_bytes_are_a_message_or_a_bad_one(number: int, payload: bytes, files: int) -> None:
    try:
        parsed = parse_payload(number, payload, files)
    except BadMessage:
        return
    assert number in set(Request)
    if isinstance(parsed, MemoryTable):
        assert len(parsed.regions) == files
