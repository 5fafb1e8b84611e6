"""What the decompressors share: input in pieces that they pull from, and their errors.

Nothing here trusts what the input claims: it is taken in small slices, so that what a library keeps of it
stays small, and whoever pulls says how much at most.
"""

from __future__ import annotations

from collections.abc import Iterable

from neve.errors import InvalidRequest

MAX_PIECE = 1024 * 1024
"""Bytes of output handed on at once."""

MAX_MEMORY = 256 * 1024 * 1024
"""Bytes a decoder may ask for as its dictionary: ``xz -9`` and ``lzip -9`` need 65 and 32 MiB, a header can
ask for 4 GiB."""

SLICE = 32 * 1024
"""Bytes of input given to a decompressor at once. Most of them copy what they have not used yet, over
and over where members are tiny, so that larger slices would not be faster."""


class InvalidCompression(InvalidRequest):
    """Compressed data is damaged, cut short, or followed by something else. Says where and what."""


class Source:
    """Compressed input: ``pieces`` of any size, read as much at a time as a decoder wants.

    What ``pieces`` raises passes through.
    """

    def __init__(self, pieces: Iterable[bytes], compression: str) -> None:
        self._pieces = iter(pieces)
        self._compression = compression
        self._piece = b""
        self._offset = 0
        self.position = 0
        """Bytes taken so far."""

    def at_end(self) -> bool:
        """Whether nothing is left."""
        while self._offset == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._piece = piece
            self._offset = 0
        return False

    def some(self, limit: int = SLICE) -> bytes:
        """The next bytes, 1 to ``limit`` of them; nothing only at the end."""
        if self.at_end():
            return b""
        data = self._piece[self._offset : self._offset + limit]
        self._offset += len(data)
        self.position += len(data)
        return data

    def take(self, size: int, what: str) -> bytes:
        """Exactly ``size`` bytes; ``what`` they are, for the error when there are fewer."""
        data = self.some(size)
        if len(data) == size:
            return data
        parts = [data]
        have = len(data)
        while have < size:
            more = self.some(size - have)
            if not more:
                raise self.truncated(what)
            parts.append(more)
            have += len(more)
        return b"".join(parts)

    def give_back(self, data: bytes) -> None:
        """Takes back the end of what ``some`` gave."""
        if data:
            self._offset -= len(data)
            self.position -= len(data)

    def invalid(self, reason: str) -> InvalidCompression:
        """The error for damaged input."""
        return InvalidCompression(f"{self._compression} data, before byte {self.position}: {reason}")

    def truncated(self, what: str) -> InvalidCompression:
        """The error for input that ends too early."""
        return InvalidCompression(f"{self._compression} data ends after {self.position} bytes, within {what}")
