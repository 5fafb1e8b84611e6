"""A binary cache in a folder, as ``nix copy --to file:///folder`` writes it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from neve.errors import PermissionDenied, Unavailable
from neve.store.substitute.files import CacheFile, CacheFiles, InvalidAnswer

_PIECE_BYTES = 1024 * 1024
_COMPONENT = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class FolderCache(CacheFiles):
    """The files below ``folder``. No symlink below it is followed: none leads out of it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        self.url = folder.rstrip("/")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[CacheFile | None]:
        descriptor = self._descriptor(name)
        if descriptor is None:
            yield None
            return
        try:
            yield CacheFile(self._pieces(descriptor, name))
        finally:
            os.close(descriptor)

    def _descriptor(self, name: str) -> int | None:
        """Opens component by component, so that what is exchanged meanwhile leads nowhere either."""
        *folders, last = name.split("/")
        with contextlib.ExitStack() as opened:
            try:
                at = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, at)
                for folder in folders:
                    at = os.open(folder, _COMPONENT | os.O_DIRECTORY, dir_fd=at)
                    opened.callback(os.close, at)
                # What is no file must not make us wait.
                descriptor = os.open(last, _COMPONENT | os.O_NONBLOCK, dir_fd=at)
            except OSError as error:
                if error.errno in _ABSENT and not self._is_link(name):
                    return None
                raise self._failure(name, error) from error
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise InvalidAnswer(f"{self.where(name)} is no file")
            return descriptor

    def _is_link(self, name: str) -> bool:
        """Whether a folder on the way is a symlink, for which the system has the same error as for a file."""
        parts = name.split("/")
        return any(os.path.islink(os.path.join(self._folder, *parts[:n])) for n in range(1, len(parts)))

    def _pieces(self, descriptor: int, name: str) -> Iterator[bytes]:
        while not self.closing.is_set():
            try:
                piece = os.read(descriptor, _PIECE_BYTES)
            except OSError as error:
                raise self._failure(name, error) from error
            if not piece:
                return
            yield piece
        raise self.closed()

    def _failure(self, name: str, error: OSError) -> Exception:
        where = self.where(name)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return InvalidAnswer(f"{where}: a symlink is in the way; those in a cache are not followed")
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionDenied(f"{where}: {error.strerror}")
        return Unavailable(f"{where}: {error.strerror}")
