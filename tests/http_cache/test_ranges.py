"""Byte ranges, without any server."""

from __future__ import annotations

import pytest

from neve.http_cache.ranges import MAX_RANGES, Multipart, Range, parse_ranges
from neve.http_cache.statuses import Refused

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-999", [(0, 1000)]),
        ("bytes=500-", [(500, 1000)]),
        ("bytes=999-", [(999, 1000)]),
        ("bytes=10-2000", [(10, 1000)]),
        ("bytes=-1", [(999, 1000)]),
        ("bytes=-1000", [(0, 1000)]),
        ("bytes=-5000", [(0, 1000)]),
        ("Bytes= 1 - 2 , 4-4 ", [(1, 3), (4, 5)]),
        ("bytes=4-4,1-2", [(4, 5), (1, 3)]),
        ("bytes=0-1,,5-6", [(0, 2), (5, 7)]),
        # One that has nothing does not spoil the others.
        ("bytes=0-1,1000-", [(0, 2)]),
        # Overlapping ones that make up more than there is: then all of it.
        ("bytes=0-,0-", None),
        ("bytes=0-600,300-999", None),
        ("bytes=0-99,50-149", [(0, 100), (50, 150)]),
        # Other units mean nothing.
        ("lines=1-2", None),
        ("bytes 0-1", None),
        ("", None),
    ],
)
def test_what_is_asked_for(header: str | None, expected: list[tuple[int, int]] | None) -> None:
    assert parse_ranges(header, SIZE) == expected


@pytest.mark.parametrize(
    "header",
    [
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=-0",
        "bytes=1000-",
        "bytes=1000-2000",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=--5",
        "bytes=0x1-0x2",
        "bytes=+1-2",
        "bytes=1_0-20",
        "bytes=0-1;2-3",
        f"bytes=0-{'9' * 40}",
        "bytes=\u0661-\u0662",
        "bytes=0-1,nonsense",
    ],
)
def test_what_cannot_be(header: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_ranges(header, SIZE)
    assert refusal.value.status == 416
    assert refusal.value.headers == [(b"content-range", b"bytes */1000")]


def test_of_nothing() -> None:
    for header in ("bytes=0-", "bytes=-5"):
        with pytest.raises(Refused):
            parse_ranges(header, 0)
    assert parse_ranges(None, 0) is None


def test_many() -> None:
    header = "bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(MAX_RANGES))
    assert parse_ranges(header, SIZE) == [Range(2 * i, 2 * i + 1) for i in range(MAX_RANGES)]
    with pytest.raises(Refused, match="more than 16 ranges"):
        parse_ranges(header + ",900-901", SIZE)
    with pytest.raises(Refused, match="more than 16 ranges"):
        parse_ranges("bytes=" + "1-2," * 100_000, SIZE)


def test_the_header_of_an_answer() -> None:
    assert Range(0, 1).header(10) == b"bytes 0-0/10"
    assert Range(3, 10).header(10) == b"bytes 3-9/10"


def test_several_parts_have_the_length_that_is_announced() -> None:
    data = bytes(range(100))
    ranges = [Range(0, 10), Range(90, 100)]
    parts = Multipart(ranges, len(data), b"text/x", b"BOUNDARY")
    body = b"".join(
        head + data[each.start : each.stop] for head, each in zip(parts.heads, ranges, strict=True)
    )
    body += parts.tail
    assert len(body) == parts.length
    assert parts.content_type == (b"content-type", b"multipart/byteranges; boundary=BOUNDARY")
    assert body.startswith(
        b"\r\n--BOUNDARY\r\ncontent-type: text/x\r\ncontent-range: bytes 0-9/100\r\n\r\n\x00"
    )
    assert body.endswith(data[90:] + b"\r\n--BOUNDARY--\r\n")
