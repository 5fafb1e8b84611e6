"""Objects as files, written so that they last: the library does not sync what it writes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from neve.packstore.layout import os_errors, sync_directory

_UNFINISHED = re.compile(r"[0-9a-f]{64}#[0-9]+")
"""What the library calls files that are not complete, which it leaves out of listings; and so we do."""

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

    def remove_leftovers(self, table: str, unused_for: float) -> int:
        """Removes what was not finished in the folders below ``table``, and was not written to for so many
        seconds; returns how much. Raises as ``put``."""
        count = 0
        with os_errors(f"cannot look for unfinished files in {self._root / table}"):
            for folder in _entries(self._root / table):
                for entry in _entries(folder.path) if folder.is_dir() else ():
                    if _UNFINISHED.fullmatch(entry.name):
                        # Its writer may come to its end just now.
                        with contextlib.suppress(FileNotFoundError):
                            if time.time() - entry.stat().st_mtime >= unused_for:
                                os.unlink(entry)
                                count += 1
        return count

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


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder; nothing if it is gone."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries
