"""What a request says about the form of the answer."""

from __future__ import annotations

import pytest

from neve.http_cache.negotiation import (
    GZIP,
    IDENTITY,
    ZSTD,
    chosen_encoding,
    is_known,
    is_wanted,
    range_applies,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, IDENTITY),
        ("", IDENTITY),
        ("identity", IDENTITY),
        ("zstd", ZSTD),
        ("ZSTD", ZSTD),
        ("gzip", GZIP),
        ("gzip, deflate, br, zstd", ZSTD),
        ("gzip;q=1.0, zstd;q=0.1", ZSTD),
        ("zstd;q=0, gzip", GZIP),
        ("zstd;q=0.000, gzip ; q=0.001", GZIP),
        ("zstd; Q=0", IDENTITY),
        ("deflate, br", IDENTITY),
        # That anything may come is no wish for work.
        ("*", IDENTITY),
        ("gzip;q=2, zstd;q=x", IDENTITY),
        ("gzip zstd", IDENTITY),
        ("," * 1000 + "zstd", ZSTD),
        ("z\u017ftd", IDENTITY),
    ],
)
def test_encodings(header: str | None, expected: str) -> None:
    assert chosen_encoding(header) == expected


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (None, False),
        ("", False),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b",W/"a"', True),
        ("*", True),
        (" * ", True),
        ("a", False),
        ('"A"', False),
        ('"ab"', False),
        ('"b"', False),
    ],
)
def test_what_the_client_has(header: str | None, known: bool) -> None:
    assert is_known(header, '"a"') is known
    assert is_known(header, 'W/"a"') is known


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        *((header, True) for header in (None, "*", '"a"', '"b", "a"', 'W/"b","a"')),
        *((header, False) for header in ("", '"b"', 'W/"a"', "a", 'W/"a", "b"')),
    ],
)
def test_what_the_client_wants(header: str | None, wanted: bool) -> None:
    assert is_wanted(header, '"a"') is wanted
    assert is_wanted(header, 'W/"a"') is (header in (None, "*"))


def test_ranges_of_what_it_has_a_part_of() -> None:
    assert range_applies(None, '"a"')
    assert range_applies(' "a" ', '"a"')
    assert not range_applies('"b"', '"a"')
    assert not range_applies('W/"a"', '"a"')
    assert not range_applies('W/"a"', 'W/"a"')
    assert not range_applies("Wed, 21 Oct 2015 07:28:00 GMT", '"a"')
