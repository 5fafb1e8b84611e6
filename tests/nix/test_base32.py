from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix import base32
from neve.nix.base32 import InvalidBase32

from . import vectors


def reference_encode(data: bytes) -> str:
    """The definition, digit by digit: character i from the end takes 5 bits at bit i * 5."""
    number = int.from_bytes(data, "little")
    length = -(-len(data) * 8 // 5)
    return "".join("0123456789abcdfghijklmnpqrsvwxyz"[number >> 5 * i & 31] for i in reversed(range(length)))


@pytest.mark.parametrize("vector", vectors.load("hashes.json"), ids=lambda v: v["nix32"][:12])
def test_agrees_with_nix(vector: dict[str, str]) -> None:
    digest = bytes.fromhex(vector["base16"])
    assert base32.encode(digest) == vector["nix32"]
    assert base32.decode(vector["nix32"]) == digest
    assert base32.decode(vector["nix32"].encode()) == digest


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\x00", "00"),
        (b"\xff", "7z"),
        (b"\x01", "01"),
        (b"\x1f", "0z"),
        (b"\x00\x01", "0080"),
        (b"\xff" * 5, "z" * 8),
        (b"\x00" * 20, "0" * 32),
        (b"\xff" * 20, "z" * 32),
        (b"\x01" + b"\x00" * 20, "00" + "0" * 31 + "1"),
        (b"\x00" * 20 + b"\x01", "01" + "0" * 32),
    ],
)
def test_known_texts(data: bytes, text: str) -> None:
    assert base32.encode(data) == text
    assert base32.decode(text) == data


@given(st.binary(max_size=100))
def test_round_trip_follows_the_definition(data: bytes) -> None:
    text = base32.encode(data)
    assert text == reference_encode(data)
    assert len(text) == base32.encoded_length(len(data))
    assert base32.decode(text) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "1 nixbase32 characters"),
        ("000", "3 nixbase32 characters"),
        ("000000", "6 nixbase32 characters"),
        ("0" * 33, "33 nixbase32 characters"),
        ("0e", "'e' at position 1"),
        ("o0", "'o' at position 0"),
        ("0" * 31 + "t", "'t' at position 31"),
        ("0u00", "'u' at position 1"),
        ("0A", "'A' at position 1"),
        ("+1", r"'\+' at position 0"),
        ("-1", "'-' at position 0"),
        ("1_00", "'_' at position 1"),
        (" 1", "' ' at position 0"),
        ("1\n", r"'\\n' at position 1"),
        ("0\u0661", "'\u0661' at position 1"),
        ("0\ud800", r"'\\ud800' at position 1"),
        (b"0\xe9", "'é' at position 1"),
        (b"0\x00", r"'\\x00' at position 1"),
        ("80", "2 spare bits of '80' must be zero"),
        ("zz", "2 spare bits"),
        ("z000", "4 spare bits"),
        ("2" + "0" * 51, "4 spare bits"),
    ],
)
def test_refuses(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidBase32, match=message):
        base32.decode(text)


def test_message_stays_short_for_long_input() -> None:
    with pytest.raises(InvalidBase32) as caught:
        base32.decode("!" * 1_000_000)
    assert len(str(caught.value)) < 400


@given(st.text() | st.binary())
def test_anything_decodes_or_is_refused(text: str | bytes) -> None:
    try:
        data = base32.decode(text)
    except InvalidBase32:
        return
    assert base32.encode(data) == (text if isinstance(text, str) else text.decode("ascii"))


def test_megabytes_take_linear_work() -> None:
    # A quadratic conversion would run into the suite's time limit.
    data = bytes(range(256)) * 8192
    assert base32.decode(base32.encode(data)) == data
