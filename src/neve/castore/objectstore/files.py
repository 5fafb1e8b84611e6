"""Objects as files, written so that they last: the library does not sync what it writes."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

from neve.packstore.layout import os_errors, sync_directory

_MAX_KNOWN_FOLDERS = 200_000
"""Folders that are remembered to be durable: those of three tables, as many as there can be."""


class DurableFiles:
    """Writes below a folder. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: set[Path] = set()
        self._lock = threading.Lock()

    def put(self, key: str, pieces: Iterable[bytes]) -> None:
        """The file holds what it held or all of ``pieces``; on return that is durable, and so are the
        folders that lead to it. Raises ``DiskFull``, ``PermissionDenied``, ``Unavailable``."""
        path = self._root / key
        with os_errors(f"cannot write {path}"):
            self._make(path.parent)
            # A name that the library takes for its own unfinished files, and so leaves out of listings.
            temporary = path.with_name(f"{path.name}#{secrets.randbits(63)}")
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                with open(fd, "wb") as file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    os.fdatasync(file.fileno())
                temporary.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            sync_directory(path.parent)

    def _make(self, folder: Path) -> None:
        """Makes a folder, and those above it, and each of them durable in the one above."""
        with self._lock:
            if folder in self._known and folder.is_dir():
                return
        if folder != self._root:
            self._make(folder.parent)
            folder.mkdir(mode=0o755, exist_ok=True)
            # Also if it was there: who has made it may not have come to this yet.
            sync_directory(folder.parent)
        else:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for above in folder.parents:
                with contextlib.suppress(PermissionError):  # Who may not read it has not made what is in it.
                    sync_directory(above)
        with self._lock:
            if len(self._known) >= _MAX_KNOWN_FOLDERS:
                self._known.clear()
            self._known.add(folder)
