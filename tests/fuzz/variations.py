"""Variations on inputs: the same ones for the same seed, on every machine."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence

_NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536)
_EDGES = (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    *(b"0", b"-1", b"18446744073709551615", b"18446744073709551616", b"9" * 4400, b"1e999", b"nan"),
    *(b"%00", b"%2e%2e", b"../", b"\0", b"\r\n", b"\n", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae"),
    *(b"\xd9\xa3", b" ", b",", b":", b";", b"=", b'"', b"\\", b"[" * 64, b"/" * 64),
)

Step = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def variations(
    seeds: Sequence[bytes], count: int, name: str, longest: int, words: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """``count`` inputs of at most ``longest`` bytes, made of ``seeds``. Different ones for another name."""
    rng = random.Random(zlib.crc32(name.encode()))
    known = [*seeds, *words, *_TEXTS]
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            rng.choice(_STEPS)(data, rng, known)
        yield bytes(data[:longest])


def _place(data: bytearray, rng: random.Random) -> int:
    return rng.randint(0, len(data))


def _stretch(data: bytearray, rng: random.Random) -> slice:
    start = _place(data, rng)
    return slice(start, start + rng.choice((1, 1, 2, 4, 8, rng.randint(1, 64))))


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Puts a number in place of what is there."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((*_NUMBERS, *_EDGES, len(data), len(data) - 1)) % (1 << 8 * size)
    start = _place(data, rng)
    data[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _step(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """One more or less, in a byte: digits and lengths."""
    if data:
        at = rng.randrange(len(data))
        data[at] = (data[at] + rng.choice((-1, 1))) % 256


def _cut_off(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    del data[_place(data, rng) :]


def _take_out(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    del data[_stretch(data, rng)]


def _repeat(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    part = bytes(data[_stretch(data, rng)]) * rng.choice((1, 1, 2, 16))
    start = _place(data, rng)
    data[start:start] = part


def _put_in(data: bytearray, rng: random.Random, known: Sequence[bytes]) -> None:
    """Something that is known, or a part of it, in between or in place of what is there."""
    part = rng.choice(known)
    if len(part) > 1 and rng.random() < 0.3:
        start = rng.randrange(len(part))
        part = part[start : start + rng.randint(1, len(part))]
    at = _place(data, rng)
    data[at : at + rng.choice((0, 0, len(part)))] = part


def _anything(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.randint(1, 16))


_STEPS: tuple[Step, ...] = (
    *(_flip, _set, _number, _step, _cut_off, _take_out, _repeat, _put_in, _put_in, _anything),
)
