"""A putter that holds a closure until it is known to be valid, beyond some size on the disk."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from neve.castore.closure import ClosureLimits
from neve.castore.digest import Digest
from neve.castore.directories.base import CheckingPutter
from neve.packstore.layout import os_errors

_IN_MEMORY = 16 * 1024 * 1024


class SpoolingPutter(CheckingPutter):
    """Keeps each Directory once; a subclass's ``_commit`` takes them from ``_spooled``."""

    def __init__(self, limits: ClosureLimits, folder: str | None = None) -> None:
        """``folder`` is where to spool (default: the system's temporary folder)."""
        super().__init__(limits)
        self._folder = folder or tempfile.gettempdir()
        self._known: set[Digest] = set()
        self._spool = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by _release
            max_size=_IN_MEMORY, dir=self._folder
        )

    def put_built(self, encoded: bytes, digest: Digest) -> None:
        self._check_open()
        try:
            self._keep(encoded, digest)
        except BaseException:
            self.abandon()
            raise
        self._last_built = digest

    def _keep(self, encoded: bytes, digest: Digest) -> None:
        if digest in self._known:
            return
        self._known.add(digest)
        with self._errors():
            self._spool.write(digest + len(encoded).to_bytes(4, "little"))
            self._spool.write(encoded)

    def _spooled(self) -> Iterator[tuple[Digest, bytes]]:
        """Digests and encodings in the order they came in."""
        with self._errors():
            self._spool.seek(0)
        while True:
            with self._errors():
                head = self._spool.read(36)
                if not head:
                    return
                encoded = self._spool.read(int.from_bytes(head[32:], "little"))
            yield head[:32], encoded

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return os_errors(f"cannot spool Directories in {self._folder}")

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            # Of no interest: on a full disk it cannot write what it still holds in memory.
            self._spool.close()
        self._known.clear()
