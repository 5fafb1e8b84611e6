"""Encodings of Directories that were fetched before they are asked for, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from neve.castore.digest import Digest, b3_digest

_OVERHEAD_BYTES = 200
"""What an entry takes beside its encoding, roughly."""


class EncodedDirectories:
    """A bounded cache; what was used least recently goes first. Thread-safe.

    Keys are computed from what is put, so whatever is found is the right bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        """In bytes."""
        self._held: OrderedDict[Digest, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, digest: Digest) -> bytes | None:
        with self._lock:
            encoded = self._held.get(digest)
            if encoded is not None:
                self._held.move_to_end(digest)
            return encoded

    def put(self, encoded: bytes) -> None:
        digest = b3_digest(encoded)
        with self._lock:
            if digest in self._held:
                return
            self._held[digest] = encoded
            self._size += len(encoded) + _OVERHEAD_BYTES
            while self._size > self.capacity:
                _, gone = self._held.popitem(last=False)
                self._size -= len(gone) + _OVERHEAD_BYTES

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._size = 0
