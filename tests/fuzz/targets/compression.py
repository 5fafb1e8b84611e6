"""What compressed files become."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial

from neve.errors import InvalidRequest, LimitExceeded
from neve.nix._compressed import MAX_MEMORY, MAX_PIECE, InvalidCompression
from neve.nix.compression import COMPRESSIONS, decompressed, sniffed
from tests.fuzz.target import Bound, Target

_MOST = 4 * 1024 * 1024
"""Bytes of contents after which nobody wants more: whoever reads bounds what he reads."""

_LONG = "more than that"


def _digest(pieces: Iterable[bytes], compression: str) -> bytes | str:
    """Of the contents, or the kind of refusal. No piece is longer than promised."""
    hasher = hashlib.sha256()
    size = 0
    try:
        for piece in decompressed(pieces, compression):
            assert 0 < len(piece) <= MAX_PIECE
            hasher.update(piece)
            size += len(piece)
            if size > _MOST:
                return _LONG
    except InvalidRequest as error:
        return type(error).__name__
    return hasher.digest()


def _decompress(compression: str, data: bytes) -> None:
    """Whole and in pieces it says the same, unless it is more than anybody reads: what is wrong may be found
    before that, or would be behind it."""
    whole = _digest([data], compression)
    step = max(1, len(data) // 50)
    pieces = _digest([data[at : at + step] for at in range(0, len(data), step)], compression)
    assert whole == pieces or _LONG in (whole, pieces)
    if not isinstance(whole, bytes):
        raise InvalidCompression(whole)


def _target(compression: str) -> Target:
    run: Callable[[bytes], None] = partial(_decompress, compression)
    # A piece of contents, and another in the library. LZMA has a dictionary of the size that a header says.
    dictionary = MAX_MEMORY if compression in ("xz", "lzip") else 0
    return Target(
        f"decompress-{compression}",
        run,
        (InvalidCompression, LimitExceeded),
        memory=Bound(dictionary + 8 * MAX_PIECE, 64),
        steps=Bound(4000, 200),
        rounds=100,
    )


def _sniff(data: bytes) -> None:
    assert sniffed(data[:16]) in COMPRESSIONS


TARGETS = (
    *[_target(compression) for compression in COMPRESSIONS if compression != "none"],
    Target("sniffed", _sniff, ()),
)
