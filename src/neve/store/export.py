"""Stored trees back to disk: whole or not at all.

The tree is made under a temporary name beside its destination, synced, and renamed when it is
complete. An export that is killed leaves that; the next one to the same destination removes it. Permissions
are those that Nix gives (0444, 0555); every mtime is one second after the epoch.

Everything is created relative to its directory's descriptor, so paths may be longer than PATH_MAX,
and only a bounded number of descriptors is open however deep the tree is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

from neve.castore.ingest.filesystem import show_path
from neve.castore.node import Node
from neve.castore.traverse import tree_events
from neve.errors import (
    Conflict,
    DiskFull,
    InvalidRequest,
    NeveError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from neve.store.export_place import OPEN_DIRECTORY, Temporary
from neve.store.services import Services
from neve.telemetry import NO_PROGRESS, Progress, span
from neve.tree import BeginFile, Data, EndFile, EnterDirectory, Event, File, LeaveDirectory, Symlink

_MTIME_NS = (1_000_000_000, 1_000_000_000)
_RENAME_NOREPLACE = 1
_MAX_OPEN_DIRECTORIES = 64
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def export_tree(
    services: Services, root: Node, destination: bytes, *, progress: Progress = NO_PROGRESS
) -> None:
    """Writes the tree of ``root`` to ``destination``, which must not exist.

    Raises ``Conflict`` if it does, ``DiskFull``, ``PermissionDenied``, ``NotFound``, and what reading
    the store raises; then nothing is left behind.
    """
    with span("export"):
        _export(services, root, destination, progress)


def _export(services: Services, root: Node, destination: bytes, progress: Progress) -> None:
    head, _, name = destination.rstrip(b"/").rpartition(b"/")
    shown = show_path(destination)
    if not destination or b"\0" in destination:
        raise InvalidRequest(f"cannot export to {shown!r}: that names no file")
    if not name or name in (b".", b".."):
        raise Conflict(f"cannot export to {shown}: it exists; name something new")
    with _errors(shown):
        parent = os.open(
            head or (b"/" if destination.startswith(b"/") else b"."), os.O_RDONLY | os.O_DIRECTORY
        )
        try:
            if _exists(parent, name):
                raise Conflict(f"cannot export to {shown}: it exists; name something new")
            with Temporary(parent, name) as temporary:
                with _Materializer(temporary) as materializer:
                    for batch in tree_events(services.blobs, services.directories, root):
                        materializer.feed(batch)
                        size = sum(len(e.contents) for e in batch if type(e) is File)
                        progress.advance(size + sum(len(e.data) for e in batch if type(e) is Data))
                _sync_and_rename(parent, temporary.name, name, shown)
        finally:
            os.close(parent)


@contextlib.contextmanager
def _errors(shown: str) -> Iterator[None]:
    try:
        yield
    except NeveError:
        raise
    except OSError as error:
        raise _translated(error, f"cannot export to {shown}") from error


def _translated(error: OSError, what: str) -> NeveError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{what}: disk full; free some space and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{what}: {reason}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"{what}: the folder around it does not exist")
    return Unavailable(f"{what}: {reason}")


def _exists(parent: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _new_directory(name: bytes, parent: int) -> int:
    os.mkdir(name, 0o700, dir_fd=parent)
    return os.open(name, OPEN_DIRECTORY, dir_fd=parent)


class _Level(NamedTuple):
    fd: list[int]  # of one element; -1 while closed to save descriptors


class _Materializer:
    """A sink that creates what it is told, in a temporary place."""

    def __init__(self, temporary: Temporary) -> None:
        self._temporary = temporary
        self._levels: list[_Level] = []
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in [self._file, *[level.fd[0] for level in self._levels]]:
            if fd >= 0:
                os.close(fd)

    def feed(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, File):
                self._begin(event.name, event.executable)
                self._write(event.contents)
                self._end()
            elif isinstance(event, Data):
                self._write(event.data)
            elif isinstance(event, EnterDirectory):
                self._enter(event.name)
            elif isinstance(event, LeaveDirectory):
                self._leave()
            elif isinstance(event, Symlink):
                self._link(event.name, event.target)
            elif isinstance(event, BeginFile):
                self._begin(event.name, event.executable)
            elif isinstance(event, EndFile):
                self._end()

    def _make(self, name: bytes, create: Callable[[bytes, int], int]) -> int:
        """Has ``name`` created in the innermost directory; the root, where there is place for it."""
        return create(name, self._levels[-1].fd[0]) if self._levels else self._temporary.make(create)

    def _begin(self, name: bytes, executable: bool) -> None:
        mode = 0o555 if executable else 0o444
        self._file = self._make(name, lambda name, dir_fd: os.open(name, _CREATE, mode, dir_fd=dir_fd))
        os.fchmod(self._file, mode)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def _end(self) -> None:
        os.utime(self._file, ns=_MTIME_NS)
        os.close(self._file)
        self._file = -1

    def _link(self, name: bytes, target: bytes) -> None:
        def create(name: bytes, dir_fd: int) -> int:
            os.symlink(target, name, dir_fd=dir_fd)
            try:
                os.utime(name, ns=_MTIME_NS, dir_fd=dir_fd, follow_symlinks=False)
            except BaseException:
                os.unlink(name, dir_fd=dir_fd)
                raise
            return -1

        self._make(name, create)

    def _enter(self, name: bytes) -> None:
        self._levels.append(_Level([self._make(name, _new_directory)]))
        if len(self._levels) > _MAX_OPEN_DIRECTORIES:
            shallow = self._levels[-_MAX_OPEN_DIRECTORIES - 1].fd
            if shallow[0] >= 0:
                os.close(shallow[0])
                shallow[0] = -1

    def _leave(self) -> None:
        fd = self._levels.pop().fd[0]
        try:
            if self._levels and self._levels[-1].fd[0] < 0:
                self._levels[-1].fd[0] = os.open(b"..", OPEN_DIRECTORY, dir_fd=fd)
            os.fchmod(fd, 0o555)
            os.utime(fd, ns=_MTIME_NS)
        finally:
            os.close(fd)


def _sync_and_rename(parent: int, temporary: bytes, name: bytes, shown: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(parent) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    code = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(parent, temporary, parent, name, _RENAME_NOREPLACE) == 0
        code = 0 if done else ctypes.get_errno()
    if code == errno.EEXIST or (code and _exists(parent, name)):
        raise Conflict(f"cannot export to {shown}: it exists; name something new")
    if code in (errno.ENOSYS, errno.EINVAL):
        # No such call on this file system; nothing was there a moment ago.
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    elif code:
        raise OSError(code, os.strerror(code))
    os.fsync(parent)
