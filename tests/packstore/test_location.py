"""Values of the index: round trip, and any flipped bit shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Corrupt
from neve.packstore.location import (
    Location,
    decode_location,
    decode_number,
    encode_location,
    encode_locations,
    encode_number,
    make_place,
    offset_of,
    pack_of,
)

u32 = st.integers(0, 2**32 - 1)
places = st.builds(make_place, st.integers(1, 2**24 - 1), st.integers(0, 2**40 - 1))
locations = st.builds(
    Location, st.integers(0, 255), places, st.integers(0, 3), st.integers(0, 2**30 - 1), u32, u32, u32, u32
)


@given(st.binary(min_size=1), locations)
def test_locations(key: bytes, location: Location) -> None:
    assert decode_location(key, encode_location(key, location)) == location
    with pytest.raises(Corrupt, match=(key + b"x").hex()):
        decode_location(key + b"x", encode_location(key, location))


@given(locations, st.lists(st.tuples(st.binary(min_size=1), st.integers(0, 255), u32, u32)))
def test_many_of_one_frame(frame: Location, records: list[tuple[bytes, int, int, int]]) -> None:
    encoded = encode_locations(frame[1:6], records)
    assert [decode_location(key, one) for (key, *_), one in zip(records, encoded, strict=True)] == [
        frame._replace(tag=tag, start=start, length=length) for _, tag, start, length in records
    ]


@given(st.integers(0, 2**24 - 1), st.integers(0, 2**40 - 1))
def test_places(pack_id: int, offset: int) -> None:
    place = make_place(pack_id, offset)
    assert (pack_of(place), offset_of(place)) == (pack_id, offset)


@given(st.binary(min_size=1), st.integers(0, 2**64 - 1))
def test_numbers(key: bytes, number: int) -> None:
    assert decode_number(key, encode_number(key, number)) == number


def test_any_flipped_bit_shows() -> None:
    key = b"key of a record"
    location = Location(2, make_place(5, 123_456), 1, 1000, 5000, 80, 40, 300)
    for encoded, decode in (
        (encode_location(key, location), decode_location),
        (encode_number(key, 12345), decode_number),
    ):
        for bit in range(len(encoded) * 8):
            damaged = bytearray(encoded)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Corrupt, match=key.hex()):
                decode(key, bytes(damaged))
        for wrong in (b"", encoded[:-1], encoded + b"x"):
            with pytest.raises(Corrupt):
                decode(key, wrong)
