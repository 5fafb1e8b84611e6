"""A walk over a tree on disk, as tree events.

What is read is what was checked: everything is opened relative to its directory, without following
links and without blocking, and looked at only through the open descriptor. So neither a FIFO put in
place of a file nor a path longer than PATH_MAX matters. A file that grows or shrinks while it is read
is an error, and so is a large one (which takes several reads) that is written to meanwhile.

Executable is who the owner's x bit says. Files, directories and symlinks are taken; anything else is
an error that names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from neve.castore.ingest.exclude import Exclude
from neve.castore.ingest.statcache import TreeStamp
from neve.errors import InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable
from neve.tree import (
    BATCH_BYTES,
    BATCH_EVENTS,
    END_FILE,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    Batches,
    BeginFile,
    Data,
    EnterDirectory,
    Event,
    File,
    Symlink,
)

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DIRECTORY_FLAGS = _FLAGS | os.O_DIRECTORY
_MAX_OPEN_DIRECTORIES = 64
_PATH_STEP = 3000

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}
_FILE, _DIRECTORY, _SYMLINK, _OTHER = 0, 1, 2, 3

_ERRORS: dict[int, type[NeveError]] = {
    errno.ENOENT: NotFound,
    errno.ENOTDIR: NotFound,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.ENAMETOOLONG: InvalidRequest,
    errno.ELOOP: InvalidRequest,
}
"""Whatever is not here may go away by itself: ``Unavailable``."""


class ChangedWhileRead(InvalidRequest):
    """The tree was changed while it was walked, in a way that shows."""


def show_path(path: bytes) -> str:
    """A path for messages: what is no UTF-8 or not printable is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]


class _Level(NamedTuple):
    """A directory on the way from the root to where the walk is."""

    name: bytes
    fd: list[int]  # of one element; -1 while closed to save descriptors
    identity: tuple[int, int]
    entries: Iterator[tuple[bytes, int]]


class FilesystemWalk:
    """One walk over the tree at ``path``. Iterate over it once; the batches are tree events.

    ``stamp`` is told the state of every entry as it was read.
    """

    def __init__(
        self, path: bytes, *, exclude: Exclude | None = None, stamp: TreeStamp | None = None
    ) -> None:
        self._path = path
        self._exclude = exclude
        self._stamp = stamp
        self._levels: list[_Level] = []
        self._batch: list[Event] = []
        self._size = 0
        self.bytes_read = 0
        """Bytes of contents in the batches so far, for progress."""

    @property
    def current(self) -> bytes:
        """The directory the walk is in."""
        return self._where(b"")

    def __iter__(self) -> Batches:
        try:
            with _opened_parent(self._path) as (parent, name):
                yield from self._entry(b"", name, self._kind(name, parent), parent)
                yield from self._walk()
            if self._batch:
                yield self._take()
        finally:
            for level in self._levels:
                if level.fd[0] >= 0:
                    os.close(level.fd[0])
            self._levels = []

    def _where(self, name: bytes) -> bytes:
        return b"/".join([self._path, *[level.name for level in self._levels[1:]], *([name] if name else [])])

    def _kind(self, name: bytes, dir_fd: int) -> int:
        try:
            mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        except OSError as error:
            raise self._os_error(name, error) from error
        return self._kind_of_mode(name, mode)

    def _kind_of_mode(self, name: bytes, mode: int) -> int:
        if stat.S_ISREG(mode):
            return _FILE
        if stat.S_ISDIR(mode):
            return _DIRECTORY
        if stat.S_ISLNK(mode):
            return _SYMLINK
        raise self._refuse(name, mode)

    def _refuse(self, name: bytes, mode: int) -> InvalidRequest:
        where = show_path(self._where(name) if self._levels else self._path)
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            return ChangedWhileRead(f"{where} changed its type while the tree was read")
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown type")
        return InvalidRequest(f"{where} is {kind}; only files, directories and symlinks can be imported")

    def _os_error(self, name: bytes, error: OSError) -> NeveError:
        where = show_path(self._where(name) if self._levels else self._path)
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return ChangedWhileRead(f"{where} changed its type while the tree was read")
        if error.errno == errno.ENOENT:
            if self._levels:
                return ChangedWhileRead(f"{where} vanished while the tree was read")
            return NotFound(f"{where} does not exist")
        return _ERRORS.get(error.errno or 0, Unavailable)(f"cannot read {where}: {reason}")

    def _enter(self, event_name: bytes, name: bytes, dir_fd: int) -> None:
        try:
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=dir_fd)
        except OSError as error:
            raise self._os_error(name, error) from error
        try:
            state = os.fstat(fd)
            entries = self._list(fd, event_name)
        except OSError as error:
            os.close(fd)
            raise self._os_error(name, error) from error
        except BaseException:
            os.close(fd)
            raise
        if self._stamp is not None:
            self._stamp.enter(event_name)
        self._batch.append(EnterDirectory(event_name))
        self._levels.append(_Level(event_name, [fd], (state.st_dev, state.st_ino), iter(entries)))
        if len(self._levels) > _MAX_OPEN_DIRECTORIES:
            shallow = self._levels[-_MAX_OPEN_DIRECTORIES - 1].fd
            if shallow[0] >= 0:
                os.close(shallow[0])
                shallow[0] = -1

    def _list(self, fd: int, name: bytes) -> list[tuple[bytes, int]]:
        """The entries of a directory, sorted by the bytes of their names, with their kinds."""
        encode = os.fsencode
        entries: list[tuple[bytes, int]] = []
        with os.scandir(fd) as scan:
            for entry in scan:
                if entry.is_file(follow_symlinks=False):
                    entries.append((encode(entry.name), _FILE))
                elif entry.is_dir(follow_symlinks=False):
                    entries.append((encode(entry.name), _DIRECTORY))
                elif entry.is_symlink():
                    entries.append((encode(entry.name), _SYMLINK))
                else:
                    entries.append((encode(entry.name), _OTHER))
        if self._exclude is not None:
            base = [*[level.name for level in self._levels[1:]], *([name] if name else [])]
            prefix = b"".join([part + b"/" for part in base])
            entries = [entry for entry in entries if not self._exclude(prefix + entry[0])]
        entries.sort()
        return entries

    def _leave(self) -> None:
        level = self._levels.pop()
        if self._stamp is not None:
            self._stamp.leave()
        self._batch.append(LEAVE_DIRECTORY)
        try:
            if self._levels and self._levels[-1].fd[0] < 0:
                self._reopen(self._levels[-1], level)
        finally:
            os.close(level.fd[0])

    def _reopen(self, parent: _Level, child: _Level) -> None:
        """Gets back to a directory that was closed to save descriptors; it must be the same one."""
        try:
            fd = os.open(b"..", _DIRECTORY_FLAGS, dir_fd=child.fd[0])
        except OSError as error:
            raise self._os_error(b"", error) from error
        parent.fd[0] = fd
        state = os.fstat(fd)
        if (state.st_dev, state.st_ino) != parent.identity:
            raise ChangedWhileRead(f"{show_path(self._where(b''))} was moved while the tree was read")

    def _walk(self) -> Batches:
        while self._levels:
            level = self._levels[-1]
            depth = len(self._levels)
            for name, kind in level.entries:
                if kind == _FILE:
                    # Most entries are small files; they are spared a generator each.
                    if (large := self._small_file(name, name, level.fd[0])) is not None:
                        yield from self._large_file(name, *large)
                else:
                    yield from self._entry(name, name, kind, level.fd[0])
                if self._size >= BATCH_BYTES or len(self._batch) >= BATCH_EVENTS:
                    yield self._take()
                if len(self._levels) != depth:
                    break
            else:
                self._leave()

    def _entry(self, event_name: bytes, name: bytes, kind: int, dir_fd: int) -> Batches:
        if kind == _DIRECTORY:
            self._enter(event_name, name, dir_fd)
        elif kind == _SYMLINK:
            self._symlink(event_name, name, dir_fd)
        elif kind == _FILE:
            if (large := self._small_file(event_name, name, dir_fd)) is not None:
                yield from self._large_file(event_name, *large)
        else:
            # Either refused by name, or a file system that does not tell kinds while listing.
            yield from self._entry(event_name, name, self._kind(name, dir_fd), dir_fd)

    def _take(self) -> list[Event]:
        batch = self._batch
        self.bytes_read += self._size
        self._batch, self._size = [], 0
        return batch

    def _symlink(self, event_name: bytes, name: bytes, dir_fd: int) -> None:
        try:
            target = os.readlink(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise ChangedWhileRead(
                    f"{show_path(self._where(name))} changed its type while the tree was read"
                ) from error
            raise self._os_error(name, error) from error
        if self._stamp is not None:
            self._stamp.symlink(event_name, target)
        self._batch.append(Symlink(event_name, target))

    def _small_file(self, event_name: bytes, name: bytes, dir_fd: int) -> tuple[int, os.stat_result] | None:
        """Reads a file into the batch, or gives back the open file because it is large."""
        try:
            fd = os.open(name, _FLAGS, dir_fd=dir_fd)
        except OSError as error:
            raise self._open_error(name, dir_fd, error) from error
        keep_open = False
        try:
            state = os.fstat(fd)
            size = state.st_size
            if not stat.S_ISREG(state.st_mode):
                raise self._refuse(name, state.st_mode)
            if size > WHOLE_FILE_LIMIT:
                keep_open = True
                return fd, state
            contents = os.read(fd, size + 1)
            if len(contents) != size:
                contents = self._read_on(fd, contents, size, name)
        except OSError as error:
            raise self._os_error(name, error) from error
        finally:
            if not keep_open:
                os.close(fd)
        if self._stamp is not None:
            self._stamp.file(event_name, state)
        self._batch.append(File(event_name, bool(state.st_mode & stat.S_IXUSR), contents))
        self._size += size
        return None

    def _open_error(self, name: bytes, dir_fd: int, error: OSError) -> NeveError:
        if error.errno == errno.ENXIO:  # a socket cannot be opened; say what it is
            with contextlib.suppress(OSError):
                return self._refuse(name, os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
        return self._os_error(name, error)

    def _read_on(self, fd: int, contents: bytes, size: int, name: bytes) -> bytes:
        """After a short read: more may follow on some file systems, but all in all it must be ``size``."""
        while len(contents) <= size and (more := os.read(fd, size + 1 - len(contents))):
            contents += more
        if len(contents) != size:
            raise self._size_changed(name, size)
        return contents

    def _size_changed(self, name: bytes, size: int) -> ChangedWhileRead:
        where = show_path(self._where(name) if self._levels else self._path)
        return ChangedWhileRead(f"{where} was changed while it was read (it had {size} bytes); try again")

    def _large_file(self, event_name: bytes, fd: int, state: os.stat_result) -> Batches:
        size = state.st_size
        try:
            self._batch.append(BeginFile(event_name, bool(state.st_mode & stat.S_IXUSR), size))
            read = 0
            while piece := os.read(fd, min(WHOLE_FILE_LIMIT, size + 1 - read)):
                read += len(piece)
                if read > size:
                    break
                self._batch.append(Data(piece))
                self._size += len(piece)
                if self._size >= BATCH_BYTES:
                    yield self._take()
            after = os.fstat(fd)
        except OSError as error:
            raise self._os_error(event_name, error) from error
        finally:
            os.close(fd)
        if read != size or (after.st_mtime_ns, after.st_size) != (state.st_mtime_ns, size):
            raise self._size_changed(event_name, size)
        if self._stamp is not None:
            self._stamp.file(event_name, state)
        self._batch.append(END_FILE)


@contextlib.contextmanager
def _opened_parent(path: bytes) -> Iterator[tuple[int, bytes]]:
    """The directory above ``path``, opened, and the last component.

    A path longer than PATH_MAX is opened in steps. Links on the way are followed, as everywhere.
    """
    if not path or b"\0" in path:
        raise InvalidRequest("the path is empty" if not path else f"{show_path(path)} has a NUL byte")
    head, _, name = path.rstrip(b"/").rpartition(b"/")
    if not name or name in (b".", b".."):
        head, name = path.rstrip(b"/") or b"/", b"."
    directory = head or (b"/" if path.startswith(b"/") else b".")
    fd = -1
    try:
        while True:
            step = directory
            if len(step) > _PATH_STEP:
                cut = step.rfind(b"/", 0, _PATH_STEP)
                step = step[: cut or 1] if cut >= 0 else step.partition(b"/")[0]
            rest = directory[len(step) :].lstrip(b"/")
            following = os.open(
                step, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=None if fd < 0 else fd
            )
            if fd >= 0:
                os.close(fd)
            fd, directory = following, rest
            if not rest:
                break
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        reason = os.strerror(error.errno) if error.errno else str(error)
        kind = _ERRORS.get(error.errno or 0, Unavailable)
        raise kind(
            f"cannot open {show_path(directory)} (on the way to {show_path(path)}): {reason}"
        ) from error
    try:
        yield fd, name
    finally:
        os.close(fd)
