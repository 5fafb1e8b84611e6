"""nixbase32, the base 32 of Nix's hashes and store paths.

The alphabet leaves out ``e``, ``o``, ``t`` and ``u``. Seen as one little-endian number, the bytes are
written in base 32 with the most significant digit first, always ceil(bits / 5) digits.
"""

from __future__ import annotations

import re

from neve.errors import InvalidRequest
from neve.nix._text import quoted

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"

# Encoding moves the digits of 20 bytes (160 bits, 32 digits, a store path digest) apart all at once: the
# number's halves go to both halves of a 256 bit number, then the halves of those, until after five
# steps each byte holds the 5 bits of one digit. A step is (mask of lower halves, mask of upper halves,
# shift); ten operations on integers cost half of what 16 table look-ups do.
_BLOCK_BYTES = 20
_BLOCK_DIGITS = 32


def _spreading_steps() -> tuple[tuple[int, int, int], ...]:
    steps = []
    for depth in range(5):
        lane = 256 >> depth
        half = 80 >> depth
        lower = sum(((1 << half) - 1) << start for start in range(0, 256, lane))
        steps.append((lower, lower << half, lane // 2 - half))
    return tuple(steps)


_STEPS = _spreading_steps()
_TO_CHARACTERS = ALPHABET.encode("ascii").ljust(256, b"!")

# int(text, 32) parses in C and in linear time, but knows another alphabet and takes signs, blanks and
# underscores: everything outside of our alphabet becomes a character that it refuses.
_TO_INT_DIGITS = bytearray(b"!" * 256)
for _value, _character in enumerate(ALPHABET):
    _TO_INT_DIGITS[ord(_character)] = ord("0123456789abcdefghijklmnopqrstuv"[_value])
_TO_INT_DIGITS_TABLE = bytes(_TO_INT_DIGITS)

_FOREIGN = re.compile(f"[^{ALPHABET}]")


class InvalidBase32(InvalidRequest):
    """A text is no nixbase32. The message names the position or the length."""


def encoded_length(size: int) -> int:
    """How many characters ``size`` bytes take."""
    return (size * 8 + 4) // 5


def encode(data: bytes) -> str:
    """The nixbase32 text of ``data``, any number of bytes."""
    if len(data) == _BLOCK_BYTES:
        return _encode_block(data)
    # Blocks start at the end of the text, which is the beginning of the data.
    blocks = [
        _encode_block(data[start : start + _BLOCK_BYTES]) for start in range(0, len(data), _BLOCK_BYTES)
    ]
    text = "".join(reversed(blocks))
    return text[len(text) - encoded_length(len(data)) :]


def _encode_block(data: bytes) -> str:
    """The 32 digits of up to 20 bytes."""
    number = int.from_bytes(data, "little")
    for lower, upper, shift in _STEPS:
        number = number & lower | (number & upper) << shift
    return number.to_bytes(_BLOCK_DIGITS, "big").translate(_TO_CHARACTERS).decode("ascii")


def decode(text: str | bytes) -> bytes:
    """The bytes that ``text`` stands for.

    Raises ``InvalidBase32`` for a character outside of the alphabet, a length that no number of
    bytes has, and spare bits that are not zero.
    """
    size = len(text) * 5 // 8
    if encoded_length(size) != len(text):
        raise InvalidBase32(f"no number of bytes has {len(text)} nixbase32 characters: {quoted(text)}")
    if not text:
        return b""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
        number = int(raw.translate(_TO_INT_DIGITS_TABLE), 32)
    except ValueError as error:
        raise InvalidBase32(_describe_foreign(text)) from error
    try:
        return number.to_bytes(size, "little")
    except OverflowError as error:
        spare = len(text) * 5 - size * 8
        raise InvalidBase32(f"the {spare} spare bits of {quoted(text)} must be zero") from error


def _describe_foreign(text: str | bytes) -> str:
    # latin-1 maps each byte to one character, so that positions stay those of the input.
    characters = text if isinstance(text, str) else text.decode("latin-1")
    foreign = _FOREIGN.search(characters)
    assert foreign is not None, "int() refuses nothing else"
    return f"character {foreign.group()!r} at position {foreign.start()} is not nixbase32: {quoted(text)}"
