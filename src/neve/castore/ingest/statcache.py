"""Recognizing a tree on disk that was imported before, by the state of its files.

A *stamp* is a digest over everything a walk saw except file contents: names, kinds, symlink targets,
and of each file device, inode, size, mtime and ctime in nanoseconds and the executable bit. If a walk
that reads no contents arrives at the stamp of an earlier import, the tree is that one.

A file that changed within the clock's granularity after it was read would look unchanged. So a
stamp counts only for files older than its import by ``SLACK_NS``; a tree with a younger file is read
again (Git's index knows the same problem as "racily clean").
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from struct import Struct
from typing import Any

from blake3 import blake3

SLACK_NS = 2_000_000_000
"""The coarsest granularity of file times in use (2 s, FAT)."""

_STATE = Struct("<QQQqqB")
_FLUSH = 64 * 1024


class TreeStamp:
    """Collects the stamp of one walk. ``started_ns``: when the walk began, ns since the epoch."""

    def __init__(self) -> None:
        self.started_ns = time.time_ns()
        self._newest_ns = 0
        self._hasher = blake3()
        self._buffer = bytearray()

    def file(self, name: bytes, state: os.stat_result) -> None:
        mtime, ctime = state.st_mtime_ns, state.st_ctime_ns
        if mtime > self._newest_ns:
            self._newest_ns = mtime
        if ctime > self._newest_ns:
            self._newest_ns = ctime
        executable = bool(state.st_mode & stat.S_IXUSR)
        self._buffer += b"f%b\0" % name
        self._buffer += _STATE.pack(state.st_dev, state.st_ino, state.st_size, mtime, ctime, executable)
        if len(self._buffer) > _FLUSH:
            self._flush()

    def symlink(self, name: bytes, target: bytes) -> None:
        self._buffer += b"l%b\0%b\0" % (name, target)
        if len(self._buffer) > _FLUSH:
            self._flush()

    def enter(self, name: bytes) -> None:
        self._buffer += b"d%b\0" % name

    def leave(self) -> None:
        self._buffer += b"e"
        if len(self._buffer) > _FLUSH:
            self._flush()

    def _flush(self) -> None:
        self._hasher.update(self._buffer)
        self._buffer.clear()

    def digest(self) -> bytes:
        self._flush()
        return self._hasher.digest()

    def older_than(self, time_ns: int) -> bool:
        """Whether every file was last changed before ``time_ns`` by more than the slack."""
        return self._newest_ns + SLACK_NS < time_ns


class StatCache:
    """Remembers by stamp what an import resulted in: one small file for each imported path.

    It is a cache: a file that is missing, torn or unreadable counts as not there, and failing to
    write is no error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, key: bytes) -> Path:
        return self._folder / f"{blake3(key).hexdigest(16)}.json"

    def get(self, key: bytes, stamp: TreeStamp) -> Any | None:
        """What was remembered under ``key`` if the tree is unchanged since, else None."""
        try:
            document = json.loads(self._file(key).read_bytes())
            if (
                document["key"] == key.hex()
                and document["stamp"] == stamp.digest().hex()
                and stamp.older_than(int(document["started_ns"]))
            ):
                return document["result"]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return None

    def put(self, key: bytes, stamp: TreeStamp, result: Any) -> None:
        """Remembers ``result`` (JSON) for the tree that the walk of ``stamp`` read."""
        document = {
            "key": key.hex(),
            "stamp": stamp.digest().hex(),
            "started_ns": stamp.started_ns,
            "result": result,
        }
        path = self._file(key)
        # One name: who is killed leaves one file. Two who write it at once may leave one that is torn.
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            make_private_folders(self._folder)
            try:
                with open(temporary, "w", opener=_private) as file:
                    file.write(json.dumps(document))
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise


def make_private_folders(folder: Path) -> None:
    """Makes a folder, and those above it that are missing. What is remembered is believed: nobody else may
    put something there, whatever the umask."""
    for each in (*reversed(folder.parents), folder):
        each.mkdir(mode=0o700, exist_ok=True)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
