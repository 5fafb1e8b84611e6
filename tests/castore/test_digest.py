from __future__ import annotations

import base64

import pytest
from hypothesis import given

from neve.castore.digest import (
    EMPTY_BLOB,
    InvalidDigest,
    b3_digest,
    check_digest,
    format_digest,
    format_snix_digest,
    parse_digest,
)
from neve.errors import InvalidRequest
from neve.testing.strategies import digests

# Published with BLAKE3: the hash of no input.
EMPTY = bytes.fromhex("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")
EMPTY_TEXT = "rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI="


def test_empty_blob() -> None:
    assert b3_digest(b"") == EMPTY_BLOB == EMPTY


@pytest.mark.parametrize("data", [b"Hello World!", bytearray(b"Hello World!"), memoryview(b"Hello World!")])
def test_b3_digest(data: bytes) -> None:
    assert base64.b64encode(b3_digest(data)) == b"XKeBWty0hOmhNsEe/mnB1TAXbVSbXRjQOOtSgLSzRww="


def test_text_forms() -> None:
    assert format_digest(EMPTY) == "b3:" + EMPTY_TEXT
    assert format_snix_digest(EMPTY) == "blake3-" + EMPTY_TEXT
    assert parse_digest("b3:" + EMPTY_TEXT) == EMPTY


@given(digests())
def test_text_forms_round_trip(digest: bytes) -> None:
    assert parse_digest(format_digest(digest)) == digest
    assert parse_digest(format_snix_digest(digest)) == digest


def test_check_digest() -> None:
    assert check_digest(EMPTY) is EMPTY
    with pytest.raises(InvalidDigest, match=r"^digest has 31 bytes, must have 32$"):
        check_digest(EMPTY[:31])
    with pytest.raises(InvalidDigest, match=r"^root has 0 bytes, must have 32$"):
        check_digest(b"", "root")
    assert issubclass(InvalidDigest, InvalidRequest)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not begin with 'b3:'"),
        (EMPTY_TEXT, "does not begin with 'b3:'"),
        ("B3:" + EMPTY_TEXT, "does not begin with 'b3:'"),
        ("b3:", "has 0 bytes, must have 32"),
        ("b3:AAAA", "has 3 bytes, must have 32"),
        ("blake3-AAAA", "has 3 bytes, must have 32"),
        ("b3:" + EMPTY_TEXT[:-1], "is not padded base64"),
        ("b3:" + EMPTY_TEXT + "\n", "is not padded base64"),
        ("b3: " + EMPTY_TEXT, "is not padded base64"),
        ("b3:" + EMPTY_TEXT.replace("/", "_").replace("X", "-"), "is not padded base64"),
        ("b3:" + EMPTY_TEXT.replace("X", "é"), "is not padded base64"),
        ("b3:" + EMPTY_TEXT[:-2] + "J=", "unused bits are set"),
    ],
)
def test_parse_refuses(text: str, reason: str) -> None:
    with pytest.raises(InvalidDigest) as caught:
        parse_digest(text)
    assert reason in str(caught.value)
    assert repr(text) in str(caught.value)
