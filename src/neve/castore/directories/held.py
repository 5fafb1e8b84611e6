"""A closure that comes root to leaves, held to be put leaves to root."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Self

from neve.castore.digest import Digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import Directory, child_digests
from neve.packstore.layout import os_errors, temporary_errors

_SPOOL_IN_MEMORY = 16 * 1024 * 1024


class HeldClosure:
    """The Directories of one closure; beyond some size they lie on the disk. To be closed."""

    def __init__(self) -> None:
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY)  # noqa: SIM115 - closed by `close`
        self._places: dict[Digest, tuple[int, int]] = {}
        self.size = 0
        """Bytes of all encodings."""

    def add(self, directory: Directory) -> None:
        """Takes one. Raises ``DiskFull``, ``Unavailable`` if there is no room to hold it."""
        encoded = directory.encode()
        with temporary_errors("cannot hold Directories"):
            self._spool.write(encoded)
        self._places[directory.digest] = (self.size, len(encoded))
        self.size += len(encoded)

    def __len__(self) -> int:
        return len(self._places)

    def _encoded(self, digest: Digest) -> bytes:
        start, length = self._places[digest]
        with os_errors("cannot read spooled Directories"):
            self._spool.seek(start)
            return self._spool.read(length)

    def put(self, root: Digest, service: DirectoryService) -> None:
        """Puts all of it, children first, without recursion. Raises what the putter raises."""
        done: set[Digest] = set()
        stack = [root]
        with service.put_multiple() as putter:
            while stack:
                encoded = self._encoded(stack[-1])
                children = [child for child in child_digests(encoded) if child not in done]
                if children:
                    stack += children
                    continue
                digest = stack.pop()
                if digest not in done:
                    putter.put(Directory.decode(encoded, digest=digest, validated=True))
                    done.add(digest)
            putter.close()

    def close(self) -> None:
        """Frees it. Can be called again."""
        with contextlib.suppress(OSError):
            self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
