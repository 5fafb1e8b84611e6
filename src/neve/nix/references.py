"""Finding references: which of many store paths a content mentions. No I/O.

A content refers to a store path if the 32 characters of the path's digest stand anywhere in it; what stands
around them does not matter. That is Nix's rule, and what it scans is the NAR.

Looking at every position costs Python 80 ns a byte. Two ways do better, because no single one is fast on
everything; both are operations on ``bytes`` that run in C.

First way: every third byte, translated to "of the alphabet or not". 32 characters in a row are at least ten
such samples in a row, which programs and texts seldom have, and only there the candidates are looked up.
That is faster than any hash, and its cost does not depend on the number of candidates. It stops paying where
such rows are many (hex dumps, lists of hashes) and says nothing where everything is of the alphabet.

So after a number of rows in one piece the second way takes over: seven bytes out of every 26 are looked up
in the set of all seven bytes that a candidate has where a word so taken may lie in it. A random word of the
alphabet is one of a random candidate by a chance of 2^-35, so where one is found, the candidates are
looked up. The rate falls with the size of that set, which outgrows the processor's caches.
``benchmarks/scan_references.py`` measures both. (Searching for each candidate by itself, or a regular
expression for 32 characters, are slower even with ten candidates.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from neve.nix import base32
from neve.nix.store_path import DIGEST_SIZE, InvalidStorePath

_LENGTH = base32.encoded_length(DIGEST_SIZE)
_OVERLAP = _LENGTH - 1

_SPACING = 3
_OF_ALPHABET = bytes(byte in base32.ALPHABET.encode() for byte in range(256))
_ROW = b"\1" * (_LENGTH // _SPACING)
"""Every run of 32 characters has at least so many samples."""

_PIECE_BYTES = 256 * 1024
"""Small pieces are gathered up to this: a call for each would cost more than looking at them."""

_BYTES_PER_LOOK = 128
"""The first way may look at one position for so many bytes, which costs about what the samples cost."""

_ROW_LOOKS = 8
"""A row costs as much as so many positions, beside those in it."""

_WORD = 7
_LONGEST_STRIDE = _LENGTH - _WORD + 1
"""Distance of words: a whole one must lie within any 32 bytes."""

_MAX_WORDS = 1_500_000
"""Words in the set, of about 90 bytes each. With more than 57,000 candidates the words are taken more
densely, which makes the set smaller; from 214,000 on, the second way looks at every position."""

_BLOCK_WORDS = 512


class ReferenceScanner:
    """Finds which of the store path digests (20 bytes each) a content mentions that comes in pieces.

    Needs about 150 bytes a candidate, and for contents that are dense with characters of the alphabet up to
    2.5 KB each, 135 MB at most. Not thread-safe, and holds the interpreter lock most of the time.
    Raises ``InvalidStorePath`` for a digest of another length.
    """

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._missing = set(map(_text, digests))
        self._found: set[bytes] = set()
        self._words: _Words | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._tail = b""

    def feed(self, piece: bytes | memoryview) -> None:
        """Takes the next bytes of the content. A memoryview is copied; the caller may reuse it."""
        if not self._missing:
            return
        self._pending.append(bytes(piece))  # Copies nothing if it is bytes.
        self._pending_size += len(self._pending[-1])
        if self._pending_size >= _PIECE_BYTES:
            self._flush()

    def found(self) -> set[bytes]:
        """The digests mentioned in what was fed so far."""
        self._flush()
        return {base32.decode(text) for text in self._found}

    def _flush(self) -> None:
        if not self._pending:
            return
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending, self._pending_size = [], 0
        self._look(self._tail + data[:_OVERLAP])
        self._scan(data)
        self._tail = (self._tail + data if len(data) < _OVERLAP else data)[-_OVERLAP:]

    def _look(self, data: bytes) -> None:
        """Looks at every position."""
        missing = self._missing
        for start in range(len(data) - _OVERLAP):
            text = data[start : start + _LENGTH]
            if text in missing:
                missing.remove(text)
                self._found.add(text)
                if self._words is not None:
                    self._words.discard(text)

    def _scan(self, data: bytes) -> None:
        """The first way, until it has looked at too many positions."""
        samples = data[::_SPACING].translate(_OF_ALPHABET)
        looks = len(data) // _BYTES_PER_LOOK
        begin = samples.find(_ROW)
        while begin >= 0:
            end = samples.find(b"\0", begin)
            if end < 0:
                end = len(samples)
            # The run may begin up to two bytes before its first sample, and end two after its last.
            start = max(0, (begin - 1) * _SPACING + 1)
            stop = min(end * _SPACING, len(data))
            looks -= _ROW_LOOKS + stop - start - _OVERLAP
            if looks < 0:
                self._sweep(data, start)
                return
            self._look(data[start:stop])
            begin = samples.find(_ROW, end)

    def _sweep(self, data: bytes, start: int) -> None:
        """The second way, from ``start`` on."""
        if self._words is None:
            self._words = _Words(self._missing)
        if self._words.stride < _WORD:
            self._look(data[start:])
            return
        for place in self._words.places(data, start):
            self._look(data[max(0, place - self._words.stride + 1) : place + _LENGTH])


class _Words:
    """The seven bytes that candidates have at any of the first ``stride`` offsets."""

    def __init__(self, candidates: Iterable[bytes]) -> None:
        texts = list(candidates)
        self.stride = min(_LONGEST_STRIDE, _MAX_WORDS // max(1, len(texts)))
        self._words: set[bytes] = set()
        self._shared: set[bytes] = set()
        if self.stride < _WORD:
            return
        for text in texts:
            words = self._of(text)
            self._shared |= self._words & words
            self._words |= words
        self._block = struct.Struct(f"{_WORD}s{self.stride - _WORD}x" * _BLOCK_WORDS)

    def _of(self, text: bytes) -> set[bytes]:
        return {text[offset : offset + _WORD] for offset in range(self.stride)}

    def discard(self, text: bytes) -> None:
        """A candidate that has been found makes nobody look again."""
        if self.stride >= _WORD:
            self._words -= self._of(text) - self._shared

    def places(self, data: bytes, start: int) -> Iterable[int]:
        """Where in ``data``, in steps of the stride from ``start`` on, one of the words is."""
        size = self._block.size
        for begin in range(start, len(data), size):
            if len(data) - begin >= size:
                block = self._block.unpack_from(data, begin)
            else:
                block = self._block.unpack(data[begin:].ljust(size, b"\0"))
            if not self._words.isdisjoint(block):
                for number, word in enumerate(block):
                    if word in self._words:
                        yield begin + number * self.stride


def _text(digest: bytes) -> bytes:
    if len(digest) != DIGEST_SIZE:
        raise InvalidStorePath(f"store path digest of {len(digest)} bytes, expected {DIGEST_SIZE}")
    return base32.encode(digest).encode("ascii")
