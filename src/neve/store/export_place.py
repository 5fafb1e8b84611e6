"""Where an export makes its tree, until that is complete: a temporary name beside the destination.

The name follows from the destination's. Whoever makes something there holds a lock on it (flock), so that the
next export to the same destination can tell what is in use from what a killed one has left, and removes
that. A symlink cannot be locked: one that is the whole of an export, and was left, stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable
from typing import Self

from neve.castore.digest import b3_digest

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_LEFT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Temporary:
    """The place for one tree that becomes ``name`` in the directory ``parent``. What is there at the end of
    the block if that fails, is removed."""

    def __init__(self, parent: int, name: bytes) -> None:
        self._parent = parent
        self._stem = b".neve-export-" + b3_digest(name)[:8].hex().encode()
        self._held = -1
        self._is_link = False
        self.name = b""
        """Where it is, once it is made."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.name:
            if self._held >= 0:  # It may have been renamed before it failed, and the name be another one's.
                with contextlib.suppress(OSError):
                    if _is_at(self._held, self._parent, self.name):
                        remove_tree(self._parent, self.name)
            elif self._is_link:
                remove_tree(self._parent, self.name)
            else:  # Half of it was made, or nothing: then another one may have the name meanwhile.
                with contextlib.suppress(OSError):
                    _remove_left(self._parent, self.name)
        if self._held >= 0:
            os.close(self._held)

    def make(self, create: Callable[[bytes, int], int]) -> int:
        """Has ``create`` make something under a name that it gets, in a directory that it gets (as a
        descriptor), and returns what that does: what it has made, open, or -1."""
        for number in itertools.count():
            self.name = b"%s-%d" % (self._stem, number)
            while True:
                try:
                    made = create(self.name, self._parent)
                except FileExistsError:
                    if not _remove_left(self._parent, self.name):
                        break
                else:
                    if self._holds(made):
                        return made
        raise AssertionError("there is no end of numbers")

    def _holds(self, made: int) -> bool:
        """Locks what was made. False if somebody has taken it for something left before that."""
        self._is_link = made < 0
        if self._is_link:
            return True
        with contextlib.suppress(OSError):  # No locks there: nobody removes anything.
            fcntl.flock(made, fcntl.LOCK_EX)
        try:
            if _is_at(made, self._parent, self.name):
                self._held = os.dup(made)
        finally:
            if self._held < 0:
                os.close(made)
        return self._held >= 0


def _is_at(fd: int, parent: int, name: bytes) -> bool:
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _remove_left(parent: int, name: bytes) -> bool:
    """Removes what an export has left that was killed; False: it is not that, or cannot be removed."""
    try:
        fd = os.open(name, _OPEN_LEFT, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO):
            return False
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(fd)
        # Of others nothing is removed: they could move it about meanwhile, and what is not theirs would go.
        if found.st_uid == os.geteuid() and _is_at(fd, parent, name):
            if stat.S_ISDIR(found.st_mode):
                _clear(os.dup(fd))
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)
        return not _is_at(fd, parent, name)
    except OSError:
        return False
    finally:
        os.close(fd)


def remove_tree(parent: int, name: bytes) -> None:
    """Removes ``name`` in the directory ``parent`` with all below it, however deep; errors are ignored."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        _clear(os.open(name, OPEN_DIRECTORY, dir_fd=parent))
        os.rmdir(name, dir_fd=parent)


def _clear(fd: int) -> None:
    """Removes all below a directory, and closes it."""
    names: list[bytes] = []
    try:
        while True:
            inner = _empty(fd)
            if inner is None and not names:
                break
            following = os.open(b".." if inner is None else inner, OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = following
            if inner is None:
                os.rmdir(names.pop(), dir_fd=fd)
            else:
                names.append(inner)
    finally:
        os.close(fd)


def _empty(fd: int) -> bytes | None:
    """Unlinks everything in a directory but directories; returns the name of one of those, if any."""
    os.fchmod(fd, 0o700)
    empty = False
    while not empty:  # Whether a listing goes on as before when entries are removed, nobody promises.
        empty = True
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    return os.fsencode(entry.name)
                os.unlink(entry.name, dir_fd=fd)
                empty = False
    return None
