"""Frames: grouping, compressing, and refusing what is not what the index says."""

from __future__ import annotations

import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Corrupt, LimitExceeded
from neve.packstore import pack
from neve.packstore.frames import (
    FRAME_TARGET,
    MAX_FRAME_RECORDS,
    Record,
    decompress,
    encode_frame,
    group_records,
    locations,
)
from neve.packstore.location import make_place, offset_of, pack_of
from tests.packstore.helpers import KEY, record, records


def test_round_trip() -> None:
    for given_records in (
        records(1, 2, 3),
        [record(os.urandom(500))],
        [record(b"")],
        [record(b""), record(b"x")],
    ):
        frame = encode_frame(1, given_records, KEY)
        place = make_place(3, 1000)
        raw = decompress(frame.codec, bytes(frame.payload), frame.raw_len, place)
        assert raw == b"".join(one.data for one in given_records)
        for one, location in zip(given_records, locations(frame, given_records, place), strict=True):
            assert raw[location.start : location.start + location.length] == one.data
            assert (pack_of(location.place), offset_of(location.place)) == (3, 1000)
            assert location.entries_len == len(frame.entries)


def test_what_does_not_compress_is_kept_as_it_is() -> None:
    assert encode_frame(1, [record(os.urandom(1000))], KEY).codec == pack.RAW
    assert encode_frame(1, [record(bytes(1000))], KEY).codec == pack.ZSTD


def test_a_view_is_as_good_as_bytes() -> None:
    data = os.urandom(1000)
    one = record(data)
    view = one._replace(data=memoryview(data))
    assert bytes(encode_frame(1, [view], KEY).payload) == data
    assert encode_frame(1, [view, one], KEY) == encode_frame(1, [one, one], KEY)


@given(st.lists(st.integers(0, 400_000), max_size=30))
def test_groups(sizes: list[int]) -> None:
    given_records = [Record(1, b"%d" % number, bytes(size)) for number, size in enumerate(sizes)]
    groups = list(group_records(given_records))
    assert [one for group in groups for one in group] == given_records
    for group in groups:
        assert len(group) == 1 or sum(len(one.data) for one in group) <= FRAME_TARGET


def test_groups_of_tiny_records_are_bounded() -> None:
    given_records = [Record(1, b"%d" % number, b"") for number in range(2 * MAX_FRAME_RECORDS + 1)]
    assert [len(group) for group in group_records(given_records)] == [MAX_FRAME_RECORDS, MAX_FRAME_RECORDS, 1]


def test_a_record_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "MAX_RECORD", 100)
    encode_frame(1, [record(bytes(100))], KEY)
    with pytest.raises(LimitExceeded, match="has 101 bytes, the limit is 100"):
        encode_frame(1, [record(bytes(101))], KEY)


def test_payloads_that_are_not_what_the_index_says() -> None:
    place = make_place(0x2A, 77)
    packed = zstandard.compress(bytes(10_000))
    bomb = zstandard.compress(bytes(200_000_000))
    no_size = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000))
    for codec, stored, raw_len in [
        (pack.RAW, b"abc", 4),
        (pack.ZSTD, packed, 9_999),
        (pack.ZSTD, packed[:-3], 10_000),
        (pack.ZSTD, packed[:2], 10_000),
        (pack.ZSTD, b"", 0),
        (pack.ZSTD, bomb, 10_000),
        (pack.ZSTD, no_size, 10_000),
        (pack.ZSTD, b"garbage" * 100, 10_000),
    ]:
        with pytest.raises(Corrupt, match=r"pack 0000002a\.pack at 77"):
            decompress(codec, stored, raw_len, place)
